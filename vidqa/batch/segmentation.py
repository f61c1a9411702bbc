"""Where a clip is cut into pieces that are captioned one by one: at even distances, or where its scenes change.

Arithmetic on times and on small signatures of pictures; `scene_detection` reads the pictures.
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

SHORTEST_SECONDS = 1.0
MOST_SEGMENTS = 1000  # of a clip: an hour in pieces of 4 s

# A change is the part of a signature that is another one, 0 to 1. It counts from _LEAST_CHANGE on, and where it is
# _STANDS_OUT times the usual one within _AROUND pictures: a van that passes close by changes as much as some cuts do,
# but not at once. Set on real shots at 12 pictures a second: cuts have 2.7 times the usual, motion 2.2 at most.
_LEAST_CHANGE = 0.15
_STANDS_OUT = 2.5
_AROUND = 4

Signature = Sequence[float]


@dataclass(frozen=True, slots=True)
class Changes:
    """`times` of pictures in seconds; for each two neighbours, what changes at all, and what changes for good."""

    times: tuple[float, ...]
    at_all: tuple[float, ...]
    for_good: tuple[float, ...]


def parse_segments(text: str) -> float | Literal["scenes"]:
    """Read `10`, `10s`, `2min` or `0:30` as seconds, or `scenes`; raises UsageError."""
    if text.strip().lower() == "scenes":
        return "scenes"
    try:
        seconds = parse_timestamp(text) if ":" in text else parse_seconds(text)
    except UsageError as error:
        raise UsageError(f"{text!r} tells no segments.", "Write their length, as 10s or 0:30, or scenes.") from error
    if seconds < SHORTEST_SECONDS:
        raise UsageError(f"Segments of {seconds:g} s are too short.", f"Ask for {SHORTEST_SECONDS:g}s or more.")
    return seconds


def cut_evenly(duration_seconds: float, seconds: float) -> list[Span]:
    """Pieces of `seconds`; what is left is a piece of its own from half of that on, else part of the last.

    Raises UsageError where there would be more than MOST_SEGMENTS.
    """
    count = max(1, math.floor(duration_seconds / seconds + 0.5))
    if count > MOST_SEGMENTS:
        raise UsageError(
            f"{format_span(duration_seconds)} have {count} pieces of {seconds:g} s, and {MOST_SEGMENTS} are the most.",
            f"Ask for --segments {math.ceil(duration_seconds / MOST_SEGMENTS)}s or longer ones.",
        )
    return _spans([number * seconds for number in range(1, count)], duration_seconds)


def measure_changes(pictures: Iterable[tuple[float, Signature]]) -> Changes:
    """How pictures change: seconds from the first frame and a signature that sums to 1, in order; holds two at a time.

    For good is what is new against both pictures before, and is still new in the picture after.
    """
    times: list[float] = []
    steps: list[float] = []
    skips = [1.0]  # there is nothing before the first two
    before: Signature | None = None
    last: Signature | None = None
    for seconds, here in pictures:
        times.append(seconds)
        if last is not None:
            steps.append(_difference(last, here))
        if before is not None:
            skips.append(_difference(before, here))
        before, last = last, here
    for_good = (min(three) for three in zip(steps, skips, [*skips[1:], 1.0], strict=False))
    return Changes(tuple(times), tuple(steps), tuple(for_good))


def cut_at_scenes(changes: Changes, duration_seconds: float) -> list[Span]:
    """Pieces between changes of scene, none shorter than SHORTEST_SECONDS, MOST_SEGMENTS at most: the clearest.

    A cut is put midway between the pictures on both sides of it. Hard cuts are found, slow fades are not, and a flash
    of one picture is none: behind it the scene is as before.
    """
    cuts: list[float] = []
    ends = (0.0, duration_seconds)
    found = [place for place in range(len(changes.at_all)) if _stands_out(changes, place)]
    for place in sorted(found, key=lambda place: -changes.for_good[place]):
        cut = (changes.times[place] + changes.times[place + 1]) / 2
        if all(abs(cut - other) >= SHORTEST_SECONDS for other in (*cuts, *ends)):
            cuts.append(cut)
    return _spans(sorted(cuts[: MOST_SEGMENTS - 1]), duration_seconds)


def sample_indices(times_seconds: Sequence[float], per_second: float) -> list[int]:
    """Indices of the first frame in each piece of 1/per_second; all of them where there are fewer."""
    # The times are rounded themselves: what is meant to begin a piece may lie a little before it.
    pieces = [math.floor((seconds - times_seconds[0]) * per_second + 1e-6) for seconds in times_seconds]
    return [index for index, piece in enumerate(pieces) if index == 0 or piece != pieces[index - 1]]


def _spans(cuts: Sequence[float], end: float) -> list[Span]:
    return [Span(start, stop) for start, stop in pairwise([0.0, *cuts, end])]


def _difference(one: Signature, other: Signature) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2


def _stands_out(changes: Changes, place: int) -> bool:
    steps = changes.at_all
    around = [*steps[max(0, place - _AROUND) : place], *steps[place + 1 : place + 1 + _AROUND]]
    usual = median(around) if around else 0.0
    return changes.for_good[place] >= max(_LEAST_CHANGE, _STANDS_OUT * usual)
