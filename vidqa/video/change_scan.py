"""The scan of an opened video for change: every frame where time allows.

Otherwise keyframes, and the groups of pictures that are most likely to change: those with unusually large packets, of
which the container's index has the sizes, and those between keyframes that differ. Memory does not grow with the size
of pictures, and by some 100 bytes with each frame.
"""

import bisect
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain
from math import sqrt
from operator import itemgetter
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from vidqa.errors import PictureTooLarge
from vidqa.video.block_changes import BlockChanges, grid_size
from vidqa.video.change_signal import UNSEEN_WEIGHT, ChangeSignal, Scan, make_signal
from vidqa.video.container import UNREADABLE, discard_other_streams, open_container, size_checked
from vidqa.video.packet_sizes import alike, mean_sizes, size_peaks
from vidqa.video.probe import Opened
from vidqa.video.size_limits import MAX_PIXELS

_MOST_GROUPS = 4096  # of which the blocks of a picture are kept, 1.7 kB each
_KEYFRAMES_SHARE = 0.6  # of the time; the rest is for groups of pictures
_SEEKABLE = ("mov,", "matroska,")  # formats that find a keyframe by its time without reading
_FEWEST_GROUPS = 3  # with fewer there is nothing to choose among
_CHECKED_SECONDS = 0.3  # after which the speed of decoding is known
_SLACK = 1.2  # the first pictures take longer: threads start
_CHECKED_PICTURES = 16  # between two looks at the clock
_WIDE = 640  # pixels that lowres, with which some decoders halve their pictures, leaves at least
_OPTIONS = {"max_pixels": str(MAX_PIXELS), "skip_loop_filter": "all"}
_PEAK_SHARE = 0.1  # a packet of 10 usual deviations above the median counts as much as a whole picture's change


@dataclass(slots=True)
class _Group:
    """Frames `first` to `last` (not included) from a keyframe on, and what was scanned of them.

    `start` are the block means of its first picture, `end` those after its last one, if it was scanned; `shares` has
    (index, change) of its scanned frames. `size` is its packets' mean in bytes, `peak` their largest rise.
    """

    first: int
    last: int
    pts: int
    dts: int
    peak: float = 0.0
    size: float = 0.0
    start: Any = None
    end: Any = None
    shares: list[tuple[int, float]] = field(default_factory=list)


class _OutOfTime(Exception):
    """The time of a scan is over. Does not leave the module."""


def scan_video(opened: Opened, limit_seconds: float) -> Scan:
    """Scan an opened video for about `limit_seconds` at most, and move its container.

    Damage ends the scan; the signal ends there too.
    """
    with closing(_Scanner(opened, limit_seconds)) as scanner:
        with suppress(_OutOfTime, PictureTooLarge, *UNREADABLE):
            yield from scanner.run()
        return scanner.signal()


class _Scanner:
    """One scan: a decoder of its own, the groups of pictures, and what was found in them."""

    def __init__(self, opened: Opened, limit_seconds: float) -> None:
        self._opened, self._began, self._limit = opened, time.monotonic(), limit_seconds
        self._container = open_container(opened.container.name)  # seeking in the other one does not empty its decoder
        stream = next(one for one in self._container.streams.video if one.index == opened.stream.index)
        discard_other_streams(self._container, stream)
        stream.thread_type = "AUTO"
        self._stream, self._context, self._count = stream, stream.codec_context, len(opened.pts)
        self._context.thread_count = opened.stream.codec_context.thread_count
        width, height = opened.info.coded_width, opened.info.coded_height
        lowres = min(max((max(width, height) // _WIDE).bit_length() - 1, 0), 3)
        self._context.options = _OPTIONS | {"lowres": str(lowres)}
        self._grid, self._reformatter, self._changes = grid_size(width, height), VideoReformatter(), BlockChanges()
        seekable = opened.container.format.name.startswith(_SEEKABLE) and not (opened.linear or opened.joined)
        self._groups = _groups_of(opened) if seekable else []
        if len(self._groups) < _FEWEST_GROUPS:
            self._groups = [_Group(0, self._count, opened.pts[0], opened.pts[0])]
        self._pictures = 0  # decoded so far

    def close(self) -> None:
        """Close the container."""
        self._container.close()

    def signal(self) -> ChangeSignal:
        """Return the signal of everything that was scanned."""
        found, before, unseen = dict[int, float](), None, list[float]()
        for group, guess in zip(self._groups, self._unseen_shares(), strict=True):
            if group.start is not None:
                if not group.shares or group.shares[0][0] != group.first:
                    differs = 0.0 if before is None else self._changes.between(group.start, before)
                    found[group.first] = max([differs, *unseen])
                found.update(group.shares)
                before, unseen = (group.start if group.end is None else group.end), []
            if group.end is None:
                unseen = [*unseen[-1:], guess]
        indices = sorted(found)
        return make_signal(self._opened.info, indices, [found[index] for index in indices])

    def _unseen_shares(self) -> list[float]:
        """Return for each group the change that its unscanned frames are likely to have; 0 where they were scanned.

        It is that of scanned groups with packets of similar size: equal keyframes do not mean that nothing moved.
        """
        scanned = [group for group in self._groups if group.end is not None and group.shares]
        missing = [number for number, group in enumerate(self._groups) if group.end is None]
        guesses = [0.0] * len(self._groups)
        if scanned and missing:
            means = [sum(map(sqrt, map(itemgetter(1), group.shares))) / len(group.shares) for group in scanned]
            sizes = [group.size for group in scanned]
            for number, mean in zip(
                missing, alike(means, sizes, [self._groups[number].size for number in missing]), strict=True
            ):
                guesses[number] = min((mean / UNSEEN_WEIGHT) ** 2, 1.0)
        return guesses

    def run(self) -> Generator[tuple[int, int], None, None]:
        """Scan; yields the frames done and in all, never fewer than before.

        Where groups of pictures are left out, the first is the share of the time that has passed.
        """
        yield 0, self._count
        if (yield from self._scan_in_order()):
            return
        yield from self._scan_keyframes()
        yield from self._scan_likely_groups()

    def _scan_in_order(self) -> Generator[tuple[int, int], None, bool]:
        """Scan every frame; return False if that takes too long and there are groups to choose among.

        Without groups, keyframes alone are decoded from there on.
        """
        number = 0
        for index, means in self._in_order():
            while index >= self._groups[number].last and number + 1 < len(self._groups):
                self._groups[number].end = self._changes.reference
                number += 1
            group = self._groups[number]
            group.start = means if group.start is None else group.start
            group.shares.append((index, self._changes.add(means)))
            if self._pictures % _CHECKED_PICTURES == 0:
                yield index, self._count
                if self._is_too_slow(index):
                    if len(self._groups) > 1:
                        group.shares = group.shares[:1]
                        return False
                    if not self._opened.linear:  # frames count by their order there
                        self._context.skip_frame = "NONKEY"
                self._check_time()
        self._groups[number].end = self._changes.reference
        return True

    def _is_too_slow(self, index: int) -> bool:
        spent = time.monotonic() - self._began
        return spent > _CHECKED_SECONDS and spent * self._count > _SLACK * self._limit * (index + 1)

    def _time_progress(self) -> tuple[int, int]:
        """Return the share of the time that has passed, in frames, and all frames."""
        spent = min((time.monotonic() - self._began) / self._limit, 1.0)
        return round(spent * self._count), self._count

    def _check_time(self, share: float = 1.0) -> None:
        if time.monotonic() - self._began > self._limit * share:
            raise _OutOfTime

    def _in_order(self) -> Iterator[tuple[int, "np.ndarray"]]:
        """Yield index and block means of the pictures of a decode from the start."""
        packets: Iterable[Any] = self._container.demux(self._stream)
        if self._opened.joined is not None:
            packets = self._opened.joined.shifted(packets)
        for order, picture in enumerate(self._decoded(packets)):
            if self._opened.linear:
                if order >= self._count:
                    return
                yield order, self._means(picture)
            elif (index := self._index_of(picture)) is not None:
                yield index, self._means(picture)

    def _decoded(self, packets: Iterable[Any]) -> Iterator[Any]:
        pictures = (picture for packet in packets for picture in self._context.decode(packet))
        for picture in size_checked(pictures, self._stream, self._opened.info.path):
            self._pictures += 1
            yield picture

    def _index_of(self, picture: Any) -> int | None:
        """Return the index of a shown picture; None for another."""
        if picture.pts is None:
            return None
        index = bisect.bisect_left(self._opened.pts, picture.pts)
        return index if index < self._count and self._opened.pts[index] == picture.pts else None

    def _means(self, picture: Any) -> "np.ndarray":
        """Return the mean of each block in each plane, (3, rows, columns) uint8, by area-averaging resizing."""
        width, height = self._grid
        small = self._reformatter.reformat(
            picture, width=width, height=height, format="yuv444p", interpolation="AREA", threads=1
        )
        planes = [np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size) for plane in small.planes]
        return np.stack([plane[:, :width] for plane in planes])

    def _scan_keyframes(self) -> Generator[tuple[int, int], None, None]:
        """Decode the first picture of every group, first of a few that lie evenly, then of those between them."""
        self._flush()
        groups = {group.pts: group for group in self._groups}
        with suppress(_OutOfTime):
            for number in evenly_spread(len(self._groups)):
                if self._groups[number].start is not None:
                    continue
                self._take_keyframes(self._decoded(self._key_packet(self._groups[number])), groups)
                yield self._time_progress()
                self._check_time(_KEYFRAMES_SHARE)
        self._take_keyframes(self._decoded([None]), groups)

    def _take_keyframes(self, pictures: Iterable[Any], groups: dict[int, _Group]) -> None:
        for picture in pictures:
            if picture.pts in groups:
                groups[picture.pts].start = self._means(picture)

    def _key_packet(self, group: _Group) -> Iterator[Any]:
        """Yield the packet of a group's keyframe; nothing if the container does not find it."""
        for packet in self._packets_from(group):
            if packet.is_keyframe:
                yield packet
                return

    def _packets_from(self, group: _Group) -> Iterator[Any]:
        """Return the packets from a group's keyframe on."""
        container, stream = self._opened.container, self._opened.stream
        container.seek(group.pts, stream=stream, backward=True)
        packets: Iterator[Any] = container.demux(stream)
        return packets

    def _scan_likely_groups(self) -> Generator[tuple[int, int], None, None]:
        """Scan every frame of the groups that change most, until the time is over."""
        left = [(self._likelihood(number), number) for number in range(len(self._groups)) if self._is_open(number)]
        likely = [number for _, number in sorted(left, reverse=True)]
        spread = [number for number in evenly_spread(len(self._groups)) if self._is_open(number)]
        for number in chain.from_iterable(zip(likely, spread, strict=True)):  # some that tell what is usual
            if not self._is_open(number):
                continue
            self._flush()
            self._scan_group(self._groups[number])
            yield self._time_progress()

    def _is_open(self, number: int) -> bool:
        return self._groups[number].end is None

    def _likelihood(self, number: int) -> float:
        """Return how likely a group changes: by its packets' sizes, and by the keyframes around it."""
        group = self._groups[number]
        after = self._groups[number + 1].start if number + 1 < len(self._groups) else None
        differs = 0.0 if group.start is None or after is None else self._changes.between(group.start, after)
        return max(differs, _PEAK_SHARE * group.peak)

    def _scan_group(self, group: _Group) -> None:
        self._changes.restart()
        found = list[tuple[int, float]]()
        for picture in self._decoded(self._packets_until_end(group)):
            index = self._index_of(picture)
            if index is None or not group.first <= index < group.last:
                continue
            means = self._means(picture)
            group.start = means if group.start is None else group.start
            found.append((index, self._changes.add(means)))
            if self._pictures % _CHECKED_PICTURES == 0:
                self._check_time()
        group.shares, group.end = found[1:], self._changes.reference

    def _packets_until_end(self, group: _Group) -> Iterator[Any]:
        """Yield a group's packets, then None for the pictures that the decoder still holds."""
        ticks = self._opened.pts
        for packet in self._packets_from(group):
            is_key = packet.is_keyframe and packet.pts is not None
            if is_key and group.last < self._count and packet.pts >= ticks[group.last]:
                break
            if packet.size:
                yield packet
        yield None

    def _flush(self) -> None:
        """Empty the decoder, also after its end."""
        self._context.flush_buffers()


def _groups_of(opened: Opened) -> list[_Group]:
    """Return the groups of pictures of a file, several as one where there are very many."""
    keyframes = opened.keyframes
    step = -(-len(keyframes) // _MOST_GROUPS) or 1
    chosen = keyframes[::step]
    firsts = [bisect.bisect_left(opened.pts, pts) for pts, _ in chosen]
    if firsts:
        firsts[0] = 0
    lasts = [*firsts[1:], len(opened.pts)]
    groups = [_Group(first, last, *key) for first, last, key in zip(firsts, lasts, chosen, strict=True)]
    entries = opened.stream.index_entries
    sizes, flags = [entry.size for entry in entries], [entry.is_keyframe for entry in entries]
    peaks = size_peaks(sizes, flags)
    if len(peaks) == len(keyframes):
        means = mean_sizes(sizes, flags)
        for number, group in enumerate(groups):
            part = slice(number * step, (number + 1) * step)
            group.peak, group.size = max(peaks[part]), max(means[part])
    return [group for group in groups if group.first < group.last]


def evenly_spread(count: int) -> Iterator[int]:
    """Yield 0 to `count` - 1, each once, so that those up to any moment lie about evenly."""
    step = 1 << max(count - 1, 0).bit_length()
    yield from range(0, count, step)
    while step > 1:
        yield from range(step // 2, count, step)
        step //= 2
