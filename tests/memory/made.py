"""Videos, devices and tasks in plain numbers."""

from dataclasses import replace
from typing import Any

from vidqa.config import EngineConfig
from vidqa.memory.estimate import Surroundings, kv_capacity
from vidqa.memory.search import Task
from vidqa.models.choice import RELEASED
from vidqa.models.specs import REFERENCE_BOUNDS, ModelSpec
from vidqa.types import Device, Draft, Placement, Plan, Request, TimeEstimate, VideoInfo

GIB = 2**30
SPEC_2B = RELEASED["Qwen/Qwen2-VL-2B-Instruct"]
SPEC_7B = RELEASED["Qwen/Qwen2-VL-7B-Instruct"]
AROUND = Surroundings(480 * 2**20, "assumed", 8320 * 1024, 22 * 2**20)


def made_video(seconds: float, width: int = 1280, height: int = 720, fps: float = 25.0) -> VideoInfo:
    """A clip of constant rate that no file holds."""
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


def made_task(
    gib: float, seconds: float = 60.0, spec: ModelSpec = SPEC_2B, question: str = "what happens?", **how: Any
) -> Task:
    """A task for a GPU of so many GiB; other words go to the request, the config or the task, whoever knows them."""
    request, config, device = Request("clip.mp4", question), EngineConfig(), how.pop("device", made_device(gib))
    model = how.pop("model", "a model")
    for name in [name for name in how if hasattr(request, name)]:
        request = replace(request, **{name: how.pop(name)})
    for name in [name for name in how if hasattr(config, name)]:
        config = replace(config, **{name: how.pop(name)})
    task = Task(
        model, spec, REFERENCE_BOUNDS, made_video(seconds), request, config, device, AROUND,
        int(gib * GIB), 60,
    )  # fmt: skip
    return replace(task, **how)


def plan_of(draft: Draft, spec: ModelSpec) -> Plan:
    """A plan that runs a draft, whatever the budget."""
    visual, seconds = spec.visual_tokens(draft.frames, draft.height, draft.width), TimeEstimate(0, 0, 0, 0)
    indices = tuple(range(draft.frames))
    return Plan(
        model="a model", device="cuda:0", draft=draft, indices=indices, timestamps_seconds=tuple(map(float, indices)),
        visual_tokens=visual, prompt_tokens=visual + draft.text_tokens, kv_capacity_tokens=kv_capacity(spec, draft),
        lines=(), phase_bytes={}, peak_phase="prefill", margin_bytes=0, budget_bytes=0, limits=(), seconds=seconds,
        score=0.0,
    )  # fmt: skip


def made_draft(**how: Any) -> Draft:
    """A draft of 8 frames of 1008x560 in bf16, but for what is said."""
    draft = Draft("bf16", "bf16", "bf16", "flash", 8, 560, 1008, 50, 16, 2, 512, Placement())
    return replace(draft, **how)
