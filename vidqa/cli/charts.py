"""Plots of measurements as PNG or SVG, with matplotlib where it is installed (the `plot` extra)."""

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
_Key = tuple[int, int, int]  # frames as requested, width, height
_GIB, _MIB = 2**30, 2**20
_COLOURS: dict[str, str] = {"vidqa": "#1b7f5c", "transformers": "#b5452c"}
_PREDICTED = {"vidqa": "planned", "transformers": "predicted, unfused attention"}
_STACKED = 7  # kinds of allocations with a colour of their own


def can_draw() -> bool:
    """Return whether matplotlib is installed, without importing it."""
    return find_spec("matplotlib") is not None


def check_target(path: str) -> None:
    """Raise UsageError if a plot cannot be written to this path; call it before measuring."""
    if not can_draw():
        raise UsageError("A plot needs matplotlib, which is not installed.", 'Install it: pip install "vidqa[plot]".')
    target = Path(path)
    if target.suffix.lower() not in KINDS:
        raise UsageError(f"{path} is neither a PNG nor an SVG.", "End the name in .png or .svg.")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"The folder of {path} does not exist.", "Create it, or choose another.")


def draw_sweep(rows: Sequence[SweepRow], title: str, path: str, *, over_sizes: bool, limit_bytes: int | None) -> None:
    """Plot peak memory and time to the first token over visual tokens or sizes, measured and predicted."""
    figure = new_figure(2)
    memory, seconds = figure.subplots(1, 2)
    positions = _positions(rows, over_sizes=over_sizes)
    for side in ("vidqa", "transformers"):
        mine = [row for row in rows if row.side == side]
        if mine:
            _draw_memory(memory, side, mine, positions)
            _draw_seconds(seconds, side, mine, positions)
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
        _label_positions(axes, positions, over_sizes=over_sizes)
    figure.suptitle(_plain(title))
    save(figure, path)


def _top(rows: Sequence[SweepRow], limit_bytes: int | None) -> float | None:
    """Return the top of the memory axis in GiB; predictions of transformers far above it are cut off."""
    sizes = [row.peak_bytes for row in rows if row.peak_bytes is not None]
    if not sizes:
        return None
    planned = [row.predicted_peak_bytes or 0 for row in rows if row.side == "vidqa"]
    return 1.3 * max([*sizes, *planned, limit_bytes or 0]) / _GIB


def new_figure(columns: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(6 * columns, 4.5), layout="constrained")


def save(figure: "Figure", path: str) -> None:
    """Write a figure without a date or random ids, so that equal numbers give an equal file."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "vidqa", "svg.fonttype": "path"}):
        metadata: dict[str, Any] = {"Date": None} if path.lower().endswith(".svg") else {}
        figure.savefig(path, dpi=120, metadata=metadata)


def _plain(text: str) -> str:
    """Escape untrusted text, also for matplotlib's mathtext."""
    from vidqa.utils.safe_text import safe_line

    return safe_line(text).replace("$", r"\$")


def _key(row: SweepRow) -> _Key:
    return (row.asked, row.width, row.height)


def _positions(rows: Sequence[SweepRow], *, over_sizes: bool) -> dict[_Key, float]:
    """Return the x of each frame count or size: its visual tokens, or 0, 1, 2... for sizes."""
    first_rows = {_key(row): row for row in reversed(rows)}
    keys = dict.fromkeys(map(_key, rows))
    return {key: float(place if over_sizes else first_rows[key].visual_tokens) for place, key in enumerate(keys)}


def _draw_memory(axes: "Axes", side: Side, rows: Sequence[SweepRow], positions: dict[_Key, float]) -> None:
    predicted = [(row, row.predicted_peak_bytes / _GIB) for row in rows if row.predicted_peak_bytes is not None]
    _draw_line(axes, side, predicted, positions, f"{side}, {_PREDICTED[side]}", fmt="--", alpha=0.6)
    measured = [(row, row.peak_bytes / _GIB) for row in rows if row.peak_bytes is not None]
    _draw_line(axes, side, measured, positions, f"{side}, measured")
    for row in rows:
        if row.outcome != "ok":
            axes.axvline(positions[_key(row)], color=_COLOURS[side], linestyle=":", alpha=0.8)
            axes.annotate(
                f" {side}: {row.outcome.replace('_', ' ')}", (positions[_key(row)], 0.02),
                xycoords=("data", "axes fraction"), rotation=90, fontsize="x-small", color=_COLOURS[side],
            )  # fmt: skip


def _draw_seconds(axes: "Axes", side: Side, rows: Sequence[SweepRow], positions: dict[_Key, float]) -> None:
    measured = [(row, row.first_token_seconds) for row in rows if row.first_token_seconds is not None]
    _draw_line(axes, side, measured, positions, f"{side}, measured")


def _draw_line(
    axes: "Axes", side: Side, values: Sequence[tuple[SweepRow, float]], positions: dict[_Key, float], label: str,
    *, fmt: str = "o-", alpha: float = 1.0,
) -> None:  # fmt: skip
    if values:
        x, y = [positions[_key(row)] for row, _ in values], [value for _, value in values]
        axes.plot(x, y, fmt, color=_COLOURS[side], alpha=alpha, label=label)


def _label_positions(axes: "Axes", positions: dict[_Key, float], *, over_sizes: bool) -> None:
    if over_sizes:
        labels = [f"{frames} × {width}×{height}" for frames, width, height in positions]
        axes.set_xticks(list(positions.values()), labels, rotation=20)
        axes.set_xlabel("frames × size, at one number of visual tokens")
        return
    axes.set_xlabel("visual tokens (frames on top)")
    top = axes.secondary_xaxis("top")
    labels = [str(frames // 2 * 2 or 2) for frames, _, _ in positions]
    top.set_xticks(list(positions.values()), labels, fontsize="x-small")


def draw_timeline(timeline: "AllocationTimeline", title: str, path: str) -> None:
    """Plot allocated bytes over seconds, stacked by kind, with the phases marked."""
    figure = new_figure(2)
    axes = figure.subplots()
    names = timeline.largest(_STACKED)
    unit, size = ("GiB", _GIB) if max(timeline.total()) >= _GIB else ("MiB", _MIB)
    layers = [[value / size for value in timeline.layer(name)] for name in names]
    layers.append([value / size for value in timeline.rest(names)])
    axes.stackplot(timeline.seconds, layers, labels=[*map(_plain, names), "the rest"], step="post")
    for number, (phase, begin) in enumerate(timeline.phases):
        axes.axvline(begin, color="black", linewidth=0.6, linestyle=":")
        height = 0.98 - 0.04 * (number % 4)  # phases may begin close together
        axes.annotate(f" {phase}", (begin, height), xycoords=("data", "axes fraction"), fontsize="small", va="top")
    axes.set_xlabel("seconds, slowed by the profiler")
    axes.set_ylabel(f"living tensors, {unit}")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title(_plain(title))
    save(figure, path)
