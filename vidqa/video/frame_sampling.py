"""Selection of frames by index and of their size. Arithmetic on plain numbers.

The rules are those of qwen-vl-utils 0.0.14 (vision_process.py: smart_nframes, calculate_video_frame_range,
fetch_video, smart_resize), re-implemented so that a plan needs no torch; on clips of a constant rate the indices are
the same. If the rate varies, frames are spread evenly in time instead of in number. A range of time is always that of
the frames' own times.
"""

import bisect
import math
import struct
from collections.abc import Sequence
from functools import lru_cache

from vidqa.errors import UsageError
from vidqa.types import PixelBounds, VideoInfo
from vidqa.utils.frame_choice import Sampling
from vidqa.utils.units import format_timestamp
from vidqa.video.size_limits import MAX_ASPECT

# auto: even frames at most so far apart stay. Between them little is missed, and models are trained with even distances
# (bench_focus.py, `short`, with 1 s: two events became one in 3 of 226 clips, and 1 clip gained).
CLOSE_SECONDS = 1.5
_FRAMES_PER_SLICE = 2
_ROUNDING_SECONDS = 1e-6  # error of summed times: --start 2 includes a frame at 2 s
_MAX_SLICE_TOKENS = 16_384  # qwen-vl-utils 0.0.14


def choose_indices(
    info: VideoInfo,
    *,
    frames: int | None,
    fps: float | None,
    start_seconds: float | None,
    end_seconds: float | None,
    bounds: PixelBounds,
) -> tuple[int, ...]:
    """Return indices into `info.pts_seconds`, ascending and even in number; one frame is doubled.

    Times count from 0, as in a player. Raises UsageError for an impossible number, rate or range.
    """
    check_counts(frames, fps)
    first, last = _range(info, start_seconds, end_seconds)
    available = last - first + 1
    if available == 1 or frames == 1:
        return ((first + last) // 2,) * _FRAMES_PER_SLICE
    target = frames if frames is not None else _frames_at(info, first, last, end_seconds, fps or bounds.fps, bounds)
    count = _floor_even(min(max(round(target / _FRAMES_PER_SLICE), 1) * _FRAMES_PER_SLICE, available))
    if info.constant_rate:
        return spread(first, last, count)
    return _spread_in_time(info.pts_seconds, first, last, count)


def check_counts(frames: int | None, fps: float | None) -> None:
    """Raise UsageError for an impossible number of frames or rate."""
    if frames is not None and fps is not None:
        raise UsageError("--frames and --fps exclude each other.", "Give one of them.")
    if frames is not None and frames < 1:
        raise UsageError(f"--frames {frames} selects no frame.", "Ask for 1 or more.")
    if fps is not None and not 0 < fps < math.inf:
        raise UsageError(f"--fps {fps} is not above 0.", "Ask for example --fps 2.")


def _range(info: VideoInfo, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the first and last index of the frames within a range of time."""
    length = f"The video lasts {format_timestamp(info.duration_seconds)}"
    low, high = start or 0.0, info.duration_seconds if end is None else end
    if low < 0 or high < 0:
        raise UsageError("The start or end lies before the start of the video.", f"{length}; times begin at 0.")
    if low >= info.duration_seconds and low > 0:
        raise UsageError(f"--start {format_timestamp(low)} lies past the end.", f"{length}; choose an earlier start.")
    if low >= high and (start is not None or end is not None):
        raise UsageError(f"--start {format_timestamp(low)} is not before --end {format_timestamp(high)}.", f"{length}.")
    if start is None and end is None:
        return 0, info.frame_count - 1
    offset = info.pts_seconds[0] - info.lead_seconds
    first = bisect.bisect_left(info.pts_seconds, low + offset - _ROUNDING_SECONDS)
    last = max(bisect.bisect_right(info.pts_seconds, high + offset + _ROUNDING_SECONDS) - 1, 0)
    return min(first, last), last  # a range between two frames selects the one before it


def _frames_at(info: VideoInfo, first: int, last: int, end: float | None, fps: float, bounds: PixelBounds) -> int:
    """Return duration times rate, within the bounds and the available frames, rounded down to even."""
    available = last - first + 1
    seconds = available / info.fps if info.constant_rate else _seconds_shown(info, first, last, end)
    lowest = math.ceil(bounds.min_frames / _FRAMES_PER_SLICE) * _FRAMES_PER_SLICE
    highest = _floor_even(min(bounds.max_frames, available))
    return _floor_even(int(min(max(seconds * fps, lowest), highest, available)))


def _seconds_shown(info: VideoInfo, first: int, last: int, end: float | None) -> float:
    """Return how long these frames are shown, until the end of the range at most."""
    times = info.pts_seconds
    zero = times[0] - info.lead_seconds
    until = times[last + 1] if last + 1 < len(times) else zero + info.duration_seconds
    until = until if end is None else min(until, zero + end)
    return max(until, times[last]) - times[first]


def _floor_even(count: int) -> int:
    return max(count // _FRAMES_PER_SLICE * _FRAMES_PER_SLICE, _FRAMES_PER_SLICE)


def spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """Return `torch.linspace(first, last, count).round()`: single precision, from both ends, half to even."""
    step = _single((last - first) / (count - 1))
    half = count // 2
    low = [round(_single(first + step * index)) for index in range(half)]
    high = [round(_single(last - step * (count - 1 - index))) for index in range(half, count)]
    return tuple(low + high)


def _single(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _spread_in_time(pts: Sequence[float], first: int, last: int, count: int) -> tuple[int, ...]:
    """Return the frames nearest to `count` evenly spread times."""
    begin, span = pts[first], pts[last] - pts[first]
    return tuple(_nearest(pts, begin + span * index / (count - 1), first, last) for index in range(count))


def _nearest(pts: Sequence[float], moment: float, first: int, last: int) -> int:
    after = min(bisect.bisect_left(pts, moment, first, last + 1), last)
    before = max(after - 1, first)
    return before if moment - pts[before] <= pts[after] - moment else after


def frames_at_rate(
    info: VideoInfo, start_seconds: float | None, end_seconds: float | None, rate: float, least: int
) -> int:
    """Return the even number of frames at `rate` per second in a range: at least `least` where there are as many."""
    first, last = _range(info, start_seconds, end_seconds)
    seconds = _seconds_shown(info, first, last, end_seconds)
    count = max(int(seconds * rate + 1e-6), math.ceil(least / _FRAMES_PER_SLICE) * _FRAMES_PER_SLICE)
    return _floor_even(min(count, last - first + 1))


def seconds_in_range(info: VideoInfo, start_seconds: float | None, end_seconds: float | None) -> float:
    """Return how long the frames of a range are shown, until its end at most."""
    return _seconds_shown(info, *_range(info, start_seconds, end_seconds), end_seconds)


def kept_before_scan(info: VideoInfo, even: Sequence[int], close: float | None) -> Sampling | None:
    """Return why even frames stay, where that is known before a scan; else None.

    They stay where there are no others, where they are a single slice, and if they are at most `close` seconds apart;
    None is no such distance.
    """
    reason = _why_kept(info, even[0], even[-1], len(even), close)
    return None if reason is None else Sampling("uniform", reason)


def are_kept_before_scan(
    info: VideoInfo, start_seconds: float | None, end_seconds: float | None, frames: int, close: float | None
) -> bool:
    """Return whether `kept_before_scan` has a reason for so many even frames of a range of time."""
    return _why_kept(info, *_range(info, start_seconds, end_seconds), frames, close) is not None


def _why_kept(info: VideoInfo, first: int, last: int, frames: int, close: float | None) -> str | None:
    if last - first + 1 <= frames and (first < last or info.frame_count == 1):
        return "there are no other frames to choose"
    if frames <= _FRAMES_PER_SLICE:
        few = "one frame is" if first == last else f"{frames} frames are"
        return f"{few} too few to follow the change"
    distance = (info.pts_seconds[last] - info.pts_seconds[first]) / (frames - 1)
    if close is not None and distance <= close:
        return f"they are {distance:.1f} s apart and miss little"
    return None


def sampled_times(info: VideoInfo, indices: Sequence[int]) -> tuple[float, ...]:
    """Return when a player that counts from 0 shows each frame, in seconds."""
    return tuple(map(info.shown_seconds, indices))


def fitting_sizes(
    info: VideoInfo, size: tuple[int, int] | None, bounds: PixelBounds, min_pixels: int, *, factor: int
) -> tuple[tuple[int, int], ...]:
    """Return every (height, width) that the rule gives between `min_pixels` and the checkpoint's maximum, ascending.

    A given `size` (width, height) is the only one, rounded to whole tokens. Raises UsageError if it is too large.
    """
    if size is not None:
        return (_rounded_size(size, factor),)
    return _all_sizes(info.height, info.width, bounds, min_pixels, factor)


@lru_cache(maxsize=64)  # hundreds of roots, and the session plans again with every key
def _all_sizes(tall: int, wide: int, bounds: PixelBounds, min_pixels: int, factor: int) -> tuple[tuple[int, int], ...]:
    token = factor * factor
    low, high = -(-min_pixels // token), max(bounds.max_pixels // token, -(-min_pixels // token))
    found = {
        smart_resize(tall, wide, factor=factor, min_pixels=min_pixels, max_pixels=tokens * token)
        for tokens in range(low, high + 1)
    }
    by_area = {height * width: (height, width) for height, width in sorted(found)}
    enough = [area for area in sorted(by_area) if area >= min_pixels] or [max(by_area)]
    return tuple(by_area[area] for area in enough)


def _rounded_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return `--size` (width, height) rounded to whole tokens, as (height, width)."""
    width, height = (max(factor, round(side / factor) * factor) for side in size)
    tokens = height // factor * (width // factor)
    if tokens > _MAX_SLICE_TOKENS:
        raise UsageError(
            f"A frame of {width}x{height} is {tokens} tokens; the model takes at most {_MAX_SLICE_TOKENS}.",
            "Ask for a smaller --size.",
        )
    return height, width


def frame_size(height: int, width: int, frames: int, bounds: PixelBounds, *, factor: int) -> tuple[int, int]:
    """Return the (height, width) of frames: an equal share of the video's pixels, within the bounds."""
    share = bounds.total_pixels / frames * _FRAMES_PER_SLICE
    most = max(min(bounds.max_pixels, share), int(bounds.min_pixels * 1.05))
    return smart_resize(height, width, factor=factor, min_pixels=bounds.min_pixels, max_pixels=most)


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Round both sides to multiples of `factor`, keeping the aspect and the pixel bounds.

    As qwen-vl-utils does, but a side never becomes 0. Raises UsageError beyond 200:1.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise UsageError(f"The picture is {width}x{height}, longer than {MAX_ASPECT}:1.", "Crop it, or give --size.")
    tall, wide = (max(factor, round(side / factor) * factor) for side in (height, width))
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return tall, wide
