"""One question through vidqa's pipeline or through plain transformers, on frames that are already decoded; and clocks.

Frames are noise made on the host before any clock runs. Needs no video library.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

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
from vidqa.planner.search import PlanningProblem
from vidqa.planner.tasks import tasks_for
from vidqa.types import Frame, Placement, Plan, Request, VideoInfo

Side = TypeVar("Side")
_FPS = 25


@dataclass(frozen=True, slots=True)
class Run:
    """When a run began and each token was known on the host, in seconds, and the tokens."""

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
    """Seconds of one call, from an idle device until it is idle again: the mean of `times` in a row."""
    accelerator.wait()
    began = time.perf_counter()
    for _ in range(times):
        call()
    accelerator.wait()
    return (time.perf_counter() - began) / times


def alternating(sides: Mapping[str, Callable[[], Side]], repeats: int, warm_ups: int = 1) -> dict[str, list[Side]]:
    """Run all sides in turn, `repeats` times after the warm-ups: what slows the machine slows all of them."""
    made: dict[str, list[Side]] = {name: [] for name in sides}
    for repeat in range(warm_ups + repeats):
        for name, side in sides.items():
            result = side()
            if repeat >= warm_ups:
                made[name].append(result)
    return made


class SyntheticReader:
    """A video of noise that no file holds, with the reader's methods that the pipeline calls."""

    notes: tuple[str, ...] = ()

    def __init__(self, info: VideoInfo, pictures: int = 1, size: tuple[int, int] | None = None) -> None:
        """`size` (height, width) of the pictures, where it is not the video's: what is asked for needs no resizing."""
        self.info = info
        shape = (pictures, *(size or (info.height, info.width)), 3)
        self._pictures = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)

    def frames(self, indices: Sequence[int]) -> Any:
        """One picture after the other, over and over."""
        for place, index in enumerate(indices):
            yield Frame(index, index / self.info.fps, self._pictures[place % len(self._pictures)])

    def stacked(self, frames: int) -> Tensor:
        """The first of them as transformers' processor takes them: (n, 3, height, width) uint8."""
        order = [place % len(self._pictures) for place in range(frames)]
        return torch.from_numpy(self._pictures[order]).permute(0, 3, 1, 2).contiguous()

    def check_coverage(self, indices: Sequence[int]) -> None:
        """Noise is never damaged."""

    def abandon(self) -> None:
        """Nothing is open."""


def synthetic_video(frames: int, width: int = 1280, height: int = 720) -> VideoInfo:
    """The facts of a clip of noise, 25 frames a second."""
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
    """The planner's own choice for all frames of a clip that has its size (height, width) already.

    `spare` tokens are left for follow-ups; `runtime_bytes` is what the process was measured to hold before any tensor;
    `settings` may fix vision_chunk, prefill_chunk and vram_bytes. Raises DoesNotFit.
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
    (task,) = tasks_for([found], video, request, config, find_device(config.device))
    if runtime_bytes is not None:
        task = replace(task, around=replace(task.around, context_bytes=runtime_bytes))
    return task, plan_video(task)


@dataclass(slots=True)
class Asked:
    """One question that went through the pipeline: tokens and times, stages' clock, memory, what it left."""

    run: Run
    clock: Clock
    tracker: Tracker
    pipeline: Attempt
    request: Request
    plan: Plan
    prompt: PromptTokens = field(repr=False)


def ask(
    loaded: Loaded, task: PlanningProblem, plan: Plan, prompt: PromptTokens, reader: SyntheticReader | None,
    meter: Any = None, before: Asked | None = None,
) -> Asked:  # fmt: skip
    """One plan through the pipeline, to its last token: no token ends the answer. `before` left what is kept."""
    endless, answer, clock = replace(loaded, stop_ids=frozenset()), AnswerState(task.request), Clock(Stopwatch())
    tracker, times = Tracker(task.device, meter), list[float]()
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
    return Asked(Run(began, times, answer.tokens), clock, tracker, pipeline, task.request, plan, prompt)


def follow_up(loaded: Loaded, task: PlanningProblem, first: Asked, question: Sequence[int]) -> Asked:
    """A second question (token ids) behind the first one and its answer."""
    tail = (*first.prompt.tail, *first.run.tokens, *question)
    prompt = PromptTokens(first.prompt.head, tail)
    plan = replace(first.plan, prompt_tokens=first.plan.visual_tokens + len(prompt.head) + len(tail))
    return ask(loaded, task, plan, prompt, None, before=first)


class TokenClock(StoppingCriteria):
    """Notes when each of transformers' tokens was known on the host; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        input_ids[0, -1].item()  # waits for the device
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(model: Any, inputs: dict[str, Tensor], tokens: int, began: float) -> Run:
    """transformers' greedy `generate` with its growing cache; `began` is when its run did."""
    clock, length = TokenClock(), inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )  # fmt: skip
    return Run(began, clock.times, output[0, length:].tolist())


def video_inputs(loaded: Loaded, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers takes on the model's device for the prompt and a processed video."""
    spec, prompt = loaded.model.spec, some_prompt()
    visual = int(made["video_grid_thw"].prod()) // spec.vision.merge**2
    ids = torch.tensor([[*prompt.head, *[spec.video_token] * visual, *prompt.tail]])
    kinds = {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == spec.video_token).int() * 2}
    return {name: tensor.to(loaded.model.device) for name, tensor in ({"input_ids": ids} | kinds | dict(made)).items()}


def run_transformers(model: Any, loaded: Loaded, frames: Tensor, tokens: int, **how: Any) -> Run:
    """Frames to tokens as transformers' users do it; `how` goes to its video processor."""
    from transformers import Qwen2VLVideoProcessor

    processor: Any = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    began = time.perf_counter()
    made = processor(videos=[frames], return_tensors="pt", do_sample_frames=False, **how)
    return generate(model, video_inputs(loaded, made), tokens, began)


def run_vidqa(loaded: Loaded, task: PlanningProblem, plan: Plan, reader: SyntheticReader) -> Run:
    """The same through the pipeline."""
    return ask(loaded, task, plan, some_prompt(), reader).run
