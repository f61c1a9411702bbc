"""One question under torch.profiler: its answer, its trace, and what the trace adds up to.

The model is loaded and warm before the profiler starts, so its weights stand as they are
below what the question asks for. Runs things; draws and prints nothing.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidqa.config import EngineConfig
from vidqa.engine.timers import Stopwatch
from vidqa.profiling.allocation_classifier import WEIGHTS, Facts, facts_of
from vidqa.profiling.isolated_worker import WARM_UP_SIDE, warm_up
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
from vidqa.profiling.sweep_runner import settled
from vidqa.types import Answer, Request

_HOST, _CUDA = 0, 1  # c10::DeviceType, as the trace writes it
_PHASES = ("video", "vision", "prefill", "decode")
_OWN_THREAD = ("video",)  # frames are decoded and resized beside the rest, where the profiler does not look


@dataclass(frozen=True, slots=True)
class ProfiledQuestion:
    """The question that was profiled: who answered, on what, with what, and the seconds of its phases by a clock."""

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
    """One phase of the question: its seconds, and bytes of tensors by the profiler.

    `peak_bytes` is all that lived when this phase asked for most, the weights included.
    """

    name: str
    seconds: float
    cumulative_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What one question took. Bytes are of tensors on its device; the weights were there before."""

    asked: ProfiledQuestion
    facts: Facts
    peak_bytes: int
    phases: tuple[ProfiledPhase, ...]
    operators: tuple[Total, ...]
    kinds: tuple[Total, ...]
    at_peak: tuple[Allocation, ...]
    device_seconds: Mapping[str, float]
    timeline: AllocationTimeline
    notes: tuple[str, ...] = ()


def profile_vidqa(config: EngineConfig, request: Request, trace_path: Path) -> Profile:
    """Answer one question under the profiler and leave a Chrome trace at `trace_path`."""
    _quiet_profiler()
    from vidqa.engine.session import Session

    with Session(config) as planning:
        fixed = settled(replace(config, remember=False), planning.plan(request))
    with Session(fixed) as session:
        first = _answer(session.ask(warm_up(request)))
        with _profiled(trace_path, first.plan.device):
            answer = _answer(session.ask(request))
        assert session.loaded is not None
        facts = facts_of(session.loaded.model.spec)
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
    return assemble(_read(trace_path, facts, asked.device), asked, facts)


def profile_transformers(config: EngineConfig, request: Request, trace_path: Path) -> Profile:
    """The same question and frames through plain transformers; its phases' seconds are its operators' own."""
    _quiet_profiler()
    from vidqa.devices.torch_device import torch_device
    from vidqa.engine.session import Session
    from vidqa.models.registry import find_checkpoints
    from vidqa.profiling.hf_baseline import PlainTransformers
    from vidqa.video.reader import open_video

    with Session(config) as planning:
        plan = planning.plan(request)
    found = find_checkpoints(config.model, local=True)[0]
    watch, size = Stopwatch(), (plan.run_config.height, plan.run_config.width)
    model = PlainTransformers(found.local_folder(), torch_device(plan.device), plan.run_config.dtype)
    load_seconds = watch.seconds()
    with open_video(request.video, isolated=config.isolate_decoder) as reader:
        model.ask(warm_up(request), reader, plan.indices[:2], (WARM_UP_SIDE, WARM_UP_SIDE))
    with open_video(request.video, isolated=config.isolate_decoder) as reader, _profiled(trace_path, plan.device):
        spoken = model.ask(request, reader, plan.indices, size)
    facts = facts_of(found.spec)
    trace = _read(trace_path, facts, plan.device)
    asked = ProfiledQuestion(
        "transformers", plan.device, len(plan.indices), size[1], size[0], spoken.visual_tokens, spoken.prompt_tokens,
        model.weights_bytes, spoken.text, len(spoken.tokens), spoken.first_token_seconds,
        {"load": load_seconds} | {phase: trace.phase_seconds.get(phase, 0.0) for phase in _PHASES},
    )  # fmt: skip
    return assemble(trace, asked, facts)


def assemble(trace: Trace, asked: ProfiledQuestion, facts: Facts) -> Profile:
    """Everything that is told about a trace."""
    made = trace.allocations
    return Profile(
        asked=asked,
        facts=facts,
        peak_bytes=asked.weights_bytes + peak_bytes(made),
        phases=_phases(made, asked),
        operators=tuple(totals(made, "operator", trace.operator_seconds)),
        kinds=tuple(totals(made, "words")),
        at_peak=tuple(alive_at_peak(made)),
        device_seconds=dict(trace.device_seconds),
        timeline=make_timeline(made, {WEIGHTS: asked.weights_bytes}),
        notes=tuple(_unseen(trace, _OWN_THREAD if asked.side == "vidqa" else ())),
    )


def _unseen(trace: Trace, elsewhere: Sequence[str]) -> Iterator[str]:
    """The stages of which the profiler saw no operator: it follows the thread that started it, and no other."""
    for phase in _PHASES:
        if phase not in elsewhere and not trace.phase_seconds.get(phase):
            yield f"nothing of the {phase} phase was seen: the profiler does not follow other threads"


def _phases(made: list[Allocation], asked: ProfiledQuestion) -> tuple[ProfiledPhase, ...]:
    cumulative = {total.name: total.cumulative_bytes for total in totals(made, "phase")}
    peaks = level_peaks(made)
    names = [*asked.seconds, *(name for name in cumulative if name not in asked.seconds)]
    return tuple(
        ProfiledPhase(
            name, asked.seconds.get(name, 0.0), cumulative.get(name, 0), asked.weights_bytes + peaks.get(name, 0)
        )
        for name in names
    )


def _answer(events: Iterator[Any]) -> Answer:
    *_, last = events
    answer: Answer = last.answer
    return answer


def _quiet_profiler() -> None:
    """The profiler and the allocator would talk on stderr; these are read when torch starts."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _read(path: Path, facts: Facts, device: str) -> Trace:
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return read_trace(events, facts, device_type=_CUDA if device.startswith("cuda") else _HOST)


@contextmanager
def _profiled(path: Path, device: str) -> Iterator[None]:
    """Profile what happens inside, with shapes, memory and Python's stack, and write the trace."""
    from torch.profiler import ProfilerActivity, profile

    cuda = [ProfilerActivity.CUDA] if device.startswith("cuda") else []
    with profile(
        activities=[ProfilerActivity.CPU, *cuda], record_shapes=True, profile_memory=True, with_stack=True
    ) as running:
        yield
    running.export_chrome_trace(str(path))
