"""Where a clip is split into segments: at equal distances, or where the scene changes. Arithmetic without torch or av.

`scene_detection` computes the frames' signatures.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from vidqa.batch.clip_record import Span
from vidqa.errors import UsageError
from vidqa.utils.units import format_span, parse_seconds, parse_timestamp

MIN_SEGMENT_SECONDS = 1.0
MAX_SEGMENTS = 1000  # of a clip: an hour in segments of 4 s

# A change is the part of a signature that differs, 0 to 1. A cut has at least _MIN_CHANGE, and _MIN_RATIO times the
# median of the _NEIGHBORS changes on each side: a van that passes close by changes as much as some cuts, but not at
# once. Measured on real shots at 12 frames per second: cuts have 2.7 times the median, motion at most 2.2.
_MIN_CHANGE = 0.15
_MIN_RATIO = 2.5
_NEIGHBORS = 4

Signature = Sequence[float]


@dataclass(frozen=True, slots=True)
class FrameChanges:
    """`times` of frames in seconds; for each pair of neighbors the whole change, and the part of it that lasts."""

    times: tuple[float, ...]
    steps: tuple[float, ...]
    lasting: tuple[float, ...]


def parse_segments(text: str) -> float | Literal["scenes"]:
    """Parse `10`, `10s`, `2min` or `0:30` to seconds, or `scenes`; raises UsageError."""
    if text.strip().lower() == "scenes":
        return "scenes"
    try:
        seconds = parse_timestamp(text) if ":" in text else parse_seconds(text)
    except UsageError as error:
        remedy = "Give their length, as 10s or 0:30, or scenes."
        raise UsageError(f"{text!r} is not a length of segments.", remedy) from error
    if seconds < MIN_SEGMENT_SECONDS:
        raise UsageError(f"Segments of {seconds:g} s are too short.", f"Use {MIN_SEGMENT_SECONDS:g}s or more.")
    return seconds


def cut_evenly(duration_seconds: float, seconds: float) -> list[Span]:
    """Return segments of `seconds`; a remainder of less than half of that is added to the last one.

    Raises UsageError for more than MAX_SEGMENTS.
    """
    count = max(1, math.floor(duration_seconds / seconds + 0.5))
    if count > MAX_SEGMENTS:
        raise UsageError(
            f"{format_span(duration_seconds)} have {count} segments of {seconds:g} s; the limit is {MAX_SEGMENTS}.",
            f"Use --segments {math.ceil(duration_seconds / MAX_SEGMENTS)}s or longer ones.",
        )
    return _spans([number * seconds for number in range(1, count)], duration_seconds)


def measure_changes(frames: Iterable[tuple[float, Signature]]) -> FrameChanges:
    """Measure how frames change; takes (seconds from the first frame, signature that sums to 1), holds two at a time.

    A change lasts where it differs from both frames before, and the frame after still differs from the frame before.
    """
    times: list[float] = []
    steps: list[float] = []
    skips = [1.0]  # nothing precedes the first two frames
    second_last: Signature | None = None
    last: Signature | None = None
    for seconds, current in frames:
        times.append(seconds)
        if last is not None:
            steps.append(_difference(last, current))
        if second_last is not None:
            skips.append(_difference(second_last, current))
        second_last, last = last, current
    lasting = map(min, zip(steps, skips, [*skips[1:], 1.0], strict=False))
    return FrameChanges(tuple(times), tuple(steps), tuple(lasting))


def cut_at_scenes(changes: FrameChanges, duration_seconds: float) -> list[Span]:
    """Return the scenes, none shorter than MIN_SEGMENT_SECONDS; of more than MAX_SEGMENTS the clearest cuts stay.

    A cut lies midway between two frames. Hard cuts are found; slow fades and flashes of one frame are not cuts.
    """
    cuts: list[float] = []
    ends = (0.0, duration_seconds)
    found = [place for place in range(len(changes.steps)) if _is_cut(changes, place)]
    for place in sorted(found, key=lambda place: -changes.lasting[place]):
        cut = (changes.times[place] + changes.times[place + 1]) / 2
        if all(abs(cut - other) >= MIN_SEGMENT_SECONDS for other in (*cuts, *ends)):
            cuts.append(cut)
    return _spans(sorted(cuts[: MAX_SEGMENTS - 1]), duration_seconds)


def sample_indices(times_seconds: Sequence[float], per_second: float) -> list[int]:
    """Return the index of the first frame in each interval of 1/per_second; of fewer frames, all."""
    # Times are rounded: a frame that should begin an interval may lie slightly before it.
    intervals = [math.floor((seconds - times_seconds[0]) * per_second + 1e-6) for seconds in times_seconds]
    return [index for index, value in enumerate(intervals) if index == 0 or value != intervals[index - 1]]


def _spans(cuts: Sequence[float], end: float) -> list[Span]:
    return [Span(start, stop) for start, stop in pairwise([0.0, *cuts, end])]


def _difference(one: Signature, other: Signature) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2


def _is_cut(changes: FrameChanges, place: int) -> bool:
    steps = changes.steps
    neighbors = [*steps[max(0, place - _NEIGHBORS) : place], *steps[place + 1 : place + 1 + _NEIGHBORS]]
    usual = median(neighbors) if neighbors else 0.0
    return changes.lasting[place] >= max(_MIN_CHANGE, _MIN_RATIO * usual)
