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
import torch
from gpu_check import BARS, BUDGET_SECONDS, PARTS, chosen, exit_code, main, processes, report, short_table, target
from torch import nn

from benchlib import decoding, device_tests, planned
from benchlib.accelerator import Host
from benchlib.bench import Bench
from benchlib.device_tests import needs_cuda_files, row_of
from benchlib.exactness import captured_step
from benchlib.models import build, load, reduced
from benchlib.planned import Measured, Setup, measure, plan_row, summarise
from benchlib.rows import Row
from benchlib.sections import Found, Skipped
from tests.benchmarks.lines import not_run, tracing
from vidqa.memory.weights import part_bytes
from vidqa.types import Placement

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "gpu_check.py"
FILES = (SCRIPT, *sorted((SCRIPTS / "benchlib").glob("*.py")))
# Functions that a rehearsal does not run, or not to their last line: why that is no risk on a device.
ELSEWHERE = {
    "accelerator.py": {  # only a GPU runs them
        "Cuda.__init__", "Cuda.wait", "Cuda.cap", "Cuda.peak", "Cuda.runtime_bytes", "Cuda.driver_bytes",
    },
    "bench.py": {"Bench.spec", "Bench.usable"},  # the full size's spec; after a failed section: tested below
    "models.py": {"write_random_model", "_small"},  # other benches' (int8): tested below
    "rows.py": {"table", "_line", "report", "Bar.met_by", "missed", "shown_bar"},  # other benches'; judging: below
    "runs.py": {"Run.tokens_per_s"},  # bench_engine's
    # Wrong arguments, signals, and sections that fail, are skipped or have no time: tested below and in test_sections.
    "gpu_check.py": {"chosen", "stopped", "main", "parent"},
    "sections.py": {
        "time_limit.over", "how_it_ends", "run_here", "serve", "_end_with_parent", "_Child.messages",
        "run_in_children", "one_line", "_Runner.run", "_Runner._one", "_Runner.close",
    },
    "decoding.py": {"decoding.measure"}, "device_tests.py": {"device_tests", "_rows", "row_of"},
    "planned.py": {"planned.run", "make_plans", "measure"},
    "captioning.py": {"captioning", "speed_rows"}, "prefilling.py": {"_prefill_rows"},
    "exactness.py": {"_agreement", "sessions"},
}  # fmt: skip
MOST_LINES_LEFT = 75  # of those, the whole functions of other benches left out


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, dict[str, dict[str, list[int]]]]:
    """What a rehearsal wrote and printed, and the lines of the scripts that it did not run."""
    folder = tmp_path_factory.mktemp("rehearsal")
    traced = tracing(folder, FILES) | {"OUT": str(folder / "out"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), "--rehearse"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=traced, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    written: dict[str, Any] = json.loads((folder / "out" / "gpu-rehearsal.json").read_text(encoding="utf-8"))
    return written, done.stdout, not_run(folder, FILES)


Rehearsal = tuple[dict[str, Any], str, dict[str, dict[str, list[int]]]]


def test_every_section_is_rehearsed(rehearsal: Rehearsal) -> None:
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


def test_rows_of_a_rehearsal_have_one_shape_and_numbers(rehearsal: Rehearsal) -> None:
    shape = {"section", "name", "value", "unit", "bar", "sense", "goal", "ok", "formula", "samples", "note"}
    for row in rehearsal[0]["rows"]:
        assert set(row) == shape
        assert row["bar"] is None and row["ok"] is None  # nothing is judged on a toy
        assert row["value"] is not None or row["note"], row
        assert row["samples"] is None or 0 < row["samples"]["p50"] <= row["samples"]["p95"]
    names = [f"{row['section']}: {row['name']}" for row in rehearsal[0]["rows"]]
    assert len(names) == len(set(names))


def test_every_bar_is_some_sections_row(rehearsal: Rehearsal) -> None:
    there = {f"{row['section']}: {row['name']}" for row in rehearsal[0]["rows"]}
    compiled = {"flex: 2b heads, flex", "flex: 7b heads, flex"}  # a CPU compiles it for half a minute
    assert set(BARS) - compiled <= there
    assert {key.partition(": ")[0] for key in BARS} <= set(PARTS)


def test_a_toy_is_exact_and_its_memory_as_planned(rehearsal: Rehearsal) -> None:
    values = {f"{row['section']}: {row['name']}": row["value"] for row in rehearsal[0]["rows"]}
    for key, bar in BARS.items():
        exact = key.startswith(("kernels: ", "answers: ", "captured-step: ", "sessions: ")) and "cudnn" not in key
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


def test_no_line_runs_on_a_device_first(rehearsal: Rehearsal) -> None:
    left = rehearsal[2]
    assert {name: set(functions) - ELSEWHERE.get(name, set()) for name, functions in left.items()} == {
        name: set() for name in left
    }
    whole = {"write_random_model", "table", "_line", "report", "missed"}
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
    result = report(Found(rows, ends), arguments(only="batch,tests" if len(ends) > 1 else "batch"), finished=True)
    assert exit_code(result) == code
    assert printed in short_table(result)


def test_the_table_fits_where_only_the_end_is_kept() -> None:
    rows = [Row(*key.split(": ", 1), 123.456, "s", "") for key in BARS]
    result = report(Found(rows, [ended(name, "timed out") for name in PARTS]), arguments(), finished=True)
    assert len(result["rows"]) == len(BARS) > 50
    assert len(short_table(result)) < 12_000


def test_a_missed_result_is_not_judged_before_the_end() -> None:
    assert report(Found([], []), arguments(), finished=False)["missed"] == []


SLOW = """
import json, os, sys, time
sys.path[:0] = [{scripts!r}, {root!r}]
import gpu_check
from benchlib.rows import Row
from benchlib.sections import serve

class Bench:
    def usable(self): return True

def waiting(bench):
    import subprocess
    yield Row("limits", "begun", os.getpid(), "", "")
    subprocess.run(["sleep", "60"])

if "--child" in sys.argv:
    raise SystemExit(serve(int(sys.argv[-1]), lambda: None, lambda tell: ({{"limits": waiting}}, Bench())))
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


def test_models_have_the_bytes_that_a_plan_gives_them() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    spec = reduced("2b", 2, 192)
    for weights in ("bf16", "nf4", "nf4-dq", "int8"):
        for place in (Placement(), Placement(vision_quantized=True, lm_head_quantized=True)):
            if weights == "int8" and place.vision_quantized:
                continue  # no plan has it
            model = build(spec, torch.device("cpu"), torch.bfloat16, weights, place)
            loaded = load(model, torch.device("cpu"), torch.bfloat16, weights, place)
            parts = ("layers", "embedding", "lm_head", "vision")
            wanted = sum(part_bytes(spec, part, weights, "bf16", place) for part in parts)
            assert loaded.model.weights_bytes == pytest.approx(wanted, rel=0.02), (weights, place)


def test_a_table_on_the_host_and_a_shared_one() -> None:
    host = build(
        reduced("2b", 1, 192), torch.device("cpu"), torch.bfloat16, "native", Placement(embedding_on_host=True)
    )
    assert host.get_input_embeddings().weight.device.type == "cpu"
    from dataclasses import replace

    tied = build(replace(reduced("2b", 1, 192), tied=True), torch.device("cpu"), torch.bfloat16)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert not any(tensor.is_meta for tensor in (*tied.parameters(), *tied.buffers()))


def test_a_wrong_step_is_no_longer_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchlib import exactness

    make_step = exactness.make_step

    def shifted(kind: str, loaded: Any, caches: Any, positions: Any, sampler: Any) -> Any:
        if kind == "captured":
            caches[0].length -= 1  # the newest cached token is overwritten
        return make_step(kind, loaded, caches, positions, sampler)

    monkeypatch.setattr(exactness, "make_step", shifted)
    torch.set_num_threads(1)
    for row in captured_step(Bench(Host(), tiny=True)):
        assert row.value is not None and not BARS[row.key].met_by(row.value), row


def test_a_device_is_usable_after_a_failed_section() -> None:
    class Broken(Host):
        def wait(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert Bench(Host(), tiny=True).usable()
    assert not Bench(Broken(), tiny=True).usable()
    assert Bench(Host(), tiny=False).spec("7b").layers == 28


def test_the_host_counts_and_caps_what_lives() -> None:
    host, held = Host(), nn.Linear(256, 256, bias=False)
    with host.peak(held) as peak:
        torch.zeros(2**20, dtype=torch.uint8)
    assert peak.tensors == peak.reserved == 4 * 256 * 256 + 2**20
    host.cap(4 * 256 * 256 + 2**19)
    with pytest.raises(torch.OutOfMemoryError), host.peak(held):
        torch.zeros(2**20, dtype=torch.uint8)
    host.cap(None)
    with host.peak(held):
        torch.zeros(2**20, dtype=torch.uint8)


@pytest.mark.parametrize("section", [
    decoding.decoding("decode-nf4", "7b", "nf4"), planned.planned("memory-nf4", "7b", "nf4", 2),
])  # fmt: skip
def test_what_is_missing_is_said(section: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decoding, planned):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Skipped, match="bitsandbytes is not installed"):
        next(section(Bench(Host(), tiny=True)))


def test_no_pytest_and_no_av_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchlib import captioning

    for module in (device_tests, captioning):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Skipped, match="pytest is not installed"):
        next(device_tests.device_tests(Bench(Host(), tiny=True)))
    with pytest.raises(Skipped, match="av is not installed"):
        next(captioning.captioning(Bench(Host(), tiny=True)))


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


def measured(**settings: Any) -> Measured:
    made: dict[str, Any] = {
        "model": "2b", "weights": "bf16", "cap_gib": 8, "frames": 8, "width": 56, "height": 56, "tokens": 20,
        "answer_tokens": 4, "predicted": 1010, "reserved": 900, "runtime": 100, "driver": 1000, "out_of_memory": False,
    }  # fmt: skip
    return Measured(**made | settings)


def test_plans_are_summed_up() -> None:
    mib = 2**20
    few = summarise([measured(), measured(predicted=990), measured(predicted=10, out_of_memory=True)])
    assert few["median_error"] == 0.01 and few["worst_under_bytes"] == 10 and few["beyond_margin_bytes"] == 0
    assert (few["plans"], few["out_of_memory"], few["stopped"]) == (3, 1, 0)
    far = summarise([measured(predicted=1000 * mib, reserved=1100 * mib, runtime=0)])
    assert far["beyond_margin_bytes"] == 36 * mib  # the least margin is 64 MiB
    assert summarise([measured(stopped=True)])["median_error"] == float("inf")
    assert plan_row("memory-2b", 1, measured(stopped=True)).value is None
    assert "stopped after its time" in plan_row("memory-2b", 1, measured(stopped=True)).note


def test_a_setup_without_a_plan_is_skipped() -> None:
    bench = Bench(Host(), tiny=True)
    setup = Setup("2b", bench.spec("2b"), "fp32", 0.01)  # less than the weights
    with pytest.raises(Skipped, match=r"no plan fits under 0.01 GiB"):
        next(measure(bench.accelerator, setup, bench.sizes.plans, 5.0))


def test_tests_are_rows_as_they_end() -> None:
    line = "tests/models/test_half.py::test_one[bf16-a b] PASSED    [ 5%]"
    row = row_of(line)
    assert row is not None and (row.name, row.value) == ("tests/models/test_half.py::test_one[bf16-a b]", 1.0)
    failed, skipped = row_of(line.replace("PASSED", "FAILED")), row_of(line.replace("PASSED", "SKIPPED (no)"))
    assert failed is not None and failed.value == 0.0
    assert skipped is not None and skipped.value is None
    broken = row_of("ERROR tests/gpu/test_memory.py - ModuleNotFoundError: No module named 'av'")
    assert broken is not None and broken.value == 0.0 and "No module named 'av'" in broken.note
    assert row_of("2 passed in 1.00s") is None and row_of("") is None


def test_files_of_device_tests_are_found() -> None:
    files = needs_cuda_files()
    assert "tests/gpu/test_memory.py" in files and "tests/models/test_ladder.py" in files
    assert files[-1] == "tests/gpu/test_sweep.py"
    assert not any("benchmarks" in name or "conftest" in name for name in files)


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
