"""Benchmark results: rows with samples, bars to reach, tables and files. Imports no torch."""

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True)
class Samples:
    """Repeated measurements: median, 95th percentile (nearest rank), and how many there are."""

    p50: float
    p95: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Samples":
        """Of at least one value."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[-(-95 * len(ordered) // 100) - 1], len(ordered))


@dataclass(frozen=True, slots=True)
class Bar:
    """A value to reach (`>=` or `<=`) or to exceed (`>`), and a goal beyond it."""

    value: float
    sense: Literal[">=", "<=", ">"] = ">="
    goal: float | None = None

    def met_by(self, value: float) -> bool:
        """Return whether a measured value reaches the bar."""
        senses = {">=": value >= self.value, "<=": value <= self.value, ">": value > self.value}
        return senses[self.sense]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value; None if it could not be measured, for the reason in `note`."""

    section: str
    name: str
    value: float | None
    unit: str
    formula: str
    samples: Samples | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """The name by which a bar refers to the row."""
        return f"{self.section}: {self.name}"


def seconds_row(section: str, name: str, seconds: Sequence[float], note: str = "") -> Row:
    """Return a row with the median of repeated times."""
    samples = Samples.of(seconds)
    return Row(section, name, samples.p50, "s", "median", samples, note)


def comparison_rows(section: str, label: str, made: Mapping[str, Sequence[float]], note: str = "") -> Iterator[Row]:
    """Yield rows with the times of all sides, and how many times faster `vidqa` is than each other side."""
    for side, seconds in made.items():
        yield seconds_row(section, f"{label}, {side}", seconds)
    ours = Samples.of(made["vidqa"]).p50
    for side, seconds in made.items():
        if side != "vidqa":
            ratio = Samples.of(seconds).p50 / ours
            yield Row(section, f"{label}, times {side}", ratio, "×", "medians of alternating runs", note=note)


def row_from(fields: Mapping[str, Any]) -> Row:
    """Return the row of a `dataclasses.asdict` object."""
    samples = fields["samples"]
    return Row(**{**fields, "samples": Samples(**samples) if samples else None})


def row_object(row: Row, bar: Bar | None) -> dict[str, Any]:
    """Return a row as it is written: with its bar (or null) and whether it is met."""
    ok = None if bar is None or row.value is None else bar.met_by(row.value)
    fields: dict[str, Any] = {"section": row.section, "name": row.name, "value": row.value, "unit": row.unit}
    fields |= {"bar": bar and bar.value, "sense": bar and bar.sense, "goal": bar and bar.goal, "ok": ok}
    return fields | {"formula": row.formula, "samples": row.samples and asdict(row.samples), "note": row.note}


def missed(rows: Iterable[Row], bars: Mapping[str, Bar], excused: Iterable[str] = ()) -> list[str]:
    """Return a line for each bar that no row meets, without those of the `excused` sections."""
    values = {row.key: row.value for row in rows}
    prefixes = tuple(f"{section}: " for section in excused)
    lines = []
    for key, bar in bars.items():
        value = values.get(key)
        if value is None and not key.startswith(prefixes):
            lines.append(f"{key}: not measured ({bar.sense} {bar.value:g} is the bar)")
        elif value is not None and not bar.met_by(value):
            lines.append(f"{key}: {value:.4g} is not {bar.sense} {bar.value:g}")
    return lines


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return lines of text for row objects: a block per section, with formulas."""
    lines, section = [], ""
    for row in rows:
        if row["section"] != section:
            section = row["section"]
            lines.append(f"\n{section}")
        lines.append("  " + _line(row))
    return lines


def _line(row: Mapping[str, Any]) -> str:
    samples = row["samples"]
    spread = f"p50 {samples['p50']:.4g} p95 {samples['p95']:.4g} n {samples['n']}" if samples else ""
    note = f"  [{row['note']}]" if row["note"] else ""
    return f"{row['name']:<44}{shown_value(row):>14}  {shown_bar(row):<18}{spread:<34}{row['formula']}{note}"


def shown_value(row: Mapping[str, Any]) -> str:
    """Return a value with its unit, or a dash."""
    value, unit = row["value"], row["unit"]
    if value is None:
        return "–"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.4g} {unit}".strip()


def shown_bar(row: Mapping[str, Any]) -> str:
    """Return the bar and whether it is met, or nothing without a bar."""
    if row["bar"] is None:
        return ""
    bar = f"{row['bar']:.0%}" if row["unit"] == "share" else f"{row['bar']:g}"
    verdict = {True: "ok", False: "MISSED", None: "not measured"}[row["ok"]]
    return f"{row['sense']} {bar} {verdict}"


def environment(device: str = "") -> dict[str, str]:
    """Return the versions and the device of the figures; by default this machine's CPU."""
    import torch
    import transformers

    name = device or platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file atomically, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def report(kind: str, rows: Iterable[Row], bars: Mapping[str, Bar], path: Path) -> int:
    """Print and write the rows of a benchmark on this machine's CPU, and the missed bars; return the exit code."""
    seen = []
    for row in rows:
        seen.append(row)
        print(*table([row_object(row, bars.get(row.key))])[1:], flush=True)
    misses = missed(seen, bars)
    objects = [row_object(row, bars.get(row.key)) for row in seen]
    write_result(path, {
        "kind": kind, "environment": environment(), "cores": os.cpu_count(), "missed": misses, "rows": objects,
    })  # fmt: skip
    print("\n".join(["", *(f"missed: {one}" for one in misses)]) if misses else "all bars are met")
    return 1 if misses else 0
