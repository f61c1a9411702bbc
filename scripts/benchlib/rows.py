"""What a benchmark says: rows with samples, the bars they are held against, tables and files. Imports no torch."""

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
    """A number to reach, from which side, and the number that is hoped for."""

    value: float
    sense: Literal[">=", "<="] = ">="
    goal: float | None = None

    def met_by(self, value: float) -> bool:
        """Whether a measured value reaches it."""
        return value >= self.value if self.sense == ">=" else value <= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value; None where it could not be measured, and `note` says why."""

    section: str
    name: str
    value: float | None
    unit: str
    formula: str
    samples: Samples | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """How bars name it."""
        return f"{self.section}: {self.name}"


def seconds_row(section: str, name: str, seconds: Sequence[float], note: str = "") -> Row:
    """A row of repeated times: its value is the median."""
    samples = Samples.of(seconds)
    return Row(section, name, samples.p50, "s", "median", samples, note)


def beside(section: str, label: str, made: Mapping[str, Sequence[float]], note: str = "") -> Iterator[Row]:
    """Times of all sides, and how many times faster `vidqa` is than each other one."""
    for side, seconds in made.items():
        yield seconds_row(section, f"{label}, {side}", seconds)
    ours = Samples.of(made["vidqa"]).p50
    for side, seconds in made.items():
        if side != "vidqa":
            ratio = Samples.of(seconds).p50 / ours
            yield Row(section, f"{label}, times {side}", ratio, "×", "medians of alternating runs", note=note)


def row_from(fields: Mapping[str, Any]) -> Row:
    """The row that `dataclasses.asdict` made an object of."""
    samples = fields["samples"]
    return Row(**{**fields, "samples": Samples(**samples) if samples else None})


def row_object(row: Row, bar: Bar | None) -> dict[str, Any]:
    """A row with its bar (or null) and whether it is met, as it is written."""
    ok = None if bar is None or row.value is None else bar.met_by(row.value)
    told: dict[str, Any] = {"section": row.section, "name": row.name, "value": row.value, "unit": row.unit}
    told |= {"bar": bar and bar.value, "sense": bar and bar.sense, "goal": bar and bar.goal, "ok": ok}
    return told | {"formula": row.formula, "samples": row.samples and asdict(row.samples), "note": row.note}


def missed(rows: Iterable[Row], bars: Mapping[str, Bar], excused: Iterable[str] = ()) -> list[str]:
    """The bars that no row meets, in words; those of the `excused` sections were never asked."""
    values = {row.key: row.value for row in rows}
    left_out = tuple(f"{section}: " for section in excused)
    told = []
    for key, bar in bars.items():
        value = values.get(key)
        if value is None and not key.startswith(left_out):
            told.append(f"{key}: not measured ({bar.sense} {bar.value:g} is the bar)")
        elif value is not None and not bar.met_by(value):
            told.append(f"{key}: {value:.4g} is not {bar.sense} {bar.value:g}")
    return told


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of text for row objects: a block per section, formulas beside the values."""
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
    """A value with its unit; a dash where there is none."""
    value, unit = row["value"], row["unit"]
    if value is None:
        return "–"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.4g} {unit}".strip()


def shown_bar(row: Mapping[str, Any]) -> str:
    """The bar and whether it is met; nothing where there is none."""
    if row["bar"] is None:
        return ""
    bar = f"{row['bar']:.0%}" if row["unit"] == "share" else f"{row['bar']:g}"
    told = {True: "ok", False: "MISSED", None: "not measured"}[row["ok"]]
    return f"{row['sense']} {bar} {told}"


def environment(device: str = "") -> dict[str, str]:
    """What the figures were measured with: on the named device, else on this machine's processor."""
    import torch
    import transformers

    name = device or platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file, its folder too; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def report(kind: str, rows: Iterable[Row], bars: Mapping[str, Bar], path: Path) -> int:
    """Print rows of this machine's processor as they come, write them, name the bars that are missed; the exit code."""
    seen = []
    for row in rows:
        seen.append(row)
        print(*table([row_object(row, bars.get(row.key))])[1:], flush=True)
    left = missed(seen, bars)
    told = [row_object(row, bars.get(row.key)) for row in seen]
    write_result(path, {
        "kind": kind, "environment": environment(), "cores": os.cpu_count(), "missed": left, "rows": told,
    })  # fmt: skip
    print("\n".join(["", *(f"missed: {one}" for one in left)]) if left else "all bars are met")
    return 1 if left else 0
