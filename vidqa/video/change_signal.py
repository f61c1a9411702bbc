"""The change signal of a video: how much of the picture changes, when, and where scenes are cut. Plain numbers."""

import bisect
import math
from array import array
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidqa.types import VideoInfo

_CUT_SHARE = 0.3  # of the blocks, that a cut changes at least
# Motion goes on, a cut does not: it changes so many times what the frames next to it do, and the median further around.
_CUT_NEAR, _CUT_NEAR_TIMES, _CUT_AROUND, _CUT_TIMES = 2, 1.5, 5, 1.75
_SCENE_SECONDS = 0.1  # a flash is no scene
UNSEEN_WEIGHT = 0.3  # per frame between two scanned pictures that differ: change may have gone on all the time
_BARS = "▁▂▃▄▅▆▇█"
_LOST = 0.02  # the share of frames that may not be decoded in a scan that counts as complete


@dataclass(frozen=True, slots=True)
class ChangeSignal:
    """How much a video changes, from a scan of its pictures in a grid of at most 32 by 32 blocks.

    `seconds` are when a player that counts from 0 shows each scanned picture, ascending; `change` is the share (0 to 1)
    of the picture's blocks that changed since the scanned picture before, 0 for the first one; noise and re-encoding
    do not count. `cuts` are the times of the first pictures of new scenes. `complete` is whether every frame was
    scanned; otherwise keyframes were, and all frames of some groups between them.
    """

    seconds: tuple[float, ...]
    change: tuple[float, ...]
    cuts: tuple[float, ...] = ()
    complete: bool = True


Scan = Generator[tuple[int, int], None, ChangeSignal]  # yields (frames done, frames in all)


def make_signal(info: VideoInfo, indices: Sequence[int], change: Sequence[float]) -> ChangeSignal:
    """Return the signal of scanned frames, by ascending index."""
    seconds = tuple(round(info.shown_seconds(index), 6) for index in indices)
    shares = tuple(round(share, 4) for share in change)
    if not indices:
        return ChangeSignal((), (), (), complete=False)
    complete = len(indices) >= info.frame_count * (1 - _LOST) and info.frame_count - 1 - indices[-1] <= 1
    return ChangeSignal(seconds, shares, find_cuts(indices, seconds, shares), complete)


def signal_of(header: Mapping[str, Any], payload: bytes | bytearray) -> ChangeSignal:
    """Return a signal from its `lengths`, whether it is `complete`, and its numbers as doubles one after the other."""
    numbers = array("d", bytes(payload))
    first, second = header["lengths"][0], sum(header["lengths"][:2])
    return ChangeSignal(
        tuple(numbers[:first]), tuple(numbers[first:second]), tuple(numbers[second:]), header["complete"]
    )


def within(signal: ChangeSignal, start_seconds: float, end_seconds: float) -> ChangeSignal:
    """Return the part of a signal in a range of time, with times that count from its start."""
    low = bisect.bisect_left(signal.seconds, start_seconds)
    high = bisect.bisect_right(signal.seconds, end_seconds)
    cuts = [seconds - start_seconds for seconds in signal.cuts if start_seconds <= seconds <= end_seconds]
    seconds = tuple(one - start_seconds for one in signal.seconds[low:high])
    return ChangeSignal(seconds, signal.change[low:high], tuple(cuts), signal.complete)


def binned(signal: ChangeSignal, duration_seconds: float, count: int) -> list[float]:
    """Return the largest change (0 to 1) in each of `count` equal parts of a video; for a picture, by square roots."""
    bins = [0.0] * count
    for seconds, share in zip(signal.seconds, signal.change, strict=True):
        place = min(int(seconds / duration_seconds * count), count - 1) if duration_seconds else 0
        bins[place] = max(bins[place], share)
    return [math.sqrt(share) for share in bins]


def sparkline(signal: ChangeSignal, duration_seconds: float, count: int = 60) -> str:
    """Return the signal as `count` characters, from `▁` for no change to `█` for the whole picture."""
    return "".join(_BARS[round(height * (len(_BARS) - 1))] for height in binned(signal, duration_seconds, count))


def change_levels(signal: ChangeSignal, duration_seconds: float, count: int) -> list[str]:
    """Return a bar for each of `count` equal parts of a video, empty for parts without change."""
    heights = binned(signal, duration_seconds, count)
    return [_BARS[round(height * (len(_BARS) - 1))] if height else "" for height in heights]


def find_cuts(indices: Sequence[int], seconds: Sequence[float], change: Sequence[float]) -> tuple[float, ...]:
    """Return the times at which most of the picture changes at once, and much less of it right before and after.

    `indices` are those of the scanned frames: what changed since an earlier one than the last tells nothing.
    """
    cuts: list[float] = []
    for index, share in enumerate(change):
        if (
            share < _CUT_SHARE
            or indices[index] - indices[index - 1] != 1
            or (cuts and seconds[index] - cuts[-1] < _SCENE_SECONDS)
        ):
            continue
        near, around = (
            [*change[max(index - reach, 0) : index], *change[index + 1 : index + 1 + reach]]
            for reach in (_CUT_NEAR, _CUT_AROUND)
        )
        if around and share >= max(_CUT_NEAR_TIMES * max(near), _CUT_TIMES * sorted(around)[len(around) // 2]):
            cuts.append(seconds[index])
    return tuple(cuts)
