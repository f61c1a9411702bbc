"""The boxes of an MP4 or QuickTime file (ISO 14496-12): where they begin and end, and a few values in them."""

from collections.abc import Iterator
from struct import unpack
from typing import BinaryIO

from vidqa.video.packet_index import UnsupportedIndex

_MOST_BOXES = 10_000  # at one level

Box = tuple[bytes, int, int]  # type, begin and end of what it contains


def boxes_in(file: BinaryIO, begin: int, end: int) -> list[Box]:
    """The boxes side by side in a range of the file; raises UnsupportedIndex where they do not fill it."""
    return list(_boxes(file, begin, end))


def first(file: BinaryIO, begin: int, end: int, kind: bytes | None = None) -> tuple[int, int]:
    """Where the first box of a kind, or of any, begins and ends; raises UnsupportedIndex where there is none."""
    for name, start, stop in _boxes(file, begin, end):
        if kind in (name, None):
            return start, stop
    raise UnsupportedIndex("a box is missing")


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[Box]:
    for _ in range(_MOST_BOXES):
        if begin >= end:
            return
        head = bytes_at(file, begin, min(16, end - begin))
        size, kind = unpack(">I4s", head[:8]) if len(head) >= 8 else (0, b"")
        long = size == 1 and len(head) == 16
        header, size = (16, int.from_bytes(head[8:], "big")) if long else (8, size)
        if size < header or begin + size > end:
            raise UnsupportedIndex("boxes do not add up")
        yield kind, begin + header, begin + size
        begin += size
    raise UnsupportedIndex("endless boxes")


def bytes_at(file: BinaryIO, begin: int, count: int) -> bytes:
    """So many bytes from a place in the file on, fewer where it ends."""
    file.seek(begin)
    return file.read(count)


def only(boxes: list[Box], kind: bytes) -> tuple[int, int]:
    """Where the only box of a kind begins and ends."""
    found = [(begin, end) for name, begin, end in boxes if name == kind]
    if len(found) != 1:
        raise UnsupportedIndex(f"{len(found)} boxes of one kind")
    return found[0]


def track_id(file: BinaryIO, begin: int, end: int) -> int:
    """The number of a track, from its header: the version decides whether two times of 4 or of 8 bytes come first."""
    head = bytes_at(file, begin, min(24, end - begin)).ljust(24, b"\0")
    return int.from_bytes(head[20:24] if head[0] else head[12:16], "big")
