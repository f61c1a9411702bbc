#!/usr/bin/env python3
"""benchmarks/README.md and its plots from benchmarks/results/*.json: the same results give the same page.

Each result is known by its shape: gpu_check, bench_follow_up, bench_tui, bench_caption, bench_scaling, bench_cpu,
bench_latency, bench_domain, bench_focus, bench_prune, bench_hour, bench_memory, eval_demo_model --precisions and
`vidqa sweep --json`. Plots need matplotlib; without it the page is the same and the pictures stay as they are.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, shown_bar, shown_value
from vidqa.cli.charts import can_draw, draw_sweep, new_figure, save
from vidqa.profiling.sweep_points import SweepRow as SweepRow
from vidqa.utils.units import format_bytes

Result = Mapping[str, Any]
_GIB = 2**30


def kind_of(name: str, result: Result) -> str:
    """Return the benchmark that wrote a result; raises ValueError if none did."""
    if result.get("kind") in (
        "gpu",
        "follow-up",
        "tui",
        "caption",
        "scaling",
        "cpu-weights",
        "latency",
        "domain",
        "focus",
        "prune",
        "hour",
    ):
        return str(result["kind"])
    if "swept" in result:
        return "sweep"
    if "questions_per_clip" in result:
        return "precisions"
    if "median_error" in result.get("bars", {}):
        return "memory"
    raise ValueError(f"{name} has a shape that no benchmark here writes")


def load(folder: Path) -> dict[str, Result]:
    """Return all results by name, sorted."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def render(results: Mapping[str, Result]) -> str:
    """Return the page."""
    kinds = {name: kind_of(name, result) for name, result in results.items()}
    lines = [
        "# Benchmarks", "",
        "Rendered by `scripts/render_benchmarks.py` from `results/*.json`; edit neither by hand.",
    ]  # fmt: skip
    for kind, (title, missing, section) in _SECTIONS.items():
        lines += ["", f"## {title}"]
        mine = [name for name, found in kinds.items() if found == kind]
        if not mine:
            lines += ["", missing]
        for name in mine:
            lines += ["", *section(name, results[name])]
    return "\n".join(lines) + "\n"


def _measured_with(name: str, result: Result) -> str:
    found = result["environment"]
    versions = ", ".join(f"{library} {found[library]}" for library in ("torch", "transformers") if library in found)
    return f"`{name}`: {found['device']}, {versions}, Python {found['python']}, {found['date']}."


def _table(head: str, rows: Iterator[str] | list[str]) -> list[str]:
    """Return a Markdown table. Columns are aligned right, or left if the title begins with a space."""
    titles = head.split("|")
    ruler = "|".join("---" if title.startswith(" ") else "---:" for title in titles)
    return [f"|{'|'.join(f' {title.strip()} ' for title in titles)}|", f"|{ruler}|", *rows]


def _cells(*cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _picture(name: str, what: str) -> list[str]:
    return ["", f"![{what}]({name}.svg)"]


def gpu_section(name: str, result: Result) -> Iterator[str]:
    """Every row with its bar, a table per section, and what did not run."""
    yield _measured_with(name, result)
    judged = [row for row in result["rows"] if row["bar"] is not None]
    met = sum(row["ok"] is True for row in judged)
    yield f"{met} of {len(judged)} measured bars are met." + ("" if result["finished"] else " The run did not finish.")
    for text in result["missed"]:
        yield f"- missed: {text}"
    for end in result["sections"]:
        if end["outcome"] != "ok":
            yield f"- {end['section']} {end['outcome']}: {end['detail']}"
    for section, rows in groupby(result["rows"], key=lambda row: str(row["section"])):
        yield from ("", f"### {section}", "")
        yield from _table(" what|value| bar|p50|p95|n| how, and remarks", [_gpu_row(row) for row in rows])
    if judged:
        yield from _picture(name, "measured values over their bars")


def _gpu_row(row: Mapping[str, Any]) -> str:
    samples = row["samples"]
    numbers = [f"{samples[one]:.4g}" for one in ("p50", "p95")] + [samples["n"]] if samples else ["", "", ""]
    remarks = "; ".join(part for part in (row["formula"], row["note"]) if part)
    goal = f" (goal {row['goal']:.0%})" if row["goal"] is not None else ""
    return _cells(row["name"], shown_value(row), shown_bar(row) + goal, *numbers, remarks)


def rows_section(name: str, result: Result) -> Iterator[str]:
    """Every row in one table, with its bar."""
    yield _measured_with(name, result) + f" {result['cores']} cores."
    for text in result["missed"]:
        yield f"- missed: {text}"
    yield ""
    rows = [row | {"name": f"{row['section']}: {row['name']}"} for row in result["rows"]]
    yield from _table(" what|value| bar|p50|p95|n| how, and remarks", [_gpu_row(row) for row in rows])


def follow_up_section(name: str, result: Result) -> Iterator[str]:
    """First tokens of both questions."""
    yield _measured_with(name, result)
    yield (
        f"{result['model']}; {result['frames']} frames of {result['width']}×{result['height']} are "
        f"{result['visual_tokens']:,} visual tokens, the second question brings {result['new_tokens']} new ones. "
        f"Second over first: **{result['ratio']:.2%}** (bar ≤ {result['bar']:.0%}, {_met(result['ok'])})."
    )
    yield ""
    rows = [
        _cells(f"{which} question", *(f"{samples[one]:.3f} s" for one in ("p50", "p95")), samples["n"])
        for which, samples in result["first_token_s"].items()
    ]
    yield from _table(" first token of the|p50|p95|n", rows)


def _met(ok: bool) -> str:
    return "met" if ok else "missed"


def memory_section(name: str, result: Result) -> Iterator[str]:
    """Planned against measured peaks."""
    bars, rows = result["bars"], result["rows"]
    yield _measured_with(name, result)
    yield (
        f"{bars['plans']} plans: the prediction is off by {bars['median_error']:.1%} (median) and "
        f"{bars['p95_error']:.1%} (95th percentile), at worst {format_bytes(bars['worst_under_bytes'])} too low; "
        f"{bars['out_of_memory']} ran out of memory."
    )
    yield ""
    yield from _table(
        " model| weights|cap|frames|size|tokens|planned|measured|planned too much", [_memory_row(row) for row in rows]
    )
    yield from _picture(name, "planned over measured peaks")


def _taken(row: Mapping[str, Any]) -> int:
    return int(row["runtime"] + row["reserved"])


def _memory_row(row: Mapping[str, Any]) -> str:
    ended = "out of memory" if row["out_of_memory"] else "stopped" if row.get("stopped") else ""
    off = ended or f"{row['predicted'] / _taken(row) - 1:+.1%}"
    return _cells(
        row["model"], row["weights"], f"{row['cap_gib']:.1f} GiB", row["frames"], f"{row['width']}×{row['height']}",
        f"{row['tokens']:,}", format_bytes(row["predicted"]), format_bytes(_taken(row)), off,
    )  # fmt: skip


def precisions_section(name: str, result: Result) -> Iterator[str]:
    """Return the table of accuracy by precision of the demo model's weights."""
    yield _measured_with(name, result)
    yield f"{result['clips']:,} clips, {result['questions_per_clip']} questions each, the same for every precision."
    yield ""
    rows = [
        _cells(
            weights, format_bytes(row["weights_bytes"]), f"{row['right']:.2%}", f"{row['count']:,}",
            f"{row['points']:+.2f} ± {row['points_error']:.2f}", f"{row['kl_mean']:.1e}", f"{row['kl_p99']:.1e}",
        )
        for weights, row in result["rows"].items()
    ]  # fmt: skip
    yield from _table(" weights|bytes|right|of|points against fp32|mean KL|p99 KL", rows)
    for text in result["missed"]:
        yield f"- missed: {text}"


def sweep_section(name: str, result: Result) -> Iterator[str]:
    """Peaks and first tokens over frame counts or sizes, both sides."""
    yield f"`{name}`: {result['model']} on {result['device']['name']}, over {result['swept']}."
    yield ""
    yield from _table(" side|frames|size|tokens|planned|peak|first token", [_sweep_row(row) for row in result["rows"]])
    yield from _picture(name, f"peak memory and first token over {result['swept']}")


def _sweep_row(row: Mapping[str, Any]) -> str:
    planned, peak, seconds = row["predicted_peak_bytes"], row["peak_bytes"], row["first_token_s"]
    return _cells(
        row["side"], row["frames"], f"{row['width']}×{row['height']}", f"{row['visual_tokens']:,}",
        "–" if planned is None else format_bytes(planned),
        row["outcome"].replace("_", " ") if peak is None else format_bytes(peak),
        "–" if seconds is None else f"{seconds:.2f} s",
    )  # fmt: skip


# Kind: title, what is said where there is none, and the section of one result.
_SECTIONS: dict[str, tuple[str, str, Callable[[str, Result], Iterator[str]]]] = {
    "gpu": ("GPU", "Not measured yet: `scripts/gpu_check` has not been run on a GPU.", gpu_section),
    "follow-up": ("Follow-up questions", "Not measured yet: `scripts/bench_follow_up.py`.", follow_up_section),
    "tui": ("The interactive session", "Not measured yet: `scripts/bench_tui.py`.", rows_section),
    "caption": ("Captioning a folder", "Not measured yet: `scripts/bench_caption.py`.", rows_section),
    "scaling": ("Captioning on several workers", "Not measured yet: `scripts/bench_scaling.py`.", rows_section),
    "latency": ("Predicted against measured time", "Not measured yet: `scripts/bench_latency.py`.", rows_section),
    "cpu-weights": ("Precisions on a CPU", "Not measured yet: `scripts/bench_cpu.py`.", rows_section),
    "domain": ("What the demo model's check lets pass", "Not measured yet: `scripts/bench_domain.py`.", rows_section),
    "focus": ("Frames by change and by question", "Not measured yet: `scripts/bench_focus.py`.", rows_section),
    "hour": ("First tokens of long videos", "Not measured yet: `scripts/bench_hour.py`.", rows_section),
    "prune": ("Dropped visual tokens", "Not measured yet: `scripts/bench_prune.py`.", rows_section),
    "memory": ("Planned against measured memory", "Not measured yet: `scripts/bench_memory.py`.", memory_section),
    "precisions": (
        "Precisions", "Not measured yet: `scripts/eval_demo_model.py --precisions all`.", precisions_section,
    ),
    "sweep": ("Sweeps", "Not measured yet: `vidqa sweep VIDEO --baseline --json`.", sweep_section),
}  # fmt: skip


def draw(name: str, result: Result, folder: Path) -> str | None:
    """Draw a result's plot if it has one; return the file's name."""
    path = folder / f"{name}.svg"
    kind = kind_of(name, result)
    if kind == "sweep":
        rows = [_swept(row) for row in result["rows"]]
        title = f"{result['model']} on {result['device']['name']}"
        limit = result["limit_bytes"]
        draw_sweep(rows, title, str(path), over_sizes=result["swept"] == "sizes", limit_bytes=limit)
    elif kind == "memory":
        _draw_memory(result, path)
    elif kind == "gpu" and any(row["bar"] is not None for row in result["rows"]):
        _draw_bars(result, path)
    else:
        return None
    return path.name


def _swept(row: Mapping[str, Any]) -> SweepRow:
    values = dict(row)
    return SweepRow(**(values | {"first_token_seconds": values.pop("first_token_s"), "notes": tuple(values["notes"])}))


def _draw_memory(result: Result, path: Path) -> None:
    figure = new_figure(1)
    axes = figure.subplots()
    largest = 0.0
    for (model, weights), rows in groupby(result["rows"], key=lambda row: (row["model"], row["weights"])):
        points = [(_taken(row) / _GIB, row["predicted"] / _GIB) for row in rows]
        axes.plot(*zip(*points, strict=True), "o", label=f"{model} {weights}", markersize=4)
        largest = max(largest, *(value for point in points for value in point))
    axes.plot((0, largest), (0, largest), color="black", linewidth=0.8, label="equal")
    axes.set_xlabel("measured peak, GiB")
    axes.set_ylabel("planned peak, GiB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save(figure, str(path))


def _draw_bars(result: Result, path: Path) -> None:
    """Each judged row as a multiple of its bar: met from 1 on, for bars from either side."""
    figure = new_figure(2)
    axes = figure.subplots()
    rows = [row for row in reversed(result["rows"]) if row["bar"] is not None and row["value"]]
    over = [row["value"] / row["bar"] if row["sense"] == ">=" else row["bar"] / row["value"] for row in rows]
    colours = ["#1b7f5c" if row["ok"] else "#b5452c" for row in rows]
    axes.barh([f"{row['section']}: {row['name']}" for row in rows], over, color=colours)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("how far past its bar (1 meets it)")
    save(figure, str(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=RESULTS.parent, help="folder of README.md and the plots")
    arguments = parser.parse_args()
    results = load(arguments.results)
    (arguments.output / "README.md").write_text(render(results), encoding="utf-8")
    if not can_draw():
        print("matplotlib is not installed: the plots stay as they are")
        return 0
    drawn = [draw(name, result, arguments.output) for name, result in results.items()]
    print("README.md, " + ", ".join(name for name in drawn if name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
