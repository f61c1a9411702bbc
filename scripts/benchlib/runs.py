"""Timed runs of one question by vidqa's engine or by plain transformers, on noise frames in memory.

Frames are made before any clock runs. Needs no video library.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchlib.accelerator import Accelerator
from benchlib.models import some_prompt
from vidqa.config import EngineConfig
from vidqa.devices.device import find_device
from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.attempt import Attempt
from vidqa.engine.detokenizer import AnswerState
from vidqa.engine.prompt import PromptTokens
from vidqa.engine.timers import Callbacks, Clock, Stopwatch
from vidqa.events import StageProgress
from vidqa.models.attention.selector import HeadLayout, select_kernel
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
from vidqa.models.loader import Loaded
from vidqa.models.registry import Checkpoint
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.profiling.hf_baseline import generate, model_inputs, process_video
from vidqa.types import Frame, Placement, Plan, Request, VideoInfo

Side = TypeVar("Side")
_FPS = 25


@dataclass(frozen=True, slots=True)
class TimedRun:
    """The start of a run and the time when each token was on the host, in seconds, and the tokens."""

    began: float
    times: list[float]
    tokens: list[int]

    @property
    def first_token_s(self) -> float:
        return self.times[0] - self.began

    @property
    def token_seconds(self) -> list[float]:
        """Seconds of each token but the first."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def tokens_per_s(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def seconds_of(call: Callable[[], Any], accelerator: Accelerator, times: int = 1) -> float:
    """Return seconds per call, the mean of `times` calls between two idle moments of the device."""
    accelerator.wait()
    began = time.perf_counter()
    for _ in range(times):
        call()
    accelerator.wait()
    return (time.perf_counter() - began) / times


def alternating(sides: Mapping[str, Callable[[], Side]], repeats: int, warm_ups: int = 1) -> dict[str, list[Side]]:
    """Run all sides in turn, `repeats` times after the warm-ups, so that other load slows all of them."""
    made: dict[str, list[Side]] = {name: [] for name in sides}
    for repeat in range(warm_ups + repeats):
        for name, side in sides.items():
            result = side()
            if repeat >= warm_ups:
                made[name].append(result)
    return made


class SyntheticReader:
    """A video of noise in memory, with the methods of VideoReader that the engine calls."""

    notes: tuple[str, ...] = ()

    def __init__(self, info: VideoInfo, pictures: int = 1, size: tuple[int, int] | None = None) -> None:
        """`size` (height, width) of the frames; with the requested size no frame is resized."""
        self.info = info
        shape = (pictures, *(size or (info.height, info.width)), 3)
        self._pictures = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)

    def frames(self, indices: Sequence[int]) -> Any:
        """Yield the frames, over and over."""
        for place, index in enumerate(indices):
            yield Frame(index, index / self.info.fps, self._pictures[place % len(self._pictures)])

    def stacked(self, frames: int) -> Tensor:
        """Return the first frames for transformers' processor: (n, 3, height, width) uint8."""
        order = [place % len(self._pictures) for place in range(frames)]
        return torch.from_numpy(self._pictures[order]).permute(0, 3, 1, 2).contiguous()

    def check_coverage(self, indices: Sequence[int]) -> None:
        """Noise is never damaged."""

    def abandon(self) -> None:
        """Nothing is open."""


def synthetic_video(frames: int, width: int = 1280, height: int = 720) -> VideoInfo:
    """Return the facts of a noise clip at 25 frames per second."""
    return VideoInfo(
        path="noise", container="none", codec="none", width=width, height=height, coded_width=width,
        coded_height=height, rotation_degrees=0, pixel_aspect=1.0, fps=float(_FPS), frame_count=frames,
        duration_seconds=frames / _FPS, start_seconds=0.0, constant_rate=True,
        pts_seconds=tuple(index / _FPS for index in range(frames)), sources={},
    )  # fmt: skip


def plan_for(
    loaded: Loaded, frames: int, size: tuple[int, int], max_tokens: int, spare: int = 0,
    runtime_bytes: int | None = None, **settings: Any,
) -> tuple[PlanningProblem, Plan]:  # fmt: skip
    """Return the planner's choice for all frames of a clip of this size (height, width).

    `spare` tokens are left for follow-ups; `runtime_bytes` are the process's measured bytes before any tensor;
    `settings` may set vision_chunk, prefill_chunk and vram_bytes. Raises DoesNotFit.
    """
    model, (height, width) = loaded.model, size
    spec = model.spec
    layout = HeadLayout.of(spec)
    config = EngineConfig(
        device=model.device.type, weights=loaded.weights, placement=Placement(), conversation_tokens=spare,
        attention=select_kernel(layout, str(model.device), model.dtype)[-1].name, remember=False,
        **settings,
    )  # fmt: skip
    video = synthetic_video(frames, width, height)
    request = Request("noise", "what happens?", frames=frames, size=(width, height), max_tokens=max_tokens)
    found = Checkpoint("the benchmark's model", spec, REFERENCE_BOUNDS, None)
    (problem,) = planning_problems([found], video, request, config, find_device(config.device))
    if runtime_bytes is not None:
        problem = replace(problem, overhead=replace(problem.overhead, context_bytes=runtime_bytes))
    return problem, plan_video(problem)


@dataclass(slots=True)
class AnsweredQuestion:
    """One answered question: tokens and times, the clock of stages, memory, and the attempt with its caches."""

    run: TimedRun
    clock: Clock
    tracker: Tracker
    pipeline: Attempt
    request: Request
    plan: Plan
    prompt: PromptTokens = field(repr=False)


def ask(
    loaded: Loaded, problem: PlanningProblem, plan: Plan, prompt: PromptTokens, reader: SyntheticReader | None,
    meter: Any = None, before: AnsweredQuestion | None = None,
) -> AnsweredQuestion:  # fmt: skip
    """Run one plan to its last token, since no token ends the answer. Caches of `before` are reused."""
    endless, answer, clock = replace(loaded, stop_ids=frozenset()), AnswerState(problem.request), Clock(Stopwatch())
    tracker, times = Tracker(problem.device, meter), list[float]()
    began = time.perf_counter()
    pipeline = Attempt(
        endless, plan, prompt, answer, tracker, Callbacks(lambda: False), clock,
        before.pipeline.prompt_runner.vision_embeddings if before else None,
        before.pipeline.prompt_runner.cached_prompt if before else None,
    )  # fmt: skip
    frames: Any = reader
    for event in pipeline.run(frames):
        if isinstance(event, StageProgress) and event.stage == "decode":
            times.append(time.perf_counter())
    return AnsweredQuestion(
        TimedRun(began, times, answer.tokens), clock, tracker, pipeline, problem.request, plan, prompt
    )


def follow_up(
    loaded: Loaded, problem: PlanningProblem, first: AnsweredQuestion, question: Sequence[int]
) -> AnsweredQuestion:
    """A second question (token ids) behind the first one and its answer."""
    tail = (*first.prompt.tail, *first.run.tokens, *question)
    prompt = PromptTokens(first.prompt.head, tail)
    plan = replace(first.plan, prompt_tokens=first.plan.visual_tokens + len(prompt.head) + len(tail))
    return ask(loaded, problem, plan, prompt, None, before=first)


def generate_endlessly(model: Any, inputs: dict[str, Tensor], tokens: int, began: float) -> TimedRun:
    """Run transformers' greedy `generate`, which no token ends; `began` is when the run began."""
    ids, times = generate(model, inputs, tokens, eos_token_id=None, pad_token_id=0)
    return TimedRun(began, times, ids)


def run_transformers(model: Any, loaded: Loaded, frames: Tensor, tokens: int, **options: Any) -> TimedRun:
    """Run frames to tokens as transformers' users do it; `options` go to its video processor."""
    began = time.perf_counter()
    inputs = model_inputs(loaded, some_prompt(), process_video(loaded, frames, **options))
    return generate_endlessly(model, inputs, tokens, began)


def run_vidqa(loaded: Loaded, problem: PlanningProblem, plan: Plan, reader: SyntheticReader) -> TimedRun:
    """Run the same by vidqa's engine."""
    return ask(loaded, problem, plan, some_prompt(), reader).run
