"""What a sweep measures and what follows from it: points, rows, slopes. Plain numbers.

A point is a number of frames at a size; a row is what one side (vidqa, or plain
transformers) took for it. Starts no process, draws nothing, knows no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vidqa.errors import UsageError
from vidqa.models.spec import ModelSpec
from vidqa.types import PixelBounds, Request, VideoInfo
from vidqa.utils.units import parse_size
from vidqa.video.frame_sampling import choose_indices, fitting_sizes, frame_size

Side = Literal["vidqa", "transformers"]
Outcome = Literal["ok", "out_of_memory", "does_not_fit", "failed"]
SIDES: tuple[Side, ...] = ("vidqa", "transformers")
_MOST_COUNTS = 200


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """`frames` of `width` x `height` pixels; `asked` is what the user wrote for them."""

    asked: int
    frames: int
    width: int
    height: int
    visual_tokens: int

    def request(self, base: Request) -> Request:
        """The question about this many frames at this size."""
        from dataclasses import replace

        return replace(base, frames=self.frames, fps=None, size=(self.width, self.height))


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One run, or why there was none. Sizes in pixels and bytes; what was not measured is None.

    `peak_bytes` is the process's on the device: its runtime (`runtime_bytes`, before any tensor)
    and everything else. For transformers `predicted_peak_bytes` assumes unfused attention.
    """

    side: Side
    asked: int
    frames: int
    width: int
    height: int
    visual_tokens: int
    outcome: Outcome
    predicted_peak_bytes: int | None = None
    prompt_tokens: int | None = None
    peak_bytes: int | None = None
    runtime_bytes: int | None = None
    weights_bytes: int | None = None
    first_token_seconds: float | None = None
    answer: str | None = None
    answer_tokens: int | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()


def make_row(side: Side, point: SweepPoint, predicted: int | None, result: dict[str, Any]) -> SweepRow:
    """A row from a point and what its process told; what ran wins over what was asked."""
    told = {name: value for name, value in result.items() if value is not None}
    told["notes"] = tuple(told.get("notes", ()))
    planned = {
        "asked": point.asked, "frames": point.frames, "width": point.width, "height": point.height,
        "visual_tokens": point.visual_tokens, "predicted_peak_bytes": predicted,
    }  # fmt: skip
    return SweepRow(side=side, **(planned | told))


def parse_counts(text: str) -> tuple[int, ...]:
    """Read `5,10,15` as ascending counts of frames, each once; raises UsageError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{text!r} is no list of frame counts.", "Write for example --frames 5,10,20,40.")
    counts = tuple(sorted({int(word) for word in words}))
    if len(counts) > _MOST_COUNTS:
        raise UsageError(f"{len(counts)} frame counts are too many.", f"Ask for at most {_MOST_COUNTS}.")
    return counts


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Read `448x252,224x126` as (width, height) in pixels, each once; raises UsageError."""
    sizes = tuple(dict.fromkeys(parse_size(word) for word in text.split(",") if word.strip()))
    if not sizes:
        raise UsageError(f"{text!r} is no list of sizes.", "Write for example --sizes 448x252,224x140.")
    return sizes


def even(frames: int) -> int:
    """Floored to even, at least 2: a temporal slice is 2 frames (qwen-vl-utils, FRAME_FACTOR)."""
    return max(frames // 2 * 2, 2)


def frame_points(
    info: VideoInfo, spec: ModelSpec, bounds: PixelBounds, counts: Sequence[int], request: Request
) -> tuple[list[SweepPoint], list[str]]:
    """A point per count, at the asked size or the reference's for that count, and what was changed, in words.

    Odd counts are floored; counts beyond what the video has become what it has, once.
    """
    points: list[SweepPoint] = []
    notes = []
    for asked in counts:
        frames = _available(info, bounds, even(asked), request)
        if any(point.frames == frames for point in points):
            notes.append(f"--frames {asked} gives {frames} frames again and is left out")
            continue
        if frames != asked:
            why = "a temporal slice is 2 frames" if frames == even(asked) else "the video has no more"
            notes.append(f"--frames {asked} becomes {frames}: {why}")
        points.append(_point(info, spec, bounds, asked, frames, request.size))
    return points, notes


def size_points(
    info: VideoInfo,
    spec: ModelSpec,
    bounds: PixelBounds,
    sizes: Sequence[tuple[int, int]],
    frames: int,
    request: Request,
) -> tuple[list[SweepPoint], list[str]]:
    """A point per size, all with nearly the tokens of `frames` frames at the largest one.

    Raises UsageError where the video has too few frames for a size.
    """
    rounded = [_rounded(info, bounds, spec, size) for size in sizes]
    slice_tokens = [spec.visual_tokens(2, height, width) for height, width in rounded]
    counts = frames_for_budget(even(frames) // 2 * max(slice_tokens), slice_tokens)
    points = []
    for (height, width), count, tokens in zip(rounded, counts, slice_tokens, strict=True):
        there = _available(info, bounds, count, request)
        if there < count:
            raise UsageError(
                f"{width}x{height} needs {count} frames for the same number of tokens, and the video has {there}.",
                "Ask for fewer --frames or larger --sizes.",
            )
        points.append(SweepPoint(count, count, width, height, count // 2 * tokens))
    most = max(point.visual_tokens for point in points)
    off = 1 - min(point.visual_tokens for point in points) / most
    return points, [f"one token budget for every size: {most:,} visual tokens, {off:.1%} fewer at the least"]


def frames_for_budget(budget_tokens: int, slice_tokens: Sequence[int]) -> list[int]:
    """Even counts of frames that come nearest to `budget_tokens`, one per tokens of a temporal slice."""
    return [2 * max(round(budget_tokens / tokens), 1) for tokens in slice_tokens]


def _available(info: VideoInfo, bounds: PixelBounds, frames: int, request: Request) -> int:
    """How many frames the reference's sampling gives for an even count."""
    return len(
        choose_indices(
            info,
            frames=frames,
            fps=None,
            start_seconds=request.start_seconds,
            end_seconds=request.end_seconds,
            bounds=bounds,
        )
    )


def _rounded(info: VideoInfo, bounds: PixelBounds, spec: ModelSpec, size: tuple[int, int]) -> tuple[int, int]:
    """A (width, height) in whole tokens, as (height, width)."""
    return fitting_sizes(info, size, bounds, 0, factor=spec.pixel_factor)[0]


def _point(
    info: VideoInfo, spec: ModelSpec, bounds: PixelBounds, asked: int, frames: int, size: tuple[int, int] | None
) -> SweepPoint:
    if size is None:
        height, width = frame_size(info.height, info.width, frames, bounds, factor=spec.pixel_factor)
    else:
        height, width = _rounded(info, bounds, spec, size)
    return SweepPoint(asked, frames, width, height, spec.visual_tokens(frames, height, width))


def slope(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of (x, y); None below two different x."""
    if len({x for x, _ in pairs}) < 2:
        return None
    mean_x = sum(x for x, _ in pairs) / len(pairs)
    mean_y = sum(y for _, y in pairs) / len(pairs)
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs)


def measured(rows: Sequence[SweepRow], side: Side) -> list[SweepRow]:
    """The rows of one side that came to an answer."""
    return [row for row in rows if row.side == side and row.outcome == "ok"]


def _bytes_per_token(rows: Sequence[SweepRow]) -> float | None:
    return slope([(row.visual_tokens, row.peak_bytes) for row in rows if row.peak_bytes is not None])


def spread(sizes: Sequence[int]) -> float | None:
    """How far the largest lies above the smallest, as a share; None without two."""
    return max(sizes) / min(sizes) - 1 if len(sizes) > 1 and min(sizes) > 0 else None


def summarise(rows: Sequence[SweepRow], kv_bytes_per_token: int) -> dict[str, Any]:
    """What the rows say together, per side, and whether both sides said the same.

    `bytes_per_token` is the slope of the peak over visual tokens, to be read beside the KV cache's.
    """
    sides: dict[str, Any] = {}
    for side in SIDES:
        mine = [row for row in rows if row.side == side]
        good = measured(rows, side)
        if mine:
            sides[side] = {
                "measured": len(good),
                "bytes_per_token": _bytes_per_token(good),
                "peak_spread": spread([row.peak_bytes for row in good if row.peak_bytes]),
                "peak_spread_without_runtime": spread(
                    [row.peak_bytes - row.runtime_bytes for row in good if row.peak_bytes and row.runtime_bytes]
                ),
                "largest_frames": max((row.frames for row in good), default=None),
                "out_of_memory_from_frames": _least(mine, lambda row: row.outcome == "out_of_memory"),
                "prediction_off_by": _worst_prediction(good),
            }
    return {"kv_bytes_per_token": kv_bytes_per_token, "sides": sides, "same_answers": _same_answers(rows)}


def _least(rows: Sequence[SweepRow], test: Callable[[SweepRow], bool]) -> int | None:
    return min((row.frames for row in rows if test(row)), default=None)


def _worst_prediction(rows: Sequence[SweepRow]) -> float | None:
    """The prediction that is furthest off, as predicted over measured less one."""
    ratios = [
        row.predicted_peak_bytes / row.peak_bytes - 1 for row in rows if row.peak_bytes and row.predicted_peak_bytes
    ]
    return max(ratios, key=abs, default=None)


def _same_answers(rows: Sequence[SweepRow]) -> bool | None:
    """Whether both sides gave the same text wherever both answered; None where they never did."""
    answers: dict[tuple[int, int, int], set[str | None]] = {}
    counts: dict[tuple[int, int, int], int] = {}
    for row in rows:
        if row.outcome == "ok":
            key = (row.frames, row.width, row.height)
            answers.setdefault(key, set()).add(row.answer)
            counts[key] = counts.get(key, 0) + 1
    both = [len(answers[key]) == 1 for key, count in counts.items() if count == 2]
    return all(both) if both else None
