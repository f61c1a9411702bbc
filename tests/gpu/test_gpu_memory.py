"""Planned against measured on a real GPU; `scripts/bench_memory.py` does the same at full size and many plans."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_memory import make_plans, run_plan

from benchlib.models import build, load
from vidqa import EngineConfig, Request, Session
from vidqa.devices.device import find_device, reread
from vidqa.devices.memory_tracker import runtime_bytes
from vidqa.devices.torch_device import register, release_cached_memory, torch_device
from vidqa.events import Answered, Degraded
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS, RELEASED
from vidqa.models.loader import DTYPES
from vidqa.models.registry import Checkpoint
from vidqa.planner.budget import cublas_bytes
from vidqa.planner.memory_model import tensor_bytes
from vidqa.planner.planner import plan_video

MIB = 2**20
CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
SPEC = replace(RELEASED["Qwen/Qwen2-VL-2B-Instruct"], layers=4)
pytestmark = pytest.mark.needs_cuda


@pytest.mark.parametrize("weights", ["bf16", "nf4", "int8"])
def test_phases_take_what_was_planned(weights: str) -> None:
    if weights != "bf16":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    device = find_device("cuda")
    found = Checkpoint("random", SPEC, REFERENCE_BOUNDS, None)
    plans = list(make_plans(found, device, EngineConfig(weights=weights, remember=False)))
    where, run_config = torch_device(device.torch_name), plans[0][1].run_config
    dtype = DTYPES[run_config.dtype]
    loaded = load(build(SPEC, where, dtype, weights, run_config.placement), where, dtype, weights, run_config.placement)
    for problem, plan in plans:
        if plan.run_config.placement != run_config.placement:
            continue  # that would be loaded in another way
        release_cached_memory()
        tracker = run_plan(loaded, problem, plan)
        planned = tensor_bytes(SPEC, plan.run_config)
        for use in tracker.phases:
            # cuBLAS keeps its workspaces in the allocator: none, one or both of them by then.
            assert use.peak_bytes <= planned[use.name] + problem.overhead.workspace_bytes + 2 * MIB, use
            assert planned[use.name] <= use.peak_bytes * 1.02 + 2 * MIB, use


@contextmanager
def limited(allowed_bytes: int) -> Iterator[None]:
    """Let torch's allocator take no more than this."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed_bytes / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_demo_degrades_and_answers_under_a_cap() -> None:
    device = find_device("cuda:0")
    runtime_bytes(device)
    release_cached_memory()
    # Weights (11 MiB) and a small plan fit beside the workspaces; the planned 40 frames do not.
    with limited(cublas_bytes(device) + 40 * MIB):
        config = EngineConfig(
            model="demo", device="cuda:0", vram_bytes=8 * 2**30, remember=False, isolate_decoder=False
        )
        request: dict[str, Any] = {"frames": 40, "size": (560, 560)}
        with Session(config) as session:
            events = list(session.ask(Request(CLIP, "what happens?", max_tokens=8, **request)))
        assert isinstance(events[-1], Answered)
        assert any(isinstance(event, Degraded) for event in events)


def test_the_driver_and_the_allocator_agree() -> None:
    device = find_device("cuda")
    runtime_bytes(device)
    before = reread(device).process_bytes
    held = torch.empty(512 * MIB, dtype=torch.uint8, device=device.torch_name)
    assert reread(device).process_bytes - before == pytest.approx(held.numel(), abs=64 * MIB)
    found = Checkpoint("random", SPEC, REFERENCE_BOUNDS, None)
    problem, _ = next(make_plans(found, reread(device), EngineConfig(remember=False)))
    assert plan_video(problem).budget_bytes <= device.total_bytes


def test_a_host_tensor_is_page_locked_where_it_is() -> None:
    tensor = torch.empty(3 * MIB + 512, dtype=torch.uint8)
    assert register(tensor, torch.device("cuda"))
    assert tensor.is_pinned()
    copied = tensor.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(copied.cpu(), tensor)
    del tensor  # its pages are unlocked again
    assert register(torch.empty(3 * MIB + 512, dtype=torch.uint8), torch.device("cuda"))
