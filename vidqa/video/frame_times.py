"""Frame rate, duration of the last frame, and repair of repeated times. Arithmetic on plain numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice, repeat
from operator import mul, sub


@dataclass(frozen=True, slots=True)
class FrameTiming:
    """A clip's mean rate and length. `constant`: frame i is shown at i / fps from the first, to half a frame."""

    fps: float
    fps_source: str
    constant: bool
    duration_seconds: float
    duration_source: str


def timing(
    seconds: Sequence[float], rates: Iterable[float], end: float, header_end: float | None, tick: float
) -> FrameTiming:
    """Return the timing of frames at ascending times in seconds.

    `rates` are the header's; the first that the frames keep is used. `end` is where the last packet ends, 0 or earlier
    than the last frame if the file does not say; `header_end` is the header's; `tick` the unit of the times.
    """
    fps, source, is_constant = _rate(seconds, rates)
    step = 1 / fps
    hold, stored = _last_seconds(seconds, step, end, header_end, tick * 1.01 if is_constant else 0.0)
    constant = is_constant and abs(hold - step) <= step / 2 + tick
    return FrameTiming(fps, source, constant, seconds[-1] - seconds[0] + hold, "packets" if stored else "derived")


def _rate(seconds: Sequence[float], rates: Iterable[float]) -> tuple[float, str, bool]:
    """Return frames per second, where the number comes from, and whether every frame keeps it."""
    header = [rate for rate in rates if rate > 0]
    if len(seconds) < 2:
        return (header[0], "header", True) if header else (1.0, "default", True)
    for rate in header:
        if keeps_rate(seconds, rate):
            return rate, "header", True
    derived = (len(seconds) - 1) / (seconds[-1] - seconds[0])
    return derived, "derived", keeps_rate(seconds, derived)


def keeps_rate(seconds: Sequence[float], fps: float) -> bool:
    """Return whether every frame is shown within half a frame of its index over the rate."""
    off = list(map(sub, seconds, map(mul, count(), repeat(1 / fps))))
    furthest: float = max(max(off) - off[0], off[0] - min(off))
    return furthest <= 0.5 / fps


def _last_seconds(
    seconds: Sequence[float], step: float, end: float, header_end: float | None, rounding: float
) -> tuple[float, bool]:
    """Return how long the last frame is shown and whether the file says so; up to `rounding` off, it is the step.

    A stored duration longer than any before is trusted only if the header's end confirms it: it may be damaged.
    """
    hold = end - seconds[-1]
    if abs(hold - step) <= rounding:
        return step, True  # the same, but rounded
    if hold <= rounding:
        return step, False
    longest = max(map(sub, islice(seconds, 1, None), seconds), default=step)
    confirmed = header_end is not None and end <= header_end + 0.001
    return (hold, True) if confirmed or hold <= 2 * max(longest, step) else (step, False)


def spread_repeats(ticks: Sequence[int], end: int, steps: Iterable[float]) -> list[float]:
    """Return ascending times for ticks that repeat, as those of fast cameras do in containers of milliseconds.

    Uses the first of the header's `steps` between frames that matches every time to the tick; otherwise spreads each
    run of equal times evenly until the next one, the last until `end`.
    """
    for step in steps:
        even = [ticks[0] + index * step for index in range(len(ticks))]
        if max(map(abs, map(sub, even, ticks))) <= 1:
            return even
    runs = [(tick, len(list(same))) for tick, same in groupby(ticks)]
    gap = runs[-1][0] - runs[-2][0] if len(runs) > 1 else len(ticks)
    until = [tick for tick, _ in runs[1:]] + [end if end > ticks[-1] else ticks[-1] + gap]
    return [
        tick + index * (after - tick) / length
        for (tick, length), after in zip(runs, until, strict=True)
        for index in range(length)
    ]
