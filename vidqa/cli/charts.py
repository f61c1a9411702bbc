"""Pictures of measurements, PNG or SVG, with matplotlib where it is installed (the `plot` extra).

Draws plain numbers; measures nothing and never opens a window.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.errors import UsageError
from vidqa.profiling.sweep_points import Side, SweepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vidqa.profiling.memory_trace import AllocationTimeline

KINDS = (".png", ".svg")
_GIB, _MIB = 2**30, 2**20
_COLOURS: dict[str, str] = {"vidqa": "#1b7f5c", "transformers": "#b5452c"}
_PREDICTED = {"vidqa": "planned", "transformers": "predicted, unfused attention"}
_STACKED = 7  # kinds of allocations with a colour of their own


def can_draw() -> bool:
    """Whether matplotlib is installed; imports nothing."""
    return find_spec("matplotlib") is not None


def check_target(path: str) -> None:
    """Refuse what cannot be drawn before anything is measured for it; raises UsageError."""
    if not can_draw():
        raise UsageError("A plot needs matplotlib, which is not installed.", 'Install it: pip install "vidqa[plot]".')
    target = Path(path)
    if target.suffix.lower() not in KINDS:
        raise UsageError(f"{path} is neither a PNG nor an SVG.", "End the name in .png or .svg.")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"The folder of {path} is not there.", "Make it first, or write elsewhere.")


def draw_sweep(rows: Sequence[SweepRow], title: str, path: str, *, over_sizes: bool, limit_bytes: int | None) -> None:
    """Peak memory and time to the first token over visual tokens (or sizes), both sides and the predictions."""
    figure = new_figure(2)
    memory, seconds = figure.subplots(1, 2)
    places = _places(rows, over_sizes=over_sizes)
    for side in ("vidqa", "transformers"):
        mine = [row for row in rows if row.side == side]
        if mine:
            _draw_memory(memory, side, mine, places)
            _draw_seconds(seconds, side, mine, places)
    if limit_bytes is not None:
        memory.axhline(limit_bytes / _GIB, color="black", linewidth=0.8, label="limit")
    for axes, label, top in (
        (memory, "peak memory, GiB", _top(rows, limit_bytes)),
        (seconds, "seconds to the first token", None),
    ):
        axes.set_ylabel(label)
        axes.set_ylim(0, top or axes.get_ylim()[1] * 1.08)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        _label_places(axes, rows, places, over_sizes=over_sizes)
    figure.suptitle(_plain(title))
    save(figure, path)


def _top(rows: Sequence[SweepRow], limit_bytes: int | None) -> float | None:
    """The height of the memory axis in GiB: a prediction far above what was measured may leave the picture."""
    sizes = [row.peak_bytes for row in rows if row.peak_bytes is not None]
    if not sizes:
        return None
    planned = [row.predicted_peak_bytes or 0 for row in rows if row.side == "vidqa"]
    return 1.3 * max([*sizes, *planned, limit_bytes or 0]) / _GIB


def new_figure(columns: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(6 * columns, 4.5), layout="constrained")


def save(figure: "Figure", path: str) -> None:
    """Write without a date or random ids: the same numbers give the same file."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "vidqa", "svg.fonttype": "path"}):
        metadata: dict[str, Any] = {"Date": None} if path.lower().endswith(".svg") else {}
        figure.savefig(path, dpi=120, metadata=metadata)


def _plain(text: str) -> str:
    """Untrusted words without matplotlib's own mathematics."""
    from vidqa.utils.safe_text import safe_line

    return safe_line(text).replace("$", r"\$")


def _places(rows: Sequence[SweepRow], *, over_sizes: bool) -> dict[tuple[int, int, int], float]:
    """Where on the axis a point stands: at its tokens, or one size after the other."""
    keys = dict.fromkeys((row.asked, row.width, row.height) for row in rows)
    if over_sizes:
        return {key: float(place) for place, key in enumerate(keys)}
    tokens = {(row.asked, row.width, row.height): row.visual_tokens for row in reversed(rows)}
    return {key: float(tokens[key]) for key in keys}


def _key(row: SweepRow) -> tuple[int, int, int]:
    return (row.asked, row.width, row.height)


def _draw_memory(axes: "Axes", side: Side, rows: Sequence[SweepRow], places: dict[tuple[int, int, int], float]) -> None:
    done = [(places[_key(row)], row.peak_bytes / _GIB) for row in rows if row.peak_bytes is not None]
    predicted = [
        (places[_key(row)], row.predicted_peak_bytes / _GIB) for row in rows if row.predicted_peak_bytes is not None
    ]
    if predicted:
        axes.plot(
            *zip(*predicted, strict=True), "--", color=_COLOURS[side], alpha=0.6, label=f"{side}, {_PREDICTED[side]}"
        )
    if done:
        axes.plot(*zip(*done, strict=True), "o-", color=_COLOURS[side], label=f"{side}, measured")
    for row in rows:
        if row.outcome != "ok":
            axes.axvline(places[_key(row)], color=_COLOURS[side], linestyle=":", alpha=0.8)
            axes.annotate(
                f" {side}: {row.outcome.replace('_', ' ')}", (places[_key(row)], 0.02),
                xycoords=("data", "axes fraction"), rotation=90, fontsize="x-small", color=_COLOURS[side],
            )  # fmt: skip


def _draw_seconds(
    axes: "Axes", side: Side, rows: Sequence[SweepRow], places: dict[tuple[int, int, int], float]
) -> None:
    done = [(places[_key(row)], row.first_token_seconds) for row in rows if row.first_token_seconds is not None]
    if done:
        axes.plot(*zip(*done, strict=True), "o-", color=_COLOURS[side], label=f"{side}, measured")


def _label_places(
    axes: "Axes", rows: Sequence[SweepRow], places: dict[tuple[int, int, int], float], *, over_sizes: bool
) -> None:
    if not over_sizes:
        axes.set_xlabel("visual tokens (frames on top)")
        top = axes.secondary_xaxis("top")
        top.set_xticks(list(places.values()), [str(asked // 2 * 2 or 2) for asked, _, _ in places], fontsize="x-small")
        return
    axes.set_xticks(
        list(places.values()), [f"{asked} × {width}×{height}" for asked, width, height in places], rotation=20
    )
    axes.set_xlabel("frames × size, at one number of visual tokens")


def draw_timeline(timeline: "AllocationTimeline", title: str, path: str) -> None:
    """Living bytes over seconds, stacked by what they are, with the phases marked."""
    figure = new_figure(2)
    axes = figure.subplots()
    names = timeline.largest(_STACKED)
    unit, size = ("GiB", _GIB) if max(timeline.total()) >= _GIB else ("MiB", _MIB)
    layers = [[value / size for value in timeline.layer(name)] for name in names]
    layers.append([value / size for value in timeline.rest(names)])
    axes.stackplot(timeline.seconds, layers, labels=[*map(_plain, names), "the rest"], step="post")
    for place, (phase, begin) in enumerate(timeline.phases):
        axes.axvline(begin, color="black", linewidth=0.6, linestyle=":")
        height = 0.98 - 0.04 * (place % 4)  # phases may begin close together
        axes.annotate(f" {phase}", (begin, height), xycoords=("data", "axes fraction"), fontsize="small", va="top")
    axes.set_xlabel("seconds, slowed by the profiler")
    axes.set_ylabel(f"living tensors, {unit}")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title(_plain(title))
    save(figure, path)
