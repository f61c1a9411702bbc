"""Which temporal slices of a densely encoded video are read for a question. Plain numbers; slices are indices."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import groupby, pairwise

EVEN_SHARE = 4  # one in so many of the slices that are read lies evenly in the video
_HIGH_SHARE = 0.5  # of the way from the median to the highest score: from there on a slice belongs to a moment
_BESIDE_SECONDS = 0.5  # a slice as near as this to a moment is read with it
_MOST_GAP = 1  # lower slices between two high ones of the same moment
MOST_MOMENTS = 5  # that a search names unless it was asked for another number
_LEAST_SECONDS = 2.0  # of the range around a moment that a further question is asked about


def interleaved(slices: int, most: int) -> list[range]:
    """Return the parts in which slices are scored, of at most `most` slices: each part spans the whole video.

    In a part that is spread over the video, an event competes with everything else that happens, and the slices of one
    long event are in different parts.
    """
    parts = -(-slices // most)
    return [range(first, slices, parts) for first in range(parts)]


def even_slices(slices: int, count: int) -> tuple[int, ...]:
    """Return so many slices at even distances; the first and the last are among them."""
    if count >= slices:
        return tuple(range(slices))
    if count == 1:
        return (0,)
    return tuple(round(place * (slices - 1) / (count - 1)) for place in range(count))


def select_slices(scores: Sequence[float], seconds: Sequence[float], count: int) -> tuple[int, ...]:
    """Return `count` slices, ascending: a quarter of them even, the rest where the scores are high.

    Moments of high slices share them in proportion to their highest scores (by D'Hondt's method), so that two moments
    which scores do not tell apart are both read. Then come low slices shortly beside each moment, the nearest first:
    they show what was before and what followed. `seconds` are the slices' mean times. Of equal scores the earlier
    slices are taken.
    """
    chosen = dict.fromkeys(even_slices(len(scores), max(count // EVEN_SHARE, 1)))

    def by_score(places: Iterable[int]) -> list[int]:
        return sorted(places, key=lambda place: (-scores[place], place))

    moments = sorted(map(by_score, _high_runs(scores)), key=lambda moment: (-scores[moment[0]], moment[0]))
    weights = [scores[moment[0]] for moment in moments]
    in_turn = (*_shared(moments, weights), *_shared(_beside(moments, seconds), weights))
    for place in (*in_turn, *by_score(range(len(scores)))):
        if len(chosen) == min(count, len(scores)):
            break
        chosen[place] = None
    return tuple(sorted(chosen))


def _beside(moments: Sequence[Sequence[int]], seconds: Sequence[float]) -> Iterator[list[int]]:
    """Yield for each moment the low slices in it and shortly beside it, the nearest first; none is in two lists."""
    taken = {place for moment in moments for place in moment}
    for moment in moments:
        begin, end = seconds[min(moment)], seconds[max(moment)]
        near = range(bisect_left(seconds, begin - _BESIDE_SECONDS), bisect_right(seconds, end + _BESIDE_SECONDS))
        distance = {place: max(begin - seconds[place], seconds[place] - end) for place in near if place not in taken}
        taken.update(distance)
        yield sorted(distance, key=lambda place: (distance[place], -place))


def _shared(moments: Iterable[Sequence[int]], weights: Sequence[float]) -> Iterator[int]:
    """Yield the moments' slices, each time of the moment with the highest quotient of weight and next number."""
    queue = [(-weights[order], order, 1, moment) for order, moment in enumerate(moments) if moment]
    heapify(queue)
    while queue:
        _, order, number, moment = heappop(queue)
        yield moment[number - 1]
        if number < len(moment):
            heappush(queue, (-weights[order] / (number + 1), order, number + 1, moment))


@dataclass(frozen=True, slots=True)
class Moment:
    """A part of a video that a question points to, in seconds; `score` is its highest slice's."""

    start_seconds: float
    end_seconds: float
    score: float


def range_around(
    moment: Moment, start_seconds: float | None = None, end_seconds: float | None = None
) -> tuple[float, float]:
    """Return the range in seconds of a question about a moment: a very short one gets some time around it.

    It stays in the range that was searched, where `start_seconds` or `end_seconds` limits that.
    """
    short = max(_LEAST_SECONDS - (moment.end_seconds - moment.start_seconds), 0.0) / 2
    start, end = max(moment.start_seconds - short, start_seconds or 0.0), moment.end_seconds + short
    return start, end if end_seconds is None else min(end, end_seconds)


def find_moments(
    scores: Sequence[float], seconds: Sequence[float], most: int, last_seconds: float
) -> tuple[Moment, ...]:
    """Return the moments with the highest scores, the best first: neighbouring high slices make one.

    `seconds` are the slices' mean times, which need not be even; a moment begins and ends half way to the slices
    beside it, and not after the video's last frame, at `last_seconds`. A slice without others lasts from its first to
    its last frame. Slices are high from half way between the median and the highest score on.
    """
    gaps = [after - before for before, after in pairwise(seconds)] or [2 * (last_seconds - seconds[0])]
    bounds = [max(seconds[0] - gaps[0] / 2, 0.0)]
    bounds += [one + gap / 2 for one, gap in zip(seconds, (*gaps, gaps[-1])[: len(seconds)], strict=True)]
    moments = [
        Moment(bounds[run[0]], min(bounds[run[-1] + 1], last_seconds), max(scores[run[0] : run[-1] + 1]))
        for run in _high_runs(scores)
    ]
    return tuple(sorted(moments, key=lambda moment: (-moment.score, moment.start_seconds))[:most])


def _high_runs(scores: Sequence[float]) -> list[list[int]]:
    """Return the runs of high slices, which are at most `_MOST_GAP` lower ones apart."""
    median, highest = sorted(scores)[len(scores) // 2], max(scores)
    least = median + _HIGH_SHARE * (highest - median)
    places = [place for place, score in enumerate(scores) if score >= least]
    starts = [0]
    for before, place in pairwise(places):
        starts.append(starts[-1] + (place - before > _MOST_GAP + 1))
    pairs = groupby(zip(starts, places, strict=False), key=lambda pair: pair[0])
    return [[place for _, place in run] for _, run in pairs]
