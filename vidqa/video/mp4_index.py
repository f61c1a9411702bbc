"""The sample table and the clean aperture of an MP4 or QuickTime file (ISO 14496-12).

PyAV gives FFmpeg's index (decoding times, positions and flags, edit lists applied), but neither the composition
offsets (`ctts`) nor the clean aperture (`clap`), so both are read here. What the table saves: 100,000 packets of a
477 MiB file take 0.15 s instead of 0.74 s by demuxing, and 0.18 s instead of 1.56 s if the file is not cached
(`scripts/bench_video.py --index`). Anything that FFmpeg treats specially (fragments, several edits, samples beyond the
end of the file) raises UnsupportedIndex.
"""

import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, compress, islice, repeat
from operator import add, attrgetter
from struct import iter_unpack, unpack
from typing import Any, BinaryIO

from vidqa.video.container_index import PacketIndex, UnsupportedIndex, ascending
from vidqa.video.geometry import Crop

_KEYFRAME, _DISCARD = 1, 2  # AVINDEX_KEYFRAME, AVINDEX_DISCARD_FRAME of libavformat/avformat.h
_MAX_BOXES = 10_000  # at one level
_MAX_TABLE_BYTES = 2**26
_MAX_OFFSET = 2**28  # FFmpeg ignores a table with a larger one
_SAMPLE_ENTRIES_HEAD_BYTES = 8  # of stsd
_SAMPLE_ENTRY_FIELDS_BYTES = 78  # of a visual sample entry, before the boxes in it
_APERTURE_BYTES = 32

Box = tuple[bytes, int, int]  # type, begin and end of the content


def read_mp4_index(path: str, stream: Any) -> PacketIndex:
    """Return the packets of a stream from the file's tables; raise UnsupportedIndex if FFmpeg may see other ones."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        counts, offsets = _composition_offsets(file, size, stream.id)
    entries = stream.index_entries[:]
    if not entries or (counts and sum(counts) != len(entries)):
        raise UnsupportedIndex("an edit list drops samples")
    sizes = list(map(attrgetter("size"), entries))
    if min(sizes) < 1 or max(map(add, map(attrgetter("pos"), entries), sizes)) > size:
        raise UnsupportedIndex("samples are empty or beyond the end of the file")
    dts = list(map(attrgetter("timestamp"), entries))
    if not ascending(dts):
        raise UnsupportedIndex("decoding times do not ascend")
    return _packet_index(dts, list(map(attrgetter("flags"), entries)), counts, offsets)


def _packet_index(dts: list[int], flags: list[int], counts: Sequence[int], offsets: Sequence[int]) -> PacketIndex:
    """Add up times as libavformat/mov.c does: pts = dts + dts_shift + offset; the last two runs do not count for it."""
    shift = max(0, -min(offsets[:-2], default=0))
    shifted = [offset + shift for offset in offsets] if shift else offsets
    per_packet = list(chain.from_iterable(map(repeat, shifted, counts))) or [0] * len(dts)
    no_discards = set(flags) <= {0, _KEYFRAME}
    keyframes = list(compress(range(len(flags)), flags if no_discards else map(_KEYFRAME.__and__, flags)))
    if not keyframes:
        raise UnsupportedIndex("no keyframe")
    hidden = frozenset(() if no_discards else compress(range(len(flags)), map(_DISCARD.__and__, flags)))
    end = max(map(add, islice(dts, 1, None), per_packet), default=0)  # a packet lasts until the next is decoded
    return PacketIndex(list(map(add, dts, per_packet)), dts, keyframes, hidden, end)


def _composition_offsets(file: BinaryIO, size: int, track: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return (sample counts, offsets) of `ctts`, run by run; both are empty if the track has no such table."""
    top = list(_boxes(file, 0, size))
    movie = list(_boxes(file, *_only(top, b"moov")))
    if {b"moof", b"mvex"} & {kind for kind, _, _ in top + movie}:
        raise UnsupportedIndex("fragments")
    tracks = (list(_boxes(file, begin, end)) for kind, begin, end in movie if kind == b"trak")
    matching = [boxes for boxes in tracks if _track_id(file, *_only(boxes, b"tkhd")) == track]
    if len(matching) != 1 or _count_edits(file, matching[0]) > 1:
        raise UnsupportedIndex("several edits")
    boxes = matching[0]
    for kind in (b"mdia", b"minf", b"stbl"):
        boxes = list(_boxes(file, *_only(boxes, kind)))
    return _read_ctts(file, *_only(boxes, b"ctts")) if any(kind == b"ctts" for kind, _, _ in boxes) else ((), ())


def _count_edits(file: BinaryIO, track: list[Box]) -> int:
    """Return how many edits show media; an empty edit only delays."""
    edits = [box for kind, *box in track if kind == b"edts"]
    lists = [box for begin, end in edits for kind, *box in _boxes(file, begin, end) if kind == b"elst"]
    return sum(_count_shown_edits(_read_at(file, begin, min(end - begin, 2**16))) for begin, end in lists)


def _count_shown_edits(table: bytes) -> int:
    if len(table) < 8:
        raise UnsupportedIndex("a short edit list")
    step, media_time = (20, ">8xq4x") if table[0] else (12, ">4xi4x")
    entries = table[8 : 8 + step * int.from_bytes(table[4:8], "big")]
    return sum(start >= 0 for (start,) in iter_unpack(media_time, entries[: len(entries) // step * step]))


def _read_ctts(file: BinaryIO, begin: int, end: int) -> tuple[Sequence[int], Sequence[int]]:
    if end - begin > _MAX_TABLE_BYTES:
        raise UnsupportedIndex("an endless table")
    numbers = array("i", _read_at(file, begin + 8, (end - begin - 8) // 8 * 8))
    if sys.byteorder == "little":
        numbers.byteswap()
    counts, offsets = numbers[::2], numbers[1::2]
    entries = int.from_bytes(_read_at(file, begin + 4, 4), "big")
    if not counts or len(counts) != entries or min(counts) < 1 or max(map(abs, offsets)) > _MAX_OFFSET:
        raise UnsupportedIndex("offsets that FFmpeg ignores")
    return counts, offsets


def mp4_crop(path: str, track: int, width: int, height: int) -> Crop:
    """Return what a track's clean aperture (12.1.4) cuts off pictures of a size in pixels; no crop if it has none."""
    with open(path, "rb") as file:
        try:
            return _aperture_crop(_read_aperture(file, os.fstat(file.fileno()).st_size, track), width, height)
        except UnsupportedIndex:
            return Crop()


def _read_aperture(file: BinaryIO, size: int, track: int) -> bytes:
    for kind, begin, end in list(_boxes(file, *_first(file, 0, size, b"moov"))):
        if kind == b"trak" and _track_id(file, *_first(file, begin, end, b"tkhd")) == track:
            for inner in (b"mdia", b"minf", b"stbl", b"stsd"):
                begin, end = _first(file, begin, end, inner)
            begin, end = _first(file, begin + _SAMPLE_ENTRIES_HEAD_BYTES, end)
            begin, end = _first(file, begin + _SAMPLE_ENTRY_FIELDS_BYTES, end, b"clap")
            return _read_at(file, begin, min(end - begin, _APERTURE_BYTES))
    raise UnsupportedIndex("no such track")


def _aperture_crop(aperture: bytes, width: int, height: int) -> Crop:
    """Return the crop for an aperture: fractions of its width, its height and the offset of its centre.

    Half pixels at the sides stay. An aperture that reaches beyond the picture counts as none, as for FFmpeg.
    """
    if len(aperture) < _APERTURE_BYTES:
        return Crop()
    numbers = unpack(">IIIIiIiI", aperture)
    wide, tall, right, down = (
        over / under if under else 0.0 for over, under in zip(numbers[::2], numbers[1::2], strict=True)
    )
    x, y = (width - wide) / 2, (height - tall) / 2
    sides = (x + right, y + down, x - right, y - down)
    return Crop(*map(int, sides)) if min(sides) >= 0 < min(wide, tall) else Crop()


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[Box]:
    """Yield the boxes side by side in a range of the file; raise UnsupportedIndex if they do not fill it."""
    for _ in range(_MAX_BOXES):
        if begin >= end:
            return
        head = _read_at(file, begin, min(16, end - begin))
        size, kind = unpack(">I4s", head[:8]) if len(head) >= 8 else (0, b"")
        long = size == 1 and len(head) == 16
        header, size = (16, int.from_bytes(head[8:], "big")) if long else (8, size)
        if size < header or begin + size > end:
            raise UnsupportedIndex("boxes do not add up")
        yield kind, begin + header, begin + size
        begin += size
    raise UnsupportedIndex("endless boxes")


def _first(file: BinaryIO, begin: int, end: int, kind: bytes | None = None) -> tuple[int, int]:
    """Return begin and end of the first box of a kind, or of any; what follows it is not read."""
    for name, start, stop in _boxes(file, begin, end):
        if kind in (name, None):
            return start, stop
    raise UnsupportedIndex("a box is missing")


def _only(boxes: list[Box], kind: bytes) -> tuple[int, int]:
    """Return begin and end of the only box of a kind."""
    found = [(begin, end) for name, begin, end in boxes if name == kind]
    if len(found) != 1:
        raise UnsupportedIndex(f"{len(found)} boxes of one kind")
    return found[0]


def _track_id(file: BinaryIO, begin: int, end: int) -> int:
    """Return a track header's track_ID, which comes after two times of 4 or 8 bytes, by the version."""
    head = _read_at(file, begin, min(24, end - begin)).ljust(24, b"\0")
    return int.from_bytes(head[20:24] if head[0] else head[12:16], "big")


def _read_at(file: BinaryIO, begin: int, count: int) -> bytes:
    file.seek(begin)
    return file.read(count)
