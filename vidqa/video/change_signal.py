"""The change signal of a video: how much of the picture changes, when, and where scenes are cut. Plain numbers."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import median_low

from vidqa.types import VideoInfo

_CUT_SHARE = 0.5  # of the blocks, that a cut changes at least
_CUT_TIMES = 3.0  # what it changes more than the frames around it: motion goes on, a cut does not
_CUT_NEIGHBOURS = 5  # frames on each side that are compared
_SCENE_SECONDS = 0.25  # a flash is no scene


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

_LOST = 0.02  # the share of frames that may not be decoded in a scan that counts as complete


def make_signal(info: VideoInfo, indices: Sequence[int], change: Sequence[float]) -> ChangeSignal:
    """Return the signal of scanned frames, by ascending index."""
    seconds = tuple(round(info.shown_seconds(index), 6) for index in indices)
    shares = tuple(round(share, 4) for share in change)
    if not indices:
        return ChangeSignal((), (), (), complete=False)
    complete = len(indices) >= info.frame_count * (1 - _LOST) and info.frame_count - 1 - indices[-1] <= 1
    return ChangeSignal(seconds, shares, find_cuts(seconds, shares), complete)


def find_cuts(seconds: Sequence[float], change: Sequence[float]) -> tuple[float, ...]:
    """Return the times at which most of the picture changes at once, and hardly before and after."""
    cuts: list[float] = []
    for index, share in enumerate(change):
        if share < _CUT_SHARE or (cuts and seconds[index] - cuts[-1] < _SCENE_SECONDS):
            continue
        around = [*change[max(index - _CUT_NEIGHBOURS, 0) : index], *change[index + 1 : index + 1 + _CUT_NEIGHBOURS]]
        if around and share >= _CUT_TIMES * median_low(around):
            cuts.append(seconds[index])
    return tuple(cuts)
