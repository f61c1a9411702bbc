"""The block table of a Matroska or WebM file, read from the blocks' headers: a dozen bytes of each, never a picture.

Knows EBML (RFC 8794) and Matroska's clusters and blocks (RFC 9559). Refuses lacing, unknown sizes, damage, more than
one picture track and files without an index to seek by: whatever FFmpeg treats specially.
"""

import os
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

from vidqa.video.packet_index import PacketIndex, UnsupportedIndex

_EBML, _SEGMENT, _TRACKS, _CLUSTER, _CUES = 0x1A45DFA3, 0x18538067, 0x1654AE6B, 0x1F43B675, 0x1C53BB6B
_BESIDE = {0x114D9B74, 0x1549A966, 0x1254C367, 0x1941A469, 0x1043A770, 0xEC, 0xBF}  # SeekHead ... Void, CRC-32
_TIME, _SIMPLE_BLOCK, _GROUP = 0xE7, 0xA3, 0xA0
_IN_CLUSTER = {0xA7, 0xAB, 0xEC, 0xBF}  # Position, PrevSize, Void, CRC-32
_BLOCK, _DURATION, _REFERENCE = 0xA1, 0x9B, 0xFB
_TRACK, _NUMBER, _TYPE, _CODEC = 0xAE, 0xD7, 0x83, 0x86
_TRANSFORMED = {0x23314F, 0x56AA, 0x6D80}  # TrackTimestampScale, CodecDelay, ContentEncodings
_CODECS = {b"V_MPEG4/ISO/AVC", b"V_MPEGH/ISO/HEVC", b"V_AV1", b"V_VP8", b"V_VP9"}
_PICTURES, _SOUND_AND_TEXT = b"\x01", (b"\x02", b"\x11")
_KEY, _LACED = 0x80, 0x06
_WINDOW_BYTES = 4096  # read at once: many small blocks, or the head of one large block
_HEAD_BYTES = 16
_LEAST_BLOCK_BYTES = 5  # track, time, flags and something to show


def _head_reader(first: int) -> tuple[Callable[..., tuple[int, int, int, int]], int, int] | None:
    """For the first byte of a SimpleBlock's size: what reads (size, track, time, flags), its mask, and its length."""
    length = 9 - first.bit_length()
    form = {1: ">xBBhB", 2: ">xHBhB", 3: ">IBhB", 4: ">xIBhB", 7: ">QBhB", 8: ">xQBhB"}.get(length)
    return None if form is None else (Struct(form).unpack_from, (1 << 7 * length) - 1, 1 + length)


_HEAD_READERS = [_head_reader(first) for first in range(256)]
_BLOCK_HEAD = Struct(">BhB")


def matroska_table(path: str, stream: Any) -> PacketIndex:
    """The stored packets; raises Unusual where FFmpeg may see other ones."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        walk = _Walk(file.fileno())
        elements = list(walk.children(0, size))
        if [kind for kind, _, _ in elements] != [_EBML, _SEGMENT]:
            raise UnsupportedIndex("not one header and one segment")
        walk.segment(*elements[1][1:])
    if not walk.keys or min(walk.pts) < 0:
        raise UnsupportedIndex("no keyframe, or times before zero")
    return PacketIndex(walk.pts, [], walk.keys, frozenset(), walk.end)


def _owner(track: dict[int, bytes]) -> int:
    """A track's number as its blocks begin with it."""
    number = int.from_bytes(track.get(_NUMBER, b""), "big")
    if not 1 <= number <= 126:
        raise UnsupportedIndex("a track number of more than one byte")
    return 0x80 | number


class _Walk:
    """One pass over an open file; collects the blocks of its only picture track."""

    def __init__(self, descriptor: int) -> None:
        self.pts: list[int] = []
        self.keys: list[int] = []
        self.end = 0
        self._descriptor = descriptor
        self._window, self._base, self._last = b"", 0, -1
        self._track = 0  # as blocks write a number of one byte
        self._others: frozenset[int] = frozenset()

    def segment(self, begin: int, end: int) -> None:
        """Read everything; the tracks come before the clusters."""
        seen = set()
        for kind, start, stop in self.children(begin, end):
            seen.add(kind)
            if kind == _TRACKS:
                self._tracks(start, stop)
            elif kind == _CLUSTER and self._track:
                self._cluster(start, stop)
            elif kind != _CUES and kind not in _BESIDE:
                raise UnsupportedIndex("something else between the clusters")
        if _CUES not in seen:
            raise UnsupportedIndex("no index to seek by")

    def children(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(id, begin and end of content) of elements side by side; raises Unusual where they do not fill a range."""
        while begin < end:
            kind, start, stop = self._element(begin)
            if stop > end:
                raise UnsupportedIndex("an element is longer than what contains it")
            yield kind, start, stop
            begin = stop

    def _element(self, at: int) -> tuple[int, int, int]:
        place = self._view(at)
        head = self._window[place : place + _HEAD_BYTES]
        name = 9 - head[0].bit_length()
        length = 9 - head[name].bit_length() if name <= 4 else 9
        if length > 8:
            raise UnsupportedIndex("no element")
        mask = (1 << 7 * length) - 1
        size = int.from_bytes(head[name : name + length], "big") & mask
        if size == mask:
            raise UnsupportedIndex("an unknown size")
        start = at + name + length
        return int.from_bytes(head[:name], "big"), start, start + size

    def _view(self, at: int) -> int:
        """Where a position of the file lies in the window, which is moved unless a whole head is in it."""
        place = at - self._base
        if not 0 <= place <= self._last:
            data = os.pread(self._descriptor, _WINDOW_BYTES, at)
            self._window, self._base, self._last = data.ljust(_HEAD_BYTES, b"\0"), at, len(data) - _HEAD_BYTES
            place = 0
        return place

    def _bytes(self, begin: int, end: int) -> bytes:
        return os.pread(self._descriptor, min(end - begin, _WINDOW_BYTES), begin)

    def _tracks(self, begin: int, end: int) -> None:
        """Find the only picture track; raises Unusual if its times or blocks are transformed."""
        entries = [
            {kind: self._bytes(*content) for kind, *content in self.children(start, stop)}
            for entry, start, stop in self.children(begin, end)
            if entry == _TRACK
        ]
        pictures = [entry for entry in entries if entry.get(_TYPE) == _PICTURES]
        if len(pictures) != 1 or pictures[0].get(_CODEC, b"").rstrip(b"\0") not in _CODECS:
            raise UnsupportedIndex("not one picture track of a known codec")
        if _TRANSFORMED & pictures[0].keys():
            raise UnsupportedIndex("a track with transformed times or blocks")
        self._track = _owner(pictures[0])
        self._others = frozenset(_owner(entry) for entry in entries if entry.get(_TYPE) in _SOUND_AND_TEXT)
        if self._track in self._others:
            raise UnsupportedIndex("two tracks of one number")

    def _cluster(self, at: int, end: int) -> None:
        """All blocks of a cluster. This loop runs for every packet of the file, sound included."""
        clock, track, others, keep = -(2**15) - 1, self._track, self._others, self.pts.append
        while at < end:
            place = at - self._base
            if not 0 <= place <= self._last:
                place = self._view(at)
            window = self._window
            reader = _HEAD_READERS[window[place + 1]] if window[place] == _SIMPLE_BLOCK else None
            if reader is None:
                clock, at = self._other(at, clock)
                continue
            unpack_from, mask, header = reader
            size, owner, shift, flags = unpack_from(window, place)
            size &= mask
            if owner == track:
                if flags & _LACED or size < _LEAST_BLOCK_BYTES:
                    raise UnsupportedIndex("laced or empty blocks")
                if flags & _KEY:
                    self.keys.append(len(self.pts))
                keep(clock + shift)
            elif owner not in others:
                self._check_owner(owner)
            if size == mask:
                raise UnsupportedIndex("an unknown size")
            at += header + size
        if at != end:
            raise UnsupportedIndex("blocks do not fill their cluster")

    def _check_owner(self, owner: int) -> None:
        """FFmpeg skips to the next cluster after a block of a track that it does not know."""
        if owner not in self._others:
            raise UnsupportedIndex("a block without a track")

    def _other(self, at: int, clock: int) -> tuple[int, int]:
        """The cluster's clock and the next position after anything but a plain SimpleBlock."""
        kind, start, stop = self._element(at)
        if kind == _TIME and stop - start <= 8:
            return int.from_bytes(self._bytes(start, stop), "big"), stop
        if kind == _GROUP:
            self._group(clock, start, stop)
        elif kind not in _IN_CLUSTER:
            raise UnsupportedIndex("something else in a cluster")
        return clock, stop

    def _group(self, clock: int, begin: int, end: int) -> None:
        """A block with its duration, or with what it refers to: then it is no keyframe."""
        parts = {kind: content for kind, *content in self.children(begin, end)}
        if _BLOCK not in parts:
            raise UnsupportedIndex("a group without a block")
        start, stop = parts[_BLOCK]
        place = self._view(start)  # first: it moves the window
        owner, shift, flags = _BLOCK_HEAD.unpack_from(self._window, place)
        if owner != self._track:
            return self._check_owner(owner)
        if flags & _LACED or stop - start < _LEAST_BLOCK_BYTES:
            raise UnsupportedIndex("laced or empty blocks")
        if _REFERENCE not in parts:
            self.keys.append(len(self.pts))
        self.pts.append(clock + shift)
        if _DURATION in parts:
            self.end = max(self.end, clock + shift + int.from_bytes(self._bytes(*parts[_DURATION]), "big"))
