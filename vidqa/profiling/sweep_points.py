"""Points, rows and summaries of a sweep, as plain numbers.

A point is a number of frames at a size; a row is one side's (vidqa's or plain transformers') measurement of a point.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import linear_regression
from typing import Any, Literal

from vidqa.errors import UsageError
from vidqa.models.spec import ModelSpec
from vidqa.types import PixelBounds, Request, VideoInfo
from vidqa.utils.units import parse_size
from vidqa.video.frame_sampling import choose_indices, fitting_sizes, frame_size

Side = Literal["vidqa", "transformers"]
Outcome = Literal["ok", "out_of_memory", "does_not_fit", "failed"]
SIDES: tuple[Side, ...] = ("vidqa", "transformers")
_MAX_COUNTS = 200


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """`frames` of `width` x `height` pixels; `asked` is the count that the user gave."""

    asked: int
    frames: int
    width: int
    height: int
    visual_tokens: int

    def request(self, base: Request) -> Request:
        """Return the question about this many frames at this size."""
        return replace(base, frames=self.frames, fps=None, size=(self.width, self.height))


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One run, or the reason why there was none. Sizes in pixels and bytes; None where not measured.

    `peak_bytes` is the process's on the device, with its runtime (`runtime_bytes`, before any tensor). For transformers
    `predicted_peak_bytes` assumes unfused attention.
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
    """Return the row of a point and its process's result; the result's values replace the planned ones."""
    measured = {name: value for name, value in result.items() if value is not None}
    measured["notes"] = tuple(measured.get("notes", ()))
    planned = {
        "asked": point.asked, "frames": point.frames, "width": point.width, "height": point.height,
        "visual_tokens": point.visual_tokens, "predicted_peak_bytes": predicted,
    }  # fmt: skip
    return SweepRow(side=side, **(planned | measured))


def parse_counts(text: str) -> tuple[int, ...]:
    """Parse `5,10,15` as ascending, distinct counts of frames; raises UsageError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{text!r} is no list of frame counts.", "Write for example --frames 5,10,20,40.")
    counts = tuple(sorted({int(word) for word in words}))
    if len(counts) > _MAX_COUNTS:
        raise UsageError(f"{len(counts)} frame counts are too many.", f"Ask for at most {_MAX_COUNTS}.")
    return counts


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse `448x252,224x126` as distinct (width, height) in pixels; raises UsageError."""
    sizes = tuple(dict.fromkeys(parse_size(word) for word in text.split(",") if word.strip()))
    if not sizes:
        raise UsageError(f"{text!r} is no list of sizes.", "Write for example --sizes 448x252,224x140.")
    return sizes


def even(frames: int) -> int:
    """Floor to an even number, at least 2: a temporal slice has 2 frames (qwen-vl-utils, FRAME_FACTOR)."""
    return max(frames // 2 * 2, 2)


def frame_points(
    info: VideoInfo, spec: ModelSpec, bounds: PixelBounds, counts: Sequence[int], request: Request
) -> tuple[list[SweepPoint], list[str]]:
    """Return a point per count, at the requested size or the reference's for that count, and notes on changed counts.

    Odd counts are floored; counts above the video's frames become one point with all frames.
    """
    points: list[SweepPoint] = []
    notes = []
    for asked in counts:
        frames = _available(info, bounds, even(asked), request)
        if any(point.frames == frames for point in points):
            notes.append(f"--frames {asked} gives {frames} frames again and is skipped")
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
    """Return a point per size, all with about the tokens of `frames` frames at the largest size, and a note.

    Raises UsageError if the video has too few frames for a size.
    """
    rounded = [_rounded(info, bounds, spec, size) for size in sizes]
    slice_tokens = [spec.visual_tokens(2, height, width) for height, width in rounded]
    counts = frames_for_budget(even(frames) // 2 * max(slice_tokens), slice_tokens)
    points = []
    for (height, width), count, tokens in zip(rounded, counts, slice_tokens, strict=True):
        available = _available(info, bounds, count, request)
        if available < count:
            raise UsageError(
                f"{width}x{height} needs {count} frames for the same number of tokens, and the video has {available}.",
                "Ask for fewer --frames or larger --sizes.",
            )
        points.append(SweepPoint(count, count, width, height, count // 2 * tokens))
    most = max(point.visual_tokens for point in points)
    less = 1 - min(point.visual_tokens for point in points) / most
    return points, [f"one token budget for every size: {most:,} visual tokens, at most {less:.1%} fewer"]


def frames_for_budget(budget_tokens: int, slice_tokens: Sequence[int]) -> list[int]:
    """Return the even count of frames nearest to `budget_tokens` for each number of tokens per temporal slice."""
    return [2 * max(round(budget_tokens / tokens), 1) for tokens in slice_tokens]


def _available(info: VideoInfo, bounds: PixelBounds, frames: int, request: Request) -> int:
    """Return how many frames the reference's sampling gives for an even count."""
    interval = {"start_seconds": request.start_seconds, "end_seconds": request.end_seconds}
    return len(choose_indices(info, frames=frames, fps=None, bounds=bounds, **interval))


def _rounded(info: VideoInfo, bounds: PixelBounds, spec: ModelSpec, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a (width, height), rounded to whole tokens."""
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
    """Return the least-squares slope of (x, y); None with fewer than two different x."""
    if len({x for x, _ in pairs}) < 2:
        return None
    return linear_regression(*zip(*pairs, strict=True)).slope


def measured(rows: Sequence[SweepRow], side: Side) -> list[SweepRow]:
    """Return the rows of one side that have an answer."""
    return [row for row in rows if row.side == side and row.outcome == "ok"]


def _bytes_per_token(rows: Sequence[SweepRow]) -> float | None:
    return slope([(row.visual_tokens, row.peak_bytes) for row in rows if row.peak_bytes is not None])


def spread(sizes: Sequence[int]) -> float | None:
    """Return largest / smallest - 1; None with fewer than two sizes."""
    return max(sizes) / min(sizes) - 1 if len(sizes) > 1 and min(sizes) > 0 else None


def summarise(rows: Sequence[SweepRow], kv_bytes_per_token: int) -> dict[str, Any]:
    """Summarise the rows per side, and whether both sides gave the same answers.

    `bytes_per_token` is the slope of the peak over visual tokens, to compare with the KV cache's.
    """
    sides: dict[str, Any] = {}
    for side in SIDES:
        side_rows = [row for row in rows if row.side == side]
        answered = measured(rows, side)
        if side_rows:
            sides[side] = {
                "measured": len(answered),
                "bytes_per_token": _bytes_per_token(answered),
                "peak_spread": spread([row.peak_bytes for row in answered if row.peak_bytes]),
                "peak_spread_without_runtime": spread(
                    [row.peak_bytes - row.runtime_bytes for row in answered if row.peak_bytes and row.runtime_bytes]
                ),
                "largest_frames": max((row.frames for row in answered), default=None),
                "out_of_memory_from_frames": _min_frames(side_rows, lambda row: row.outcome == "out_of_memory"),
                "prediction_off_by": _worst_prediction(answered),
            }
    return {"kv_bytes_per_token": kv_bytes_per_token, "sides": sides, "same_answers": _same_answers(rows)}


def _min_frames(rows: Sequence[SweepRow], test: Callable[[SweepRow], bool]) -> int | None:
    return min((row.frames for row in rows if test(row)), default=None)


def _worst_prediction(rows: Sequence[SweepRow]) -> float | None:
    """Return predicted / measured - 1 of the worst prediction."""
    ratios = [
        row.predicted_peak_bytes / row.peak_bytes - 1 for row in rows if row.peak_bytes and row.predicted_peak_bytes
    ]
    return max(ratios, key=abs, default=None)


def _same_answers(rows: Sequence[SweepRow]) -> bool | None:
    """Return whether both sides gave the same text wherever both answered; None if they never did."""
    answers: dict[tuple[int, int, int], list[str | None]] = {}
    for row in rows:
        if row.outcome == "ok":
            answers.setdefault((row.frames, row.width, row.height), []).append(row.answer)
    both = [texts[0] == texts[1] for texts in answers.values() if len(texts) == 2]
    return all(both) if both else None
