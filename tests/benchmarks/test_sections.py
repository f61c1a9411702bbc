"""Sections in processes: their rows and shares of the time, and what happens to one that fails, hangs or dies."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchlib.rows import Bar, Row, Samples, missed, row_from, row_object, table
from benchlib.sections import (
    Assignment,
    Results,
    Skipped,
    TimeUp,
    run_in_children,
    run_limited,
    run_section,
    time_limit,
)

SCRIPTS = Path(__file__).parents[2] / "scripts"


def scripted(*steps: Any) -> Any:
    """A section that yields, raises or waits by script."""

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
    sent: list[dict[str, Any]] = []
    assert run_section("one", scripted(*steps), None, 0.2, sent.append) is good
    assert [message["row"]["name"] for message in sent if "row" in message] == [s for s in steps if isinstance(s, str)]
    assert sent[-1]["ended"]["outcome"] == outcome
    assert "at length" not in sent[-1]["ended"]["detail"]


# A child whose sections do as they are named; an unusable bench after "broken".
CHILD = """
import os, sys, time
sys.path.insert(0, {scripts!r})
from benchlib.rows import Row
from benchlib.sections import run_child

class Bench:
    def usable(self): return "broken" not in ran

ran = []
def section(name):
    def run(bench):
        ran.append(name)
        yield Row(name, "process", os.getpid(), "", "")
        if name == "dies": os._exit(3)
        if name == "hangs":
            import signal
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            time.sleep(60)
        if name in ("broken", "raises"): raise ValueError("no")
    return run

names = ("first", "dies", "hangs", "broken", "raises", "last", "other")
run_child(int(sys.argv[-1]), lambda: None, lambda tell: (dict((name, section(name)) for name in names), Bench()))
"""


def run_scripted(
    groups: Sequence[Sequence[str]], monkeypatch: pytest.MonkeyPatch, child: str = CHILD, budget: float = 30.0
) -> tuple[Results, list[int]]:
    """What is found of those sections, and how many rows were there at each change."""
    monkeypatch.setattr("benchlib.sections.GRACE_SECONDS", 0.3)
    seen: list[int] = []
    limits = [dict.fromkeys(group, 1.0) for group in groups]
    words = [sys.executable, "-c", child.format(scripts=str(SCRIPTS))]
    return run_in_children(limits, budget, words, lambda found: seen.append(len(found.rows))), seen


def process_of(found: Results) -> dict[str, float]:
    return {row.section: row.value for row in found.rows}


def test_a_process_that_dies_or_breaks_costs_its_section_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seen = run_scripted([("first", "dies", "raises", "broken", "last"), ("other",)], monkeypatch)
    ends = {end["section"]: (end["outcome"], end["detail"]) for end in found.ends}
    assert ends["first"] == ends["last"] == ends["other"] == ("ok", "")
    assert ends["dies"] == ("failed", "its process ended with exit code 3")
    assert ends["broken"] == ends["raises"] == ("failed", "ValueError: no")
    ran = process_of(found)
    assert list(ran) == ["first", "dies", "raises", "broken", "last", "other"]
    assert (
        ran["first"] == ran["dies"] != ran["raises"] == ran["broken"]
    )  # an error that breaks nothing keeps its process
    assert len({ran["broken"], ran["last"], ran["other"]}) == 3
    assert seen[0] == 1  # rows arrive before their section ends


def test_a_hang_is_killed_at_its_share_and_its_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    found, _ = run_scripted([("hangs", "last")], monkeypatch, budget=6.0)
    ends = {end["section"]: end for end in found.ends}
    assert ends["hangs"]["outcome"] == "timed out" and ends["hangs"]["detail"].startswith("it hung: killed after 3 s")
    assert ends["last"]["outcome"] == "ok"
    assert list(process_of(found)) == ["hangs", "last"]
    assert time.monotonic() - began < 6.5


def test_processes_that_never_begin_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run_scripted([("first", "last")], monkeypatch, "raise SystemExit(2)")
    assert [end["outcome"] for end in found.ends] == ["failed", "failed"]
    assert {end["detail"] for end in found.ends} == {"its process ended before it began"}


def test_no_device_is_said_of_every_section(monkeypatch: pytest.MonkeyPatch) -> None:
    child = CHILD.replace("lambda tell: (dict(", "lambda tell: (1 / 0, dict(")
    found, _ = run_scripted([("first", "last"), ("other",)], monkeypatch, child)
    assert [end["section"] for end in found.ends] == ["first", "last", "other"]
    assert {end["detail"] for end in found.ends} == {"ZeroDivisionError: division by zero"}


def test_a_process_that_never_imports_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchlib.sections._START_SECONDS", 0.2)
    found, _ = run_scripted([("first",)], monkeypatch, "import time; time.sleep(60)")
    assert [end["outcome"] for end in found.ends] == ["failed"]


def test_the_budget_of_all_sections_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = run_scripted([("first", "last")], monkeypatch, budget=0)
    assert [end["outcome"] for end in found.ends] == ["timed out", "timed out"]
    assert found.ends[0]["detail"] == "the 0 s of all sections were over"


def test_time_that_is_left_is_shared_by_limits() -> None:
    order = Assignment({"a": 10.0, "b": 30.0}, 60.0, time.monotonic() + 200.0)
    assert order.share("a") == pytest.approx(20.0, abs=0.5)
    assert order.share("b") == pytest.approx(200 * 30 / 90, abs=0.5)  # a has ended at once: b and what follows gain
    late = Assignment({"a": 10.0}, 0.0, time.monotonic() - 1)
    assert late.share("a") < 0


def test_a_limit_inside_of_another_one() -> None:
    assert run_limited(lambda: None, 5.0) == "ok"
    with time_limit(5.0):
        assert run_limited(lambda: time.sleep(5), 0.1) == "stopped"
        time.sleep(0.1)  # the outer one goes on
    began = time.monotonic()
    with pytest.raises(TimeUp), time_limit(0.2):
        assert run_limited(lambda: time.sleep(5), 3.0) == "stopped"  # by the outer one, which ends itself next
        time.sleep(5)
    assert time.monotonic() - began < 1
    time.sleep(0.05)  # nothing is left over


def test_out_of_memory_is_an_end_and_other_errors_are_not() -> None:
    def raises(error: Exception) -> Any:
        raise error

    for error in (torch.OutOfMemoryError("x"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x")):
        assert run_limited(lambda error=error: raises(error), 5.0) == "out of memory"  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_limited(lambda: raises(RuntimeError("CUDA error: an illegal memory access")), 5.0)


def test_bars_are_judged_from_their_side() -> None:
    bars = {"s: fast": Bar(2.0), "s: small": Bar(0.1, "<="), "s: gone": Bar(1.0), "skipped: x": Bar(1.0)}
    rows = [Row("s", "fast", 1.5, "×", ""), Row("s", "small", 0.05, "share", "")]
    assert missed(rows, bars, ["skipped"]) == ["s: fast: 1.5 is not >= 2", "s: gone: not measured (>= 1 is the bar)"]
    objects = [row_object(row, bars.get(row.key)) for row in rows]
    assert [row["ok"] for row in objects] == [False, True]
    assert "MISSED" in "\n".join(table(objects))


def test_rows_travel() -> None:
    for row in (Row("s", "a", 1.0, "s", "f", Samples(1.0, 2.0, 3), "n"), Row("s", "b", None, "", "")):
        assert row_from(asdict(row)) == row


def test_percentiles() -> None:
    assert Samples.of([3.0, 1.0, 2.0]) == Samples(2.0, 3.0, 3)
    assert Samples.of([float(value) for value in range(1, 101)]).p95 == 95.0
