"""A forecast of how many visual tokens repeat, from the change signal of a video. Arithmetic only."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from vidqa.planner.activation_memory import LEAST_SHARE
from vidqa.planner.problem import PlanningProblem
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.frame_sampling import sampled_times

# A block that changed changes the features of tokens around it too: the vision tower attends to the whole slice. With 3
# the demo model keeps on average 20.9 % of still recordings' tokens for a forecast of 24.4 %, and 53 % for 98 % where
# the camera moves (24 and 12 clips of scripts/bench_prune.py, frames by change).
_TOKENS_PER_BLOCK = 3.0


def kept_share(changes: Sequence[float]) -> float:
    """Return the share of a video's tokens that are expected to be new.

    `changes` has, for each slice after the first, the share (0 to 1) of the picture that changed since the one before.
    """
    new = (min(1 / LEAST_SHARE + _TOKENS_PER_BLOCK * change, 1.0) for change in changes)
    return (1.0 + sum(new)) / (1 + len(changes))


def changes_of_slices(signal: ChangeSignal, seconds: Sequence[float], frames_per_slice: int) -> list[float]:
    """Return the share of the picture (0 to 1) that changes from each slice of frames at these times to the next.

    It is that of all changes from the first frame of the one to the last frame of the other. What changes twice is
    counted twice: the sum over all pictures is an upper bound. Keyframes alone may miss what comes and goes between
    them; where no picture between the two slices was scanned, all may change.
    """
    summed = [0.0, *accumulate(signal.change)]
    scanned = [bisect_right(signal.seconds, time) for time in seconds]
    firsts, lasts = scanned[::frames_per_slice], scanned[frames_per_slice - 1 :: frames_per_slice]
    if len(lasts) < len(firsts):  # an odd last frame is doubled
        lasts.append(scanned[-1])
    return [
        min(summed[last] - summed[first], 1.0) if last > first else 1.0
        for first, last in zip(firsts, lasts[1:], strict=False)
    ]


def planned_share(problem: PlanningProblem, indices: Callable[[], Sequence[int]]) -> float:
    """Return the share of the visual tokens to plan for; `indices` returns those of the frames.

    That is the user's share. Where only repeats are dropped, it is the forecast of a scan; without one nothing may
    repeat.
    """
    prune, signal = problem.config.prune, problem.signal
    if not isinstance(prune, str):
        return prune
    if prune != "auto" or signal is None:
        return 1.0
    times = sampled_times(problem.video, indices())
    return kept_share(changes_of_slices(signal, times, problem.spec.vision.temporal_patch))


def shares_of_counts(
    problem: PlanningProblem, counts: Sequence[int], indices: Callable[[int], Sequence[int]]
) -> tuple[float, ...]:
    """Return the planned share for each frame count; kept slices never fall with the count, as the search requires.

    `indices` returns the frames of a count.
    """
    slices = [problem.spec.slices(count) for count in counts]
    kept = [
        number * planned_share(problem, partial(indices, count)) for number, count in zip(slices, counts, strict=True)
    ]
    return tuple(min(most / number, 1.0) for most, number in zip(accumulate(kept, max), slices, strict=True))
