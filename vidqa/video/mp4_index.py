"""The packet table of an MP4 or QuickTime file: FFmpeg's index, and the offsets from decoding to presentation.

FFmpeg has read the sample table when it opened the file, edit lists applied; its index tells each sample's decoding
time, place and flags. The composition offsets (`ctts`) it keeps to itself, so they are read here. Refuses fragments,
several edits, samples beyond the file's end: whatever FFmpeg treats specially.
"""

import os
import sys
from array import array
from collections.abc import Sequence
from itertools import chain, compress, islice, repeat
from operator import add, attrgetter
from struct import iter_unpack
from typing import Any, BinaryIO

from vidqa.video.mp4_boxes import Box, boxes_in, bytes_at, only, track_id
from vidqa.video.packet_index import PacketIndex, UnsupportedIndex, ascending

_KEY, _DISCARD = 1, 2  # AVINDEX_KEYFRAME, AVINDEX_DISCARD_FRAME of libavformat/avformat.h
_LARGEST_TABLE_BYTES = 2**26
_LARGEST_OFFSET = 2**28  # FFmpeg ignores a table with a larger one


def mp4_table(path: str, stream: Any) -> PacketIndex:
    """The stored packets; raises UnsupportedIndex where FFmpeg may see other ones."""
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
    top = boxes_in(file, 0, size)
    if any(kind == b"moof" for kind, _, _ in top):
        raise UnsupportedIndex("fragments")
    movie = boxes_in(file, *only(top, b"moov"))
    if any(kind == b"mvex" for kind, _, _ in movie):
        raise UnsupportedIndex("fragments")
    tracks = (boxes_in(file, begin, end) for kind, begin, end in movie if kind == b"trak")
    mine = [boxes for boxes in tracks if track_id(file, *only(boxes, b"tkhd")) == track]
    if len(mine) != 1 or _edits(file, mine[0]) > 1:
        raise UnsupportedIndex("several edits")
    samples = mine[0]
    for kind in (b"mdia", b"minf", b"stbl"):
        samples = boxes_in(file, *only(samples, kind))
    if all(kind != b"ctts" for kind, _, _ in samples):
        return (), ()
    return _runs(file, *only(samples, b"ctts"))


def _edits(file: BinaryIO, track: list[Box]) -> int:
    """How many edits show media; an empty one only delays."""
    edits = [box for kind, *box in track if kind == b"edts"]
    lists = [box for begin, end in edits for kind, *box in boxes_in(file, begin, end) if kind == b"elst"]
    return sum(_shown_edits(bytes_at(file, begin, min(end - begin, 2**16))) for begin, end in lists)


def _shown_edits(table: bytes) -> int:
    if len(table) < 8:
        raise UnsupportedIndex("a short edit list")
    step, time = (20, ">8xq4x") if table[0] else (12, ">4xi4x")
    entries = table[8 : 8 + step * int.from_bytes(table[4:8], "big")]
    return sum(start >= 0 for (start,) in iter_unpack(time, entries[: len(entries) // step * step]))


def _runs(file: BinaryIO, begin: int, end: int) -> tuple[Sequence[int], Sequence[int]]:
    if end - begin > _LARGEST_TABLE_BYTES:
        raise UnsupportedIndex("an endless table")
    numbers = array("i", bytes_at(file, begin + 8, (end - begin - 8) // 8 * 8))
    if sys.byteorder == "little":
        numbers.byteswap()
    counts, offsets = numbers[::2], numbers[1::2]
    entries = int.from_bytes(bytes_at(file, begin + 4, 4), "big")
    if not counts or len(counts) != entries or min(counts) < 1 or max(map(abs, offsets)) > _LARGEST_OFFSET:
        raise UnsupportedIndex("offsets that FFmpeg ignores")
    return counts, offsets
