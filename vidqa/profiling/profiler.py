"""Profiles of one question: its answer under torch.profiler, its trace, and sums over the trace.

The model is loaded and warmed up before the profiler starts, so its weights are counted as there from the start.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from vidqa.config import EngineConfig
from vidqa.profiling.allocation_classifier import WEIGHTS, ModelShapes, model_shapes
from vidqa.profiling.isolated_worker import last_answer, warm_up
from vidqa.profiling.memory_trace import (
    Allocation,
    AllocationTimeline,
    Total,
    Trace,
    alive_at_peak,
    level_peaks,
    make_timeline,
    peak_bytes,
    read_trace,
    totals,
)
from vidqa.profiling.sweep_points import Side
from vidqa.profiling.sweep_runner import with_plan
from vidqa.types import Request

_HOST, _CUDA = 0, 1  # c10::DeviceType, as the trace writes it
_PHASES = ("video", "vision", "prefill", "decode")
_UNPROFILED = ("video",)  # vidqa decodes and resizes frames in another thread, which the profiler does not see


@dataclass(frozen=True, slots=True)
class ProfiledQuestion:
    """The question that was profiled, its answer, and the seconds of its phases."""

    side: Side
    device: str
    frames: int
    width: int
    height: int
    visual_tokens: int
    prompt_tokens: int
    weights_bytes: int
    answer: str
    answer_tokens: int
    first_token_seconds: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ProfiledPhase:
    """Seconds and tensor bytes of one phase.

    `peak_bytes` is the most that was allocated by all phases while this one allocated, with the weights.
    """

    name: str
    seconds: float
    cumulative_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Memory and time of one question. Bytes are of tensors on its device."""

    asked: ProfiledQuestion
    facts: ModelShapes
    peak_bytes: int
    phases: tuple[ProfiledPhase, ...]
    operators: tuple[Total, ...]
    kinds: tuple[Total, ...]
    at_peak: tuple[Allocation, ...]
    device_seconds: Mapping[str, float]
    timeline: AllocationTimeline
    notes: tuple[str, ...] = ()


def profile_vidqa(config: EngineConfig, request: Request, trace_path: Path) -> Profile:
    """Answer one question under the profiler, and write a Chrome trace to `trace_path`."""
    _quiet_profiler()
    from vidqa.engine.session import Session
    from vidqa.models.registry import find_checkpoints

    with Session(config) as planning:
        plan = planning.plan(request)
    fixed, spec = with_plan(replace(config, remember=False), plan), find_checkpoints(plan.model, local=True)[0].spec
    with Session(fixed) as session:
        first = last_answer(session.ask(warm_up(request, spec)))
        with _profiled(trace_path, first.plan.device):
            answer = last_answer(session.ask(request))
        assert session.loaded is not None
        model = model_shapes(session.loaded.model.spec)
    run_config, timing = answer.plan.run_config, answer.timing
    seconds = {
        "load": first.timing.load_seconds, "video": timing.video_seconds, "vision": timing.vision_seconds,
        "prefill": timing.prefill_seconds, "decode": timing.decode_seconds,
    }  # fmt: skip
    asked = ProfiledQuestion(
        "vidqa", answer.plan.device, run_config.frames, run_config.width, run_config.height, answer.plan.visual_tokens,
        answer.plan.prompt_tokens, answer.memory.weights_bytes, answer.text, timing.tokens,
        timing.first_token_seconds, seconds,
    )  # fmt: skip
    return make_profile(_read(trace_path, model, asked.device), asked, model)


def profile_transformers(config: EngineConfig, request: Request, trace_path: Path) -> Profile:
    """Likewise through plain transformers, on the same frames; seconds of phases are sums over operators."""
    _quiet_profiler()
    from vidqa.devices.torch_device import torch_device
    from vidqa.engine.session import Session
    from vidqa.models.registry import find_checkpoints
    from vidqa.profiling.hf_baseline import HFBaseline
    from vidqa.video.reader import open_video

    with Session(config) as planning:
        plan = planning.plan(request)
    found = find_checkpoints(config.model, local=True)[0]
    size, start = (plan.run_config.height, plan.run_config.width), time.perf_counter()
    baseline = HFBaseline(found.local_folder(), torch_device(plan.device), plan.run_config.dtype)
    load_seconds = time.perf_counter() - start
    with open_video(request.video, isolated=config.isolate_decoder, pictures=request.picture_times) as reader:
        first = warm_up(request, found.spec)
        assert first.size is not None
        baseline.ask(first, reader, plan.indices[:2], first.size)
    video = open_video(request.video, isolated=config.isolate_decoder, pictures=request.picture_times)
    with video as reader, _profiled(trace_path, plan.device):
        answer = baseline.ask(request, reader, plan.indices, size)
    model = model_shapes(found.spec)
    trace = _read(trace_path, model, plan.device)
    asked = ProfiledQuestion(
        "transformers", plan.device, len(plan.indices), size[1], size[0], answer.visual_tokens, answer.prompt_tokens,
        baseline.weights_bytes, answer.text, len(answer.tokens), answer.first_token_seconds,
        {"load": load_seconds} | {phase: trace.phase_seconds.get(phase, 0.0) for phase in _PHASES},
    )  # fmt: skip
    return make_profile(trace, asked, model)


def make_profile(trace: Trace, asked: ProfiledQuestion, model: ModelShapes) -> Profile:
    """Return the profile of a trace."""
    allocations = trace.allocations
    return Profile(
        asked=asked,
        facts=model,
        peak_bytes=asked.weights_bytes + peak_bytes(allocations),
        phases=_phases(allocations, asked),
        operators=tuple(totals(allocations, "operator", trace.operator_seconds)),
        kinds=tuple(totals(allocations, "words")),
        at_peak=tuple(alive_at_peak(allocations)),
        device_seconds=dict(trace.device_seconds),
        timeline=make_timeline(allocations, {WEIGHTS: asked.weights_bytes}),
        notes=tuple(_missing_phases(trace, _UNPROFILED if asked.side == "vidqa" else ())),
    )


def _missing_phases(trace: Trace, expected: Sequence[str]) -> Iterator[str]:
    """Yield a note for each phase without operators, except those `expected` to have none."""
    for phase in _PHASES:
        if phase not in expected and not trace.phase_seconds.get(phase):
            yield f"the trace has no operators of the {phase} phase: the profiler follows only the thread it runs in"


def _phases(allocations: list[Allocation], asked: ProfiledQuestion) -> tuple[ProfiledPhase, ...]:
    cumulative = {total.name: total.cumulative_bytes for total in totals(allocations, "phase")}
    peaks = level_peaks(allocations)
    names = [*asked.seconds, *(name for name in cumulative if name not in asked.seconds)]
    return tuple(
        ProfiledPhase(
            name, asked.seconds.get(name, 0.0), cumulative.get(name, 0), asked.weights_bytes + peaks.get(name, 0)
        )
        for name in names
    )


def _quiet_profiler() -> None:
    """Silence the profiler's and the allocator's messages on stderr; torch reads these variables when it starts.

    torch starts here and not in the thread that loads the model: the profiler reports another thread as an error.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import_module("torch")


def _read(path: Path, model: ModelShapes, device: str) -> Trace:
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return read_trace(events, model, device_type=_CUDA if device.startswith("cuda") else _HOST)


@contextmanager
def _profiled(path: Path, device: str) -> Iterator[None]:
    """Profile the block with shapes, memory and Python's stack, and write the trace."""
    from torch.profiler import ProfilerActivity, profile

    cuda = [ProfilerActivity.CUDA] if device.startswith("cuda") else []
    with profile(
        activities=[ProfilerActivity.CPU, *cuda], record_shapes=True, profile_memory=True, with_stack=True
    ) as profiler:
        yield
    profiler.export_chrome_trace(str(path))
