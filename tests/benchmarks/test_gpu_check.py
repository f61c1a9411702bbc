"""The GPU check itself: a rehearsal runs its lines on a CPU, and no section that fails, hangs or dies costs another."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu_check import BARS, BUDGET_SECONDS, PARTS, chosen, exit_code, main, processes, report, short_table, target
from render_benchmarks import render

from benchlib.rows import Row
from benchlib.sections import Results
from tests.benchmarks.lines import not_run, tracing

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "gpu_check.py"
FILES = (SCRIPT, *sorted((SCRIPTS / "benchlib").glob("*.py")))
# Functions that a rehearsal does not run, or not to their last line: why that is no risk on a device.
ELSEWHERE = {
    "accelerator.py": {  # only a GPU runs them
        "Cuda.__init__", "Cuda.wait", "Cuda.cap", "Cuda.peak", "Cuda.runtime_bytes", "Cuda.driver_bytes",
    },
    "bench.py": {"Bench.spec", "Bench.usable"},  # the full size's spec; after a failed section: tested in test_benchlib
    "models.py": {"write_random_model", "_small"},  # other benches' (int8): tested in test_benchlib
    "rows.py": {"table", "_line", "report", "Bar.met_by", "missed", "shown_bar"},  # other benches'; judging: below
    "runs.py": {"TimedRun.tokens_per_s"},  # bench_engine's
    "conversions.py": {"compare_conversions", "milliseconds", "render"},  # bench_video's
    "drawn.py": {"MemorySource.scan"},  # frames are even there
    "paired.py": {  # bench_focus's and bench_prune's
        "Marks", "ask_all", "paired", "of_side", "times_fewer", "with_sides", "measure_clips",
        "compare_clips", "compare_clips.rows", "_shares", "_kept", "_begin", "current_session",
    },
    # Wrong arguments, signals, and sections that fail, are skipped or have no time: tested here and there.
    "gpu_check.py": {"chosen", "stopped", "main", "parent"},
    "sections.py": {
        "time_limit.over", "run_limited", "run_section", "run_child", "_die_with_parent", "_Child.messages",
        "run_in_children", "error_line", "_Runner.run", "_Runner._one", "_Runner.close",
    },
    "decoding.py": {"decoding.measure"}, "device_tests.py": {"device_tests", "_rows", "row_of"},
    "planned.py": {"planned.run", "make_plans", "measure"},
    "captioning.py": {"captioning", "speed_rows"}, "prefilling.py": {"_prefill_rows"},
    "exactness.py": {"_agreement", "sessions"}, "capped_sweep.py": {"capped_sweep"},
}  # fmt: skip
MOST_LINES_LEFT = 85  # of those, the whole functions of other benches left out


def test_a_rehearsal(tmp_path: Path) -> None:
    """One test, since each process of a parallel run would rehearse anew for its share of several."""
    rehearsal = rehearse(tmp_path)
    every_section_is_rehearsed(rehearsal)
    rows_have_one_shape_and_numbers(rehearsal)
    every_bar_is_some_sections_row(rehearsal)
    a_toy_is_exact_and_its_memory_as_planned(rehearsal)
    no_line_runs_on_a_device_first(rehearsal)


Rehearsal = tuple[dict[str, Any], str, dict[str, dict[str, list[int]]]]


def rehearse(folder: Path) -> Rehearsal:
    """What a rehearsal wrote and printed, and the lines of the scripts that it did not run."""
    traced = tracing(folder, FILES) | {"OUT": str(folder / "out"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), "--rehearse"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=traced, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    written: dict[str, Any] = json.loads((folder / "out" / "gpu-rehearsal.json").read_text(encoding="utf-8"))
    return written, done.stdout, not_run(folder, FILES)


def every_section_is_rehearsed(rehearsal: Rehearsal) -> None:
    result, printed, _ = rehearsal
    ran = [name for group in processes(PARTS) for name in group]
    assert [end["section"] for end in result["sections"]] == ran
    ends = {end["section"]: end for end in result["sections"]}
    assert {name for name, end in ends.items() if end["outcome"] != "ok"} == set(), ends
    assert result["finished"] and result["tiny"] and result["missed"] == []
    assert set(result["environment"]) == {"device", "torch", "transformers", "python", "date"}
    table = printed.rpartition("\n\n")[2]
    assert len(table) < 12_000
    assert all(f"\n{name:<16}ok" in table for name in PARTS)
    page = render({"gpu-rehearsal": result})
    assert "0 of 0 measured bars are met." in page and "### captured-step" in page


def rows_have_one_shape_and_numbers(rehearsal: Rehearsal) -> None:
    shape = {"section", "name", "value", "unit", "bar", "sense", "goal", "ok", "formula", "samples", "note"}
    for row in rehearsal[0]["rows"]:
        assert set(row) == shape
        assert row["bar"] is None and row["ok"] is None  # nothing is judged on a toy
        assert row["value"] is not None or row["note"], row
        assert row["samples"] is None or 0 < row["samples"]["p50"] <= row["samples"]["p95"]
    names = [f"{row['section']}: {row['name']}" for row in rehearsal[0]["rows"]]
    assert len(names) == len(set(names))


def every_bar_is_some_sections_row(rehearsal: Rehearsal) -> None:
    there = {f"{row['section']}: {row['name']}" for row in rehearsal[0]["rows"]}
    compiled = {"flex: 2b heads, flex", "flex: 7b heads, flex"}  # a CPU compiles it for half a minute
    assert set(BARS) - compiled <= there
    assert {key.partition(": ")[0] for key in BARS} <= set(PARTS)


def a_toy_is_exact_and_its_memory_as_planned(rehearsal: Rehearsal) -> None:
    values = {f"{row['section']}: {row['name']}": row["value"] for row in rehearsal[0]["rows"]}
    for key, bar in BARS.items():
        exact = key.startswith(("kernels: ", "answers: ", "captured-step: ", "sessions: ")) and "cudnn" not in key
        exact = exact and not key.endswith(", fused layers")  # Triton runs on GPUs
        if exact or key.endswith((": measured above planned and margin", ": out of memory or stopped")):
            assert values[key] is not None and bar.met_by(values[key]), (key, values[key])
    assert values["memory-2b: plans"] == values["memory-nf4: plans"] == 3
    assert values["memory-2b: median error"] < 0.03 and values["memory-7b: median error"] < 0.03
    # The sweep's cap is one: attention without a fused kernel dies under it, and a plan says what does not fit.
    assert values["sweep: transformers, unfused attention: out of memory from"] == 2
    assert values["sweep: transformers: out of memory from"] is None
    assert values["sweep: vidqa, most frames"] == 4
    assert values["sweep: 2 frames, vidqa"] < values["sweep: 2 frames, transformers"] < 0.25
    assert values["tests: skipped"] == 2 and values["tests: failed"] == 0


def no_line_runs_on_a_device_first(rehearsal: Rehearsal) -> None:
    left = rehearsal[2]
    assert {name: set(functions) - ELSEWHERE.get(name, set()) for name, functions in left.items()} == {
        name: set() for name in left
    }
    whole = (
        {"write_random_model", "table", "_line", "report", "missed"}
        | ELSEWHERE["conversions.py"]
        | ELSEWHERE["paired.py"]
    )
    only_cuda = {function for function in left["accelerator.py"]}
    count = sum(len(lines) for name, functions in left.items() for function, lines in functions.items()
                if function not in whole | only_cuda)  # fmt: skip
    assert count <= MOST_LINES_LEFT, left


def arguments(**settings: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"only": None, "skip": None, "rehearse": False, "name": None} | settings)


def test_sections_are_chosen_by_name_and_group() -> None:
    assert list(chosen(arguments())) == list(PARTS)
    assert list(chosen(arguments(only="b,batch", skip="memory-nf4"))) == ["memory-2b", "memory-7b", "batch"]
    assert list(chosen(arguments(skip="a,b,c,d,e,f,g"))) == ["tests"]
    with pytest.raises(ValueError, match="no section decode-8b; choose from groups a to h, limits"):
        chosen(arguments(only="decode-8b"))
    with pytest.raises(SystemExit) as ended:
        main(["--only", "decode-8b"])
    assert ended.value.code == 2


def test_results_go_to_a_folder_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    assert target(arguments(name="h200/1")) == tmp_path / "gpu-h200-1.json"
    monkeypatch.delenv("OUT")
    assert target(arguments()).parts[-3:] == ("benchmarks", "results", "gpu-check.json")
    assert target(arguments(rehearse=True)).parent.name == "scratch"


def ended(section: str, outcome: str = "ok") -> dict[str, Any]:
    return {"section": section, "outcome": outcome, "detail": "why", "seconds": 1.0}


@pytest.mark.parametrize(
    ("rows", "ends", "code", "printed"),
    [
        ([Row("batch", "16 together, times one", 7.0, "×", "")], [ended("batch")], 0, ">= 6 ok"),
        ([Row("batch", "16 together, times one", 5.0, "×", "")], [ended("batch")], 16, ">= 6 MISSED"),
        ([], [ended("batch")], 16, "missed: batch: 16 together, times one: not measured (>= 6 is the bar)"),
        ([], [ended("batch", "skipped")], 0, "skipped"),
        ([], [ended("batch", "timed out"), ended("tests", "failed")], 16, "timed out"),
    ],
)
def test_the_exit_code_names_the_first_group_that_failed(
    rows: list[Row], ends: list[dict[str, Any]], code: int, printed: str
) -> None:
    result = report(Results(rows, ends), arguments(only="batch,tests" if len(ends) > 1 else "batch"), finished=True)
    assert exit_code(result) == code
    assert printed in short_table(result)


def test_a_run_without_a_device_writes_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(groups: Any, budget: float, command: Any, changed: Any) -> Results:
        found = Results([], [ended("limits", "failed")])
        changed(found)
        return found

    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr("gpu_check.run_in_children", run)
    monkeypatch.setattr("gpu_check.prepare_environment", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["--only", "limits"]) == 13
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "limits          failed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_table_fits_where_only_the_end_is_kept() -> None:
    rows = [Row(*key.split(": ", 1), 123.456, "s", "") for key in BARS]
    result = report(Results(rows, [ended(name, "timed out") for name in PARTS]), arguments(), finished=True)
    assert len(result["rows"]) == len(BARS) > 50
    assert len(short_table(result)) < 12_000


def test_a_missed_result_is_not_judged_before_the_end() -> None:
    assert report(Results([], []), arguments(), finished=False)["missed"] == []


SLOW = """
import json, os, sys, time
sys.path[:0] = [{scripts!r}, {root!r}]
import gpu_check
from render_benchmarks import render

from benchlib.rows import Row
from benchlib.sections import run_child

class Bench:
    def usable(self): return True

def waiting(bench):
    import subprocess
    yield Row("limits", "begun", os.getpid(), "", "")
    subprocess.run(["sleep", "60"])

if "--child" in sys.argv:
    raise SystemExit(run_child(int(sys.argv[-1]), lambda: None, lambda tell: ({{"limits": waiting}}, Bench())))
gpu_check.__file__ = __file__
raise SystemExit(gpu_check.main(["--rehearse", "--only", "limits"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_cut_leaves_its_rows_and_no_process(tmp_path: Path, number: int, code: int) -> None:
    script, path = tmp_path / "slow.py", tmp_path / "gpu-rehearsal.json"
    script.write_text(SLOW.format(scripts=str(SCRIPTS), root=str(SCRIPTS.parent)))
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"OUT": str(tmp_path)},
                               stdout=subprocess.DEVNULL)  # fmt: skip
    rows: list[dict[str, Any]] = []
    until = time.monotonic() + 30
    while not rows and time.monotonic() < until:
        time.sleep(0.05)
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
    process.send_signal(number)
    assert process.wait(20) == code
    written = json.loads(path.read_text())
    assert [row["name"] for row in written["rows"]] == ["begun"] and not written["finished"]
    while _alive(int(written["rows"][0]["value"])) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _alive(int(written["rows"][0]["value"]))


def _alive(group: int) -> bool:
    """Whether any process of a group goes on: the section's, and what it started."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


ABSENT = """
import sys
from importlib.machinery import PathFinder
class Without:
    names = set("accelerate av bitsandbytes platformdirs pynvml pytest qwen_vl_utils textual tomlkit".split())
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.names else PathFinder.find_spec(name, path, target)
    find_distributions = staticmethod(PathFinder.find_distributions)
    invalidate_caches = staticmethod(PathFinder.invalidate_caches)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without()
"""


def test_little_needs_to_be_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("VIDQA_STATE")
    words = [sys.executable, str(SCRIPT), "--rehearse", "--only", "answers,sessions,decode-nf4,batch,captioning"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ends = {end["section"]: end for end in json.loads((tmp_path / "gpu-rehearsal.json").read_text())["sections"]}
    assert {name: end["outcome"] for name, end in ends.items()} == {
        "answers": "ok", "sessions": "skipped", "decode-nf4": "skipped", "batch": "ok", "captioning": "skipped",
    }  # fmt: skip
    assert "captioning      skipped       0.0 s  av is not installed" in done.stdout


def test_the_page_says_what_runs_and_for_how_long() -> None:
    page = (SCRIPTS.parent / "benchmarks" / "gpu-check.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-h]) \| `([a-z0-9-]+)` \| .* \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert [(group, name, float(share)) for group, name, share, _ in rows] == [
        (part.group, name, part.seconds) for name, part in PARTS.items()
    ]
    start, estimates = 25, {name: int(estimate) for _, name, _, estimate in rows}
    assert f"The sum is about {start + sum(estimates.values())} s." in page
    assert start + sum(estimates.values()) <= BUDGET_SECONDS <= 600
    for groups in ("a,b,c", "d,e,f,g,h"):
        seconds = start + sum(estimates[name] for name in chosen(arguments(only=groups)))
        assert seconds <= 285 and f"about {seconds} s" in page
