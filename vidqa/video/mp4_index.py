"""The packet table of an MP4 or QuickTime file: FFmpeg's index, and the offsets from decoding to presentation.

FFmpeg has read the sample table when it opened the file, edit lists applied; its index tells each sample's decoding
time, place and flags. The composition offsets (`ctts`) it keeps to itself, so they are read here. Knows boxes
(ISO 14496-12); refuses fragments, several edits, samples beyond the file's end: whatever FFmpeg treats specially.
"""

import os
import sys
from array import array
from collections.abc import Sequence
from itertools import chain, compress, islice, repeat
from operator import add, attrgetter
from struct import iter_unpack, unpack
from typing import Any, BinaryIO

from vidqa.video.packet_index import PacketIndex, UnsupportedIndex, ascending

_KEY, _DISCARD = 1, 2  # AVINDEX_KEYFRAME, AVINDEX_DISCARD_FRAME of libavformat/avformat.h
_MOST_BOXES = 10_000  # at one level
_LARGEST_TABLE_BYTES = 2**26
_LARGEST_OFFSET = 2**28  # FFmpeg ignores a table with a larger one

Box = tuple[bytes, int, int]  # type, begin and end of what it contains


def mp4_table(path: str, stream: Any) -> PacketIndex:
    """The stored packets; raises Unusual where FFmpeg may see other ones."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        counts, offsets = _offsets(file, size, stream.id)
    entries = stream.index_entries[:]
    if not entries or (counts and sum(counts) != len(entries)):
        raise UnsupportedIndex("an edit list drops samples")
    lengths = list(map(attrgetter("size"), entries))
    if min(lengths) < 1 or max(map(add, map(attrgetter("pos"), entries), lengths)) > size:
        raise UnsupportedIndex("samples are empty or beyond the end of the file")
    dts = list(map(attrgetter("timestamp"), entries))
    if not ascending(dts):
        raise UnsupportedIndex("decoding times do not ascend")
    return _stored(dts, list(map(attrgetter("flags"), entries)), counts, offsets)


def _stored(dts: list[int], flags: list[int], counts: Sequence[int], offsets: Sequence[int]) -> PacketIndex:
    """Adds up as libavformat/mov.c does: pts = dts + dts_shift + offset; the last two runs do not make the shift."""
    shift = max(0, -min(offsets[:-2], default=0))
    runs = [offset + shift for offset in offsets] if shift else offsets
    each = list(chain.from_iterable(map(repeat, runs, counts))) or [0] * len(dts)
    plain = set(flags) <= {0, _KEY}
    keys = list(compress(range(len(flags)), flags if plain else map(_KEY.__and__, flags)))
    if not keys:
        raise UnsupportedIndex("no keyframe")
    hidden = frozenset(() if plain else compress(range(len(flags)), map(_DISCARD.__and__, flags)))
    end = max(map(add, islice(dts, 1, None), each), default=0)  # a packet lasts until the next is decoded
    return PacketIndex(list(map(add, dts, each)), dts, keys, hidden, end)


def _offsets(file: BinaryIO, size: int, track: int) -> tuple[Sequence[int], Sequence[int]]:
    """Runs of samples (counts, offsets) between decoding and showing; both empty where a track has no table."""
    top = _boxes(file, 0, size)
    if any(kind == b"moof" for kind, _, _ in top):
        raise UnsupportedIndex("fragments")
    movie = _boxes(file, *_one(top, b"moov"))
    if any(kind == b"mvex" for kind, _, _ in movie):
        raise UnsupportedIndex("fragments")
    tracks = (_boxes(file, begin, end) for kind, begin, end in movie if kind == b"trak")
    mine = [boxes for boxes in tracks if _track_id(file, *_one(boxes, b"tkhd")) == track]
    if len(mine) != 1 or _edits(file, mine[0]) > 1:
        raise UnsupportedIndex("several edits")
    samples = mine[0]
    for kind in (b"mdia", b"minf", b"stbl"):
        samples = _boxes(file, *_one(samples, kind))
    if all(kind != b"ctts" for kind, _, _ in samples):
        return (), ()
    return _runs(file, *_one(samples, b"ctts"))


def _boxes(file: BinaryIO, begin: int, end: int) -> list[Box]:
    """The boxes side by side in a range of the file; raises Unusual where they do not fill it."""
    found: list[Box] = []
    while begin < end:
        head = _bytes(file, begin, min(16, end - begin))
        size, kind = unpack(">I4s", head[:8]) if len(head) >= 8 else (0, b"")
        long = size == 1 and len(head) == 16
        header, size = (16, int.from_bytes(head[8:], "big")) if long else (8, size)
        if size < header or begin + size > end or len(found) >= _MOST_BOXES:
            raise UnsupportedIndex("boxes do not add up")
        found.append((kind, begin + header, begin + size))
        begin += size
    return found


def _bytes(file: BinaryIO, begin: int, count: int) -> bytes:
    file.seek(begin)
    return file.read(count)


def _one(boxes: list[Box], kind: bytes) -> tuple[int, int]:
    """Where the only box of a kind begins and ends."""
    found = [(begin, end) for name, begin, end in boxes if name == kind]
    if len(found) != 1:
        raise UnsupportedIndex(f"{len(found)} boxes of one kind")
    return found[0]


def _track_id(file: BinaryIO, begin: int, end: int) -> int:
    """The version decides whether two times of 4 or of 8 bytes come first."""
    head = _bytes(file, begin, min(24, end - begin)).ljust(24, b"\0")
    return int.from_bytes(head[20:24] if head[0] else head[12:16], "big")


def _edits(file: BinaryIO, track: list[Box]) -> int:
    """How many edits show media; an empty one only delays."""
    edits = [box for kind, *box in track if kind == b"edts"]
    lists = [box for begin, end in edits for kind, *box in _boxes(file, begin, end) if kind == b"elst"]
    return sum(_shown_edits(_bytes(file, begin, min(end - begin, 2**16))) for begin, end in lists)


def _shown_edits(table: bytes) -> int:
    if len(table) < 8:
        raise UnsupportedIndex("a short edit list")
    step, time = (20, ">8xq4x") if table[0] else (12, ">4xi4x")
    entries = table[8 : 8 + step * int.from_bytes(table[4:8], "big")]
    return sum(start >= 0 for (start,) in iter_unpack(time, entries[: len(entries) // step * step]))


def _runs(file: BinaryIO, begin: int, end: int) -> tuple[Sequence[int], Sequence[int]]:
    if end - begin > _LARGEST_TABLE_BYTES:
        raise UnsupportedIndex("an endless table")
    numbers = array("i", _bytes(file, begin + 8, (end - begin - 8) // 8 * 8))
    if sys.byteorder == "little":
        numbers.byteswap()
    counts, offsets = numbers[::2], numbers[1::2]
    entries = int.from_bytes(_bytes(file, begin + 4, 4), "big")
    if not counts or len(counts) != entries or min(counts) < 1 or max(map(abs, offsets)) > _LARGEST_OFFSET:
        raise UnsupportedIndex("offsets that FFmpeg ignores")
    return counts, offsets
