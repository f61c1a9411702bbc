"""Planned against measured on a real GPU; `scripts/bench_memory.py` does the same at full size and many plans."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_memory import make_plans, run_plan

from benchlib.models import write_random_model
from vidqa import EngineConfig, Request, Session
from vidqa.events import Answered, Degraded
from vidqa.memory.device import find_device, reread
from vidqa.memory.estimate import tensor_bytes
from vidqa.memory.planner import plan_video
from vidqa.memory.tracker import runtime_bytes
from vidqa.models.choice import RELEASED, Checkpoint
from vidqa.models.loader import load_model, release_cached_memory, torch_device
from vidqa.models.specs import REFERENCE_BOUNDS

MIB = 2**20
CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
SPEC = replace(RELEASED["Qwen/Qwen2-VL-2B-Instruct"], layers=4)
pytestmark = pytest.mark.needs_cuda


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("random") / "model"
    write_random_model(SPEC, target)
    return target


@pytest.mark.parametrize("weights", ["bf16", "nf4", "int8"])
def test_phases_take_what_was_planned(folder: Path, weights: str) -> None:
    if weights != "bf16":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    device = find_device("cuda")
    found = Checkpoint("random", SPEC, REFERENCE_BOUNDS, folder)
    plans = list(make_plans(found, device, EngineConfig(weights=weights, remember=False)))
    draft = plans[0][1].draft
    loaded = load_model(folder, torch_device(f"cuda:{device.index}"), weights, draft.dtype, draft.placement)
    for task, plan in plans:
        release_cached_memory()
        tracker = run_plan(loaded, task, plan)
        planned = tensor_bytes(SPEC, plan.draft)
        for use in tracker.phases:
            # cuBLAS keeps its workspace in the allocator, which the plan counts apart from tensors.
            assert use.peak_bytes - task.around.workspace_bytes <= planned[use.name] + 2 * MIB, use
            assert planned[use.name] <= use.peak_bytes * 1.02 + 2 * MIB, use


def test_the_demo_degrades_and_answers_under_a_cap(folder: Path) -> None:
    device = find_device("cuda")
    runtime_bytes(device)
    release_cached_memory()
    total = torch.cuda.get_device_properties(device.index).total_memory
    torch.cuda.set_per_process_memory_fraction(40 * MIB / total)
    try:
        config = EngineConfig(model="demo", device="cuda", vram_bytes=8 * 2**30, remember=False, isolate_decoder=False)
        request: dict[str, Any] = {"frames": 40, "size": (560, 560)}
        with Session(config) as session:
            events = list(session.ask(Request(CLIP, "what happens?", max_tokens=8, **request)))
        assert isinstance(events[-1], Answered)
        assert any(isinstance(event, Degraded) for event in events)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_driver_and_the_allocator_agree(folder: Path) -> None:
    device = find_device("cuda")
    before = reread(device).process_bytes
    held = torch.empty(512 * MIB, dtype=torch.uint8, device=f"cuda:{device.index}")
    assert reread(device).process_bytes - before == pytest.approx(held.numel(), abs=64 * MIB)
    found = Checkpoint("random", SPEC, REFERENCE_BOUNDS, folder)
    task, _ = next(make_plans(found, reread(device), EngineConfig(remember=False)))
    assert plan_video(task).budget_bytes <= device.total_bytes
