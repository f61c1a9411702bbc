"""Frames by change: each stands for an equal share of a video's change, with a floor of even coverage. Plain numbers.

Every frame gets a weight of at most 1, the chance to be sampled; the weights sum to the number of frames. A part of
them is even in time, the rest follows the change. A slice of two frames lies on one side of a cut where it can.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from vidqa.types import VideoInfo
from vidqa.utils.frame_choice import SampledPart, Sampling
from vidqa.utils.units import format_timestamp
from vidqa.video.change_signal import UNSEEN_WEIGHT, ChangeSignal
from vidqa.video.frame_sampling import CLOSE_SECONDS, kept_before_scan

_FRAMES_PER_SLICE = 2
_LEAST_EVEN, _MOST_EVEN, _EVEN_FRAMES = 0.25, 0.5, 8  # the even part: 8 frames, but a quarter to a half of them
# The longest gap: 4 times the even distance and an eighth of the span, but of few frames 3 times that distance.
_GAP_DISTANCES, _GAP_SHARE, _FEW_DISTANCES = 4.0, 1 / 8, 3.0
_EVENT_SECONDS = 1.0  # quiet for less than this is within an event
_BEFORE, _AFTER, _BESIDE_WEIGHT = 1, 3, 0.5  # frames beside an event that show what was before and came of it
# A share of blocks that noise may change: twice what 9 of 10 pictures stay below, or a part of the largest change;
# small, so that nothing is lost of a video that moves all the time.
_NOISE_QUANTILE, _NOISE_TIMES, _LARGEST_SHARE, _MOST_NOISE = 0.9, 2.0, 0.05, 0.005
_UNEVEN_SHARE = 0.5  # auto: the change lies in fewer of the intervals between even frames than this
_MOST_PARTS = 12
_LEAST_SHRUNK = 0.5  # of the frames of quiet parts stay where events get a slice each
_ROUNDING_SECONDS = 1e-5
_NOTHING_LEFT = 1e-9


@dataclass(frozen=True, slots=True)
class _FrameTimes:
    """A file's presentation times in seconds, the one that a player shows as 0, and the rate."""

    pts: tuple[float, ...]
    zero: float
    fps: float

    def index_at(self, seconds: float) -> int:
        """Return the index of the first frame at or after a time that counts from 0."""
        return min(bisect.bisect_left(self.pts, seconds + self.zero - _ROUNDING_SECONDS), len(self.pts) - 1)

    def shown(self, index: int) -> float:
        """Return when a player that counts from 0 shows a frame."""
        return self.pts[index] - self.zero


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights of change of a range of frames; `events` are (first, last) of frames that belong together, in it."""

    values: tuple[float, ...]
    events: tuple[tuple[int, int], ...]


def sample_by_change(
    info: VideoInfo, even: tuple[int, ...], signal: ChangeSignal, *, always: bool, close: float = CLOSE_SECONDS
) -> tuple[tuple[int, ...], Sampling]:
    """Return as many indices as the `even` ones between their first and last, ascending, and why they were chosen.

    The even ones are kept where nothing changes, where they are all frames, and, unless `always`, where they are at
    most `close` seconds apart or the change is even too.
    """
    if (kept := kept_before_scan(info, even, None if always else close)) is not None:
        return even, kept
    times = _FrameTimes(info.pts_seconds, info.start_seconds - info.lead_seconds, info.fps)
    return _sampled(times, even, signal, always)


@lru_cache(maxsize=64)  # a session plans again with every key, and a search tries every count
def _sampled(
    frames: _FrameTimes, even: tuple[int, ...], signal: ChangeSignal, always: bool
) -> tuple[tuple[int, ...], Sampling]:
    first, last, count = even[0], even[-1], len(even)
    times = frames.pts[first : last + 1]
    weights = _weights(signal, frames, first, last)
    if not any(weights.values):
        where = "" if last - first + 1 == len(frames.pts) else " in this part"
        still = signal.complete and not _any_change(signal, frames.shown(first), frames.shown(last))
        seen = "nothing changes" if still else "no change was seen"
        return even, Sampling("uniform", seen + where, still=still)
    busy, intervals = busy_intervals(times, weights.values, count - 1), count - 1
    distance = (times[-1] - times[0]) / intervals
    spread = f"the change lies in about {busy:.0f} of the {intervals} intervals of {distance:.1f} s between even frames"
    missed = None if always else _missed_scene(signal, frames, even)
    if missed is not None:
        spread = f"a scene at {format_timestamp(missed)} lies between even frames"
    elif not always and busy >= _UNEVEN_SHARE * intervals:
        return even, Sampling("uniform", spread)
    chances = frame_chances(times, weights.values, count)
    bounds = _boundaries(signal, frames, first, last, weights.events, count)
    places = _widest_gaps_filled(times, _placed(chances, bounds, count))
    indices = tuple(first + place for place in places)
    return indices, Sampling("change", spread, _parts(frames, indices, weights, first))


def _any_change(signal: ChangeSignal, start_seconds: float, end_seconds: float) -> bool:
    """Return whether anything changes after the first frame of a part, be it as little as noise."""
    low, high = bisect.bisect_right(signal.seconds, start_seconds), bisect.bisect_right(signal.seconds, end_seconds)
    return any(signal.change[low:high])


def _missed_scene(signal: ChangeSignal, frames: _FrameTimes, even: Sequence[int]) -> float | None:
    """Return when the first scene between two cuts is shown that has no even frame; None if each has one."""
    starts = [seconds for seconds in signal.cuts if even[0] < frames.index_at(seconds) <= even[-1]]
    for start, end in pairwise(starts):
        if bisect.bisect_left(even, frames.index_at(start)) == bisect.bisect_left(even, frames.index_at(end)):
            return start
    return None


def busy_intervals(times: Sequence[float], weights: Sequence[float], intervals: int) -> float:
    """Return in how many of equal intervals the weight lies: (sum)² / sum of squares, as for effective sample sizes."""
    begin, width = times[0], (times[-1] - times[0]) / intervals or 1.0
    sums = [0.0] * intervals
    for moment, weight in zip(times, weights, strict=True):
        if weight:
            sums[min(int((moment - begin) / width), intervals - 1)] += weight
    squares = sum(value * value for value in sums)
    return sum(sums) ** 2 / squares if squares else float(intervals)


def frame_chances(times: Sequence[float], weights: Sequence[float], count: int) -> list[float]:
    """Return each frame's weight, at most 1, with the sum `count`: an even part, and one in proportion to `weights`."""
    share = min(max(_EVEN_FRAMES / count, _LEAST_EVEN), _MOST_EVEN)
    ends = [times[0], *((one + other) / 2 for one, other in pairwise(times)), times[-1]]
    span = ends[-1] - ends[0] or 1.0
    lengths = [(end - start) / span for start, end in pairwise(ends)]
    chances = _raised(lengths, [0.0] * len(times), share * count)
    chances = _raised(weights, chances, count)
    return _raised(lengths, chances, count)  # what few changing frames leave over


def _raised(weights: Sequence[float], chances: Sequence[float], total: float) -> list[float]:
    """Return chances raised in proportion to `weights`, each to 1 at most, until they sum to `total` or cannot."""
    raised, left = list(chances), total - math.fsum(chances)
    if left <= _NOTHING_LEFT:
        return raised
    rooms = [1 - chance for chance in raised]
    share = left / (math.fsum(weight for weight, room in zip(weights, rooms, strict=True) if room > 0) or 1.0)
    if all(share * weight <= room for weight, room in zip(weights, rooms, strict=True) if room > 0):
        return [
            chance + share * weight if room > 0 else chance
            for chance, weight, room in zip(raised, weights, rooms, strict=True)
        ]
    open_ones = sorted(
        (place for place, weight in enumerate(weights) if weight > 0 and raised[place] < 1),
        key=lambda place: (1 - raised[place]) / weights[place],
    )
    open_weight = math.fsum(weights[place] for place in open_ones)
    for place in open_ones:  # those that reach 1 first
        room = 1 - raised[place]
        grown = min(room, max(left, 0.0) * weights[place] / open_weight) if open_weight > 0 else 0.0
        raised[place] += grown
        left, open_weight = left - grown, open_weight - weights[place]
    return raised


@lru_cache(maxsize=4)  # the same for every count
def _weights(signal: ChangeSignal, frames: _FrameTimes, first: int, last: int) -> _Weights:
    """Return the weights of change of a range of frames: square roots of changed shares, whole events together."""
    values = [0.0] * (last - first + 1)
    floor = noise_share(signal.change)
    before = first
    for seconds, share in zip(signal.seconds, signal.change, strict=True):
        index = frames.index_at(seconds)
        if index < first:
            continue
        if before > last:
            break
        weight = math.sqrt(max(share - floor, 0.0))
        unseen = range(before, min(index, last + 1))
        if weight and len(unseen) > _AFTER:
            values[before - first : unseen.stop - first] = [UNSEEN_WEIGHT * weight] * len(unseen)
        if index <= last:
            values[index - first] = max(values[index - first], weight)
        before = index + 1
    gap = max(round(_EVENT_SECONDS * frames.fps), 1)
    events = tuple(_events(values, gap))
    for start, end in events:
        _fill(values, start, end)
    return _Weights(tuple(values), events)


def noise_share(change: Sequence[float]) -> float:
    """Return the share of blocks up to which a change counts as noise."""
    if not change:
        return 0.0
    ordered = sorted(change)
    usual = ordered[int(_NOISE_QUANTILE * (len(ordered) - 1))]
    return min(max(_NOISE_TIMES * usual, _LARGEST_SHARE * ordered[-1]), _MOST_NOISE)


def _events(values: Sequence[float], gap: int) -> list[tuple[int, int]]:
    """Return (first, last) of runs of weights above 0, joined where at most `gap` frames lie between them."""
    events: list[tuple[int, int]] = []
    for place, weight in enumerate(values):
        if not weight:
            continue
        if events and place - events[-1][1] <= gap:
            events[-1] = (events[-1][0], place)
        else:
            events.append((place, place))
    return events


def _fill(values: list[float], first: int, last: int) -> None:
    """Give the quiet frames of an event the weight of the changed one before them, and those beside it a part."""
    for place in range(max(first - _BEFORE, 0), first):
        values[place] = max(values[place], _BESIDE_WEIGHT * values[first])
    latest = values[first]
    for place in range(first, last + 1):
        latest = values[place] or latest
        values[place] = latest
    for place in range(last + 1, min(last + 1 + _AFTER, len(values))):
        values[place] = max(values[place], _BESIDE_WEIGHT * latest)


def _boundaries(
    signal: ChangeSignal, frames: _FrameTimes, first: int, last: int, events: Sequence[tuple[int, int]], count: int
) -> dict[int, float]:
    """Return the places that begin a part whose frames are not to share a slice with those before it.

    With each comes the chance from which on the part has a slice: 0 for scenes, 1 for events, none for the rest. Events
    begin parts where there are slices enough.
    """
    slices = count // _FRAMES_PER_SLICE
    starts: dict[int, float] = {}
    if len(events) <= slices:
        starts = {place: 1.0 if place == start else math.inf for start, end in events for place in (end, start)}
    least = 0.0 if len(signal.cuts) < slices else math.inf
    starts |= {frames.index_at(seconds) - first: least for seconds in signal.cuts}
    return {place: starts[place] for place in sorted(starts) if 0 < place <= last - first}


def _placed(chances: Sequence[float], boundaries: Mapping[int, float], count: int) -> list[int]:
    """Return `count` ascending places, an even number in each part between boundaries, by equal sums of chances.

    A part has a slice from the sum of chances on that its boundary says.
    """
    sums = [0.0, *accumulate(chances)]
    edges = [0, *boundaries, len(chances)]
    masses = [sums[end] - sums[start] for start, end in pairwise(edges)]
    least = [boundaries.get(start, math.inf) for start in edges[:-1]]
    lifted = {place for place, mass in enumerate(masses) if least[place] <= mass < _FRAMES_PER_SLICE}
    others = math.fsum(mass for place, mass in enumerate(masses) if place not in lifted)
    shrunk = (count - _FRAMES_PER_SLICE * len(lifted)) / others if others else 0.0
    if shrunk >= _LEAST_SHRUNK:
        masses = [_FRAMES_PER_SLICE if place in lifted else mass * shrunk for place, mass in enumerate(masses)]
    places, due = list[int](), 0.0
    for (start, end), mass in zip(pairwise(edges), masses, strict=True):
        due += mass
        whole = (end - start) // _FRAMES_PER_SLICE * _FRAMES_PER_SLICE
        wanted = round((due - len(places)) / _FRAMES_PER_SLICE) * _FRAMES_PER_SLICE
        places += _quantiles(sums, start, end, min(max(wanted, 0), whole, count - len(places)))
    return places if len(places) == count else _quantiles(sums, 0, len(chances), count)


def _quantiles(sums: Sequence[float], start: int, end: int, count: int) -> list[int]:
    """Return `count` ascending places from `start` to `end` that divide the sum of chances there equally."""
    if not count:
        return []
    share = (sums[end] - sums[start]) / count
    found = [
        bisect.bisect_left(sums, sums[start] + share * (number + 0.5), start + 1, end) - 1 for number in range(count)
    ]
    for number in range(1, count):
        found[number] = max(found[number], found[number - 1] + 1)
    return [min(place, end - count + number) for number, place in enumerate(found)]


def longest_gap(span: float, count: int) -> float:
    """Return the longest time that may pass between two of `count` frames of a span."""
    even = span / (count - 1)
    return min(_GAP_DISTANCES * even, max(_GAP_SHARE * span, _FEW_DISTANCES * even))


def _widest_gaps_filled(times: Sequence[float], places: Sequence[int]) -> list[int]:
    """Return places without too long a gap: slices from where they are closest are moved into such gaps."""
    found, limit = list(places), longest_gap(times[-1] - times[0], len(places))
    for _ in range(len(places) // _FRAMES_PER_SLICE):
        edges = [0, *found, len(times) - 1]
        widest = max(range(len(edges) - 1), key=lambda at: times[edges[at + 1]] - times[edges[at]])
        low, high = edges[widest], edges[widest + 1]
        if times[high] - times[low] <= limit or high - low <= _FRAMES_PER_SLICE:
            break
        closest = min(
            range(0, len(found), _FRAMES_PER_SLICE),
            key=lambda at: times[edges[at + 3]] - times[edges[at]],
        )
        if times[edges[closest + 3]] - times[edges[closest]] > limit:
            break
        del found[closest : closest + _FRAMES_PER_SLICE]
        third = (high - low) // 3 or 1
        found = sorted({*found, low + third, low + 2 * third})
        if len(found) < len(places):
            return list(places)
    return found


def _parts(frames: _FrameTimes, indices: Sequence[int], weights: _Weights, first: int) -> tuple[SampledPart, ...]:
    """Return the events with most frames, in order of time: when each is, its frames, and its share of the change."""
    total, parts = math.fsum(weights.values), []
    for start, end in weights.events:
        low, high = max(first + start - _BEFORE, 0), min(first + end + _AFTER, len(frames.pts) - 1)
        found = bisect.bisect_right(indices, high) - bisect.bisect_left(indices, low)
        share = math.fsum(weights.values[start : end + 1]) / total
        parts.append(SampledPart(frames.shown(first + start), frames.shown(first + end), found, share))
    most = sorted(parts, key=lambda part: (-part.frames, part.start_seconds))[:_MOST_PARTS]
    return tuple(sorted((part for part in most if part.frames), key=lambda part: part.start_seconds))


def describe_sampling(sampling: Sampling, frames: int, *, looked_at: bool = False) -> str:
    """Return why frames lie where they do, and how many each part got, as a line of a plan.

    The frames are those that a question selects from (`looked_at`), or those that are read.
    """
    looked = " are looked at" if looked_at else ""
    if sampling.kind == "uniform":
        return f"even frames{looked}: {sampling.reason}"
    shown = sorted(sampling.parts, key=lambda part: -part.frames)[:4]
    within = sum(part.frames for part in sampling.parts)
    spans = ", ".join(
        f"{part.frames} at {format_timestamp(part.start_seconds)}–{format_timestamp(part.end_seconds)}"
        for part in sorted(shown, key=lambda part: part.start_seconds)
    )
    more = f" and {len(sampling.parts) - len(shown)} more" if len(sampling.parts) > len(shown) else ""
    return f"frames by change{looked}: {within} of {frames:,} where it happens ({spans}{more}); {sampling.reason}"
