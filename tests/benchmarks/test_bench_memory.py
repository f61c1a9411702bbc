"""The long memory sweep: its setups, its limits, and the surroundings of its processes."""

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench_memory
import pytest
from bench_memory import SETUPS, content, measure_on_gpu, missed, sections, table, wanted

from benchlib import planned
from benchlib.accelerator import Host
from benchlib.bench import Bench
from benchlib.models import FULL
from benchlib.planned import Measured, Setup, make_plans, measure, summarise
from benchlib.runs import synthetic_video
from benchlib.sections import Results
from tests.planner.plan_builders import made_device
from vidqa.config import EngineConfig
from vidqa.devices.device import allocator_environment
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
from vidqa.models.registry import Checkpoint
from vidqa.planner.budget import runtime_overhead

MADE: dict[str, Any] = {
    "model": "2b", "weights": "bf16", "cap_gib": 8, "frames": 8, "width": 56, "height": 56, "tokens": 20,
    "answer_tokens": 4, "predicted": 1010, "reserved": 900, "runtime": 100, "driver": 1000, "out_of_memory": False,
}  # fmt: skip


def test_setups_are_chosen_by_name() -> None:
    assert wanted(None) == list(SETUPS) == list(sections()) and len(SETUPS) == 12
    assert wanted("2b-bf16-8, 7b-nf4-8") == ["2b-bf16-8", "7b-nf4-8"]
    with pytest.raises(ValueError, match="no setup 3b; choose from 2b-bf16-6"):
        wanted("3b")


def test_processes_get_the_allocators_settings_and_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def run(groups: Any, budget: float, command: Any, changed: Any, make_row: Any) -> Results:
        seen.update(groups=groups, budget=budget, command=command, options=os.environ["PYTORCH_ALLOC_CONF"])
        found = Results([make_row(asdict(Measured(**MADE)))])
        changed(found)
        return found

    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "garbage_collection_threshold:0.9")
    monkeypatch.setattr(bench_memory, "run_in_children", run)
    monkeypatch.setattr(bench_memory, "RESULTS", tmp_path)
    found = measure_on_gpu(["2b-bf16-8", "7b-nf4-8"], 100.0)
    assert [list(group) for group in seen["groups"]] == [["2b-bf16-8"], ["7b-nf4-8"]]  # a process each
    assert seen["budget"] == 100.0 and seen["command"][-1] == "--child"
    options = allocator_environment({"PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.9"})
    assert seen["options"] == options["PYTORCH_ALLOC_CONF"]
    assert (tmp_path / "memory-cuda.json").exists() and found.rows[0].error == pytest.approx(0.01)


@pytest.mark.parametrize(("how", "out_of_memory", "stopped"), [("cublas", True, False), ("slow", False, True)])
def test_a_plan_that_fails_is_a_row_and_the_next_one_runs(
    how: str, out_of_memory: bool, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_plan, calls = planned.run_plan, list[int]()

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            return run_plan(*arguments)
        if how == "cublas":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return time.sleep(60)

    monkeypatch.setattr(planned, "run_plan", failing)
    bench = Bench(Host(), tiny=True)
    setup = Setup("2b", bench.spec("2b"), "fp32", 2)
    rows = list(measure(bench.accelerator, setup, bench.sizes.plans, 3.0))
    assert (rows[0].out_of_memory, rows[0].stopped) == (out_of_memory, stopped)
    assert all(row.finished for row in rows[1:]) and len(rows) == len(bench.sizes.plans)
    assert missed(summarise(rows))


@pytest.mark.parametrize(("model", "weights", "cap"), [("2b", "bf16", 8), ("7b", "bf16", 24), ("7b", "nf4", 8)])
@pytest.mark.parametrize("context_mib", [400, 700])
def test_the_checks_setups_have_plans_enough(model: str, weights: str, cap: float, context_mib: int) -> None:
    card = replace(made_device(139.0), compute_capability=(9, 0))
    overhead = replace(runtime_overhead(card, synthetic_video(25)), context_bytes=context_mib * 2**20)
    found = Checkpoint(model, FULL[model], REFERENCE_BOUNDS, None)
    config = EngineConfig(device="cuda", weights=weights, remember=False)
    plans = [plan for _, plan in make_plans(found, planned.capped(card, cap), config, overhead)]
    assert len(plans) >= 10
    assert len({plan.run_config.frames for plan in plans}) >= 6
    assert all(plan.predicted_peak_bytes < cap * planned.GIB for plan in plans)
    assert len({planned.load_placement(plan.run_config.placement) for plan in plans}) <= 2  # so many models are made


def test_what_is_missed_is_named() -> None:
    bars = summarise([Measured(**MADE)] * 100)
    assert missed(bars) == []
    assert missed(bars | {"median_error": 0.02, "plans": 9}) == ["median_error 0.02 above 0.01", "only 9 plans"]
    assert content([Measured(**MADE)], {"device": "a card"})["bars"]["plans"] == 1
    lines = list(table([Measured(**MADE | {"stopped": True}), Measured(**MADE)]))
    assert lines[1].endswith("STOPPED") and lines[2].endswith("+1.00%")
