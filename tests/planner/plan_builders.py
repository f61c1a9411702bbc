"""Videos, devices, planning problems and plans in plain numbers."""

from dataclasses import replace
from typing import Any

from vidqa.config import EngineConfig
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS, RELEASED
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import kept_visual_tokens
from vidqa.planner.budget import RuntimeOverhead
from vidqa.planner.memory_model import kv_capacity
from vidqa.planner.problem import PlanningProblem
from vidqa.types import Device, Placement, Plan, Request, RunConfig, TimeEstimate, VideoInfo

GIB = 2**30
SPEC_2B = RELEASED["Qwen/Qwen2-VL-2B-Instruct"]
SPEC_7B = RELEASED["Qwen/Qwen2-VL-7B-Instruct"]
OVERHEAD = RuntimeOverhead(480 * 2**20, "assumed", 8320 * 1024, 22 * 2**20)


def made_video(seconds: float, width: int = 1280, height: int = 720, fps: float = 25.0) -> VideoInfo:
    """A clip of constant rate, without a file."""
    count = max(int(seconds * fps), 1)
    times = tuple(index / fps for index in range(count))
    return VideoInfo(
        path="clip.mp4", container="mp4", codec="h264", width=width, height=height, coded_width=width,
        coded_height=height, rotation_degrees=0, pixel_aspect=1.0, fps=fps, frame_count=count,
        duration_seconds=count / fps, start_seconds=0.0, constant_rate=True, pts_seconds=times, sources={},
    )  # fmt: skip


def made_device(gib: float, *, bf16: bool = True) -> Device:
    """A GPU of so many GiB, all free."""
    size = int(gib * GIB)
    return Device("cuda", 0, "a GPU", size, size, 0, 0, (8, 6) if bf16 else (7, 5), bf16, 360e9, 50e12)


def made_cpu(*, bf16: bool) -> Device:
    """A processor with 16 GiB, all free."""
    return Device("cpu", 0, "a CPU", 16 * GIB, 16 * GIB, 0, 0, None, bf16, 40e9, 160e9)


def made_problem(
    gib: float, seconds: float = 60.0, spec: ModelSpec = SPEC_2B, question: str = "what happens?", **fields: Any
) -> PlanningProblem:
    """A problem for a GPU of so many GiB without a limit on time; `fields` are set on request, config or problem."""
    config = EngineConfig(max_wait_seconds=None)
    request, device = Request("clip.mp4", question), fields.pop("device", made_device(gib))
    model = fields.pop("model", "a model")
    for name in [name for name in fields if hasattr(request, name)]:
        request = replace(request, **{name: fields.pop(name)})
    for name in [name for name in fields if hasattr(config, name)]:
        config = replace(config, **{name: fields.pop(name)})
    problem = PlanningProblem(
        model, spec, REFERENCE_BOUNDS, made_video(seconds), request, config, device, OVERHEAD,
        int(gib * GIB), 60,
    )  # fmt: skip
    return replace(problem, **fields)


def plan_of(run_config: RunConfig, spec: ModelSpec) -> Plan:
    """A plan of a run configuration, without memory, budget or limits."""
    visual = kept_visual_tokens(spec, run_config)
    indices = tuple(range(run_config.frames))
    return Plan(
        model="a model", device="cuda:0", run_config=run_config, indices=indices,
        timestamps_seconds=tuple(map(float, indices)), visual_tokens=visual,
        prompt_tokens=visual + run_config.text_tokens, kv_capacity_tokens=kv_capacity(spec, run_config), lines=(),
        phase_bytes={}, peak_phase="prefill", margin_bytes=0, budget_bytes=0, limits=(),
        seconds=TimeEstimate(0, 0, 0, 0, 0), score=0.0,
        video_tokens=spec.visual_tokens(run_config.frames, run_config.height, run_config.width),
    )  # fmt: skip


def made_run_config(**fields: Any) -> RunConfig:
    """A run of 8 frames of 1008x560 in bf16, with some fields changed."""
    run_config = RunConfig("bf16", "bf16", "bf16", "flash", 8, 560, 1008, 50, 16, 2, 512, Placement())
    return replace(run_config, **fields)
