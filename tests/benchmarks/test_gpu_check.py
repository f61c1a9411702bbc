"""The GPU benchmark itself: every section on a toy, and what happens to a section that fails, hangs or dies."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bench_gpu import BARS, LIMITS, sections

from benchlib.rows import Bar, Row, Samples, missed, row_object, table
from benchlib.sections import Found, Skipped, run_here, run_in_children

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.py"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of every section on a CPU wrote."""
    path = tmp_path_factory.mktemp("results") / "toy.json"
    words = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--output", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decode-2b" in done.stdout
    written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return written


def test_every_section_runs_on_a_toy(toy: dict[str, Any]) -> None:
    assert [end["section"] for end in toy["sections"]] == list(LIMITS)
    assert {end["outcome"] for end in toy["sections"]} <= {"ok", "skipped"}
    assert toy["finished"] and toy["tiny"] and toy["missed"] == []
    assert set(toy["environment"]) == {"device", "torch", "transformers", "python", "date"}


def test_rows_have_one_shape_and_numbers(toy: dict[str, Any]) -> None:
    shape = {"section", "name", "value", "unit", "bar", "sense", "goal", "ok", "formula", "samples", "note"}
    for row in toy["rows"]:
        assert set(row) == shape
        assert row["bar"] is None and row["ok"] is None  # nothing is judged on a toy
        assert row["value"] is None or row["value"] >= 0
        assert row["value"] is not None or row["note"]
        assert row["samples"] is None or 0 < row["samples"]["p50"] <= row["samples"]["p95"]
    for section, outcome in ((end["section"], end["outcome"]) for end in toy["sections"]):
        assert outcome == "skipped" or any(row["section"] == section for row in toy["rows"])


def test_a_toy_is_exact(toy: dict[str, Any]) -> None:
    exact = {row["name"]: row["value"] for row in toy["rows"] if row["section"] == "exactness"}
    assert exact["vidqa in fp32 against transformers in fp32"] == 1.0
    assert exact["captured step against eager one in fp32"] == 1.0


def test_every_bar_is_some_sections_row(toy: dict[str, Any]) -> None:
    """A bar whose row nobody writes would be missed for ever: names are those of the toy, sizes apart."""
    there = {f"{row['section']}: {row['name']}" for row in toy["rows"]}
    sized = ("vision: ", "first-token-", "nf4: 7b")
    assert {key for key in BARS if not key.startswith(sized)} <= there | {key for key in BARS if key[:3] == "nf4"}
    assert set(sections()) == set(LIMITS) >= {key.partition(": ")[0] for key in BARS}


def scripted(*steps: Any) -> Any:
    """A section that yields, raises or waits as it is told."""

    def section(bench: Any) -> Iterator[Row]:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                time.sleep(step)
            else:
                yield Row("scripted", step, 1.0, "s", "")

    return section


@pytest.mark.parametrize(
    ("steps", "outcome", "good"),
    [
        (("a", "b"), "ok", True),
        (("a", ValueError("broken\nat length")), "failed", False),
        (("a", Skipped("not here")), "skipped", True),
        (("a", 30.0), "timed out", False),
    ],
)
def test_rows_before_the_end_are_kept(steps: tuple[Any, ...], outcome: str, good: bool) -> None:
    told: list[dict[str, Any]] = []
    assert run_here("one", scripted(*steps), None, 0.2, told.append) is good
    assert [message["row"]["name"] for message in told if "row" in message] == [s for s in steps if isinstance(s, str)]
    assert told[-1]["ended"]["outcome"] == outcome
    assert "at length" not in told[-1]["ended"]["detail"]


# A child that dies in the section `dies` and hangs in `hangs`; its arguments are the sections and the descriptor.
CHILD = """
import json, os, sys, time
def tell(**message): os.write(int(sys.argv[2]), json.dumps(message).encode() + b"\\n")
for name in sys.argv[1].split(","):
    tell(began=name, limit_seconds=0.2)
    tell(row=dict(section=name, name="x", value=1.0, unit="", formula="", samples=None, note=""))
    if name == "dies": os._exit(3)
    if name == "hangs": time.sleep(60)
    tell(ended=dict(section=name, outcome="ok", detail="", seconds=0.0))
"""


def run_scripted(
    names: Sequence[str], monkeypatch: pytest.MonkeyPatch, child: str = CHILD, budget: float = 60
) -> tuple[Found, int]:
    """What is found of those sections, and how many processes it took."""
    monkeypatch.setattr("benchlib.sections.GRACE_SECONDS", 0.3)
    started: list[Sequence[str]] = []

    def command(left: Sequence[str], seconds: float) -> list[str]:
        started.append(left)
        return [sys.executable, "-c", child, ",".join(left)]

    return run_in_children(dict.fromkeys(names, 1.0), budget, command, lambda found: None), len(started)


def test_a_process_that_dies_or_hangs_costs_its_section_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found, processes = run_scripted(("first", "dies", "hangs", "last"), monkeypatch)
    ends = {end["section"]: (end["outcome"], end["detail"]) for end in found.ends}
    assert ends["first"] == ends["last"] == ("ok", "")
    assert ends["dies"] == ("failed", "its process ended with exit code 3")
    assert ends["hangs"] == ("failed", "its process was ended by signal 9")
    assert [row.section for row in found.rows] == ["first", "dies", "hangs", "last"]
    assert processes == 3


def test_processes_that_never_begin_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, processes = run_scripted(("one", "two", "three"), monkeypatch, "raise SystemExit(2)")
    assert [end["outcome"] for end in found.ends] == ["failed", "failed", "failed"]
    assert processes == 2


def test_the_budget_of_all_sections_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found, processes = run_scripted(("one", "two"), monkeypatch, budget=0)
    assert [end["outcome"] for end in found.ends] == ["timed out", "timed out"]
    assert processes == 0


def test_bars_are_judged_from_their_side() -> None:
    bars = {"s: fast": Bar(2.0), "s: small": Bar(0.1, "<="), "s: gone": Bar(1.0), "skipped: x": Bar(1.0)}
    rows = [Row("s", "fast", 1.5, "×", ""), Row("s", "small", 0.05, "share", "")]
    assert missed(rows, bars, ["skipped"]) == ["s: fast: 1.5 is not >= 2", "s: gone: not measured (>= 1 is the bar)"]
    objects = [row_object(row, bars.get(row.key)) for row in rows]
    assert [row["ok"] for row in objects] == [False, True]
    assert "MISSED" in "\n".join(table(objects))


def test_percentiles() -> None:
    assert Samples.of([3.0, 1.0, 2.0]) == Samples(2.0, 3.0, 3)
    assert Samples.of([float(value) for value in range(1, 101)]).p95 == 95.0
