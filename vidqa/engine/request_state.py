"""One `ask` on its way, and what the next one can go on from.

Decides whether a new request sees the same pictures and whether its conversation still fits
the cache; the oldest turns go first, whole. Runs nothing.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vidqa.config import EngineConfig
from vidqa.engine.timers import Clock
from vidqa.events import Event, Noted
from vidqa.models.registry import Checkpoint
from vidqa.planner.search import PlanningProblem
from vidqa.types import Plan, Request, VideoInfo
from vidqa.video.picture_folder import file_identity
from vidqa.video.reader import never

if TYPE_CHECKING:
    from vidqa.engine.answer_state import AnswerState
    from vidqa.engine.attempt import Attempt
    from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
    from vidqa.engine.prompt import PromptTokens
    from vidqa.models.loader import Loaded


# The file's path and its identity, and what of it is looked at.
Scene = tuple[str | int | float | tuple[int, int] | None, ...]


def video_cache_key(request: Request) -> Scene:
    """What must be equal for two requests to see the same pictures."""
    sampling = (request.frames, request.fps, request.start_seconds, request.end_seconds, request.size, request.stream)
    identity = file_identity(request.video)
    if request.timestamps and os.path.isfile(request.timestamps):  # if it is gone, opening the video says so
        identity += file_identity(request.timestamps)
    return (os.path.realpath(request.video), *identity, *sampling, request.picture_fps)


@dataclass(slots=True)
class RequestState:
    """What was asked, what runs now, what is there of the video, and what was given up."""

    request: Request
    scene: Scene
    video: VideoInfo
    checkpoint: Checkpoint
    task: PlanningProblem
    plan: Plan
    visual: "VisionEmbeddings | None" = None
    read: "CachedPrompt | None" = None
    dropped_turns: int = 0
    phase: str = "load"
    speech: "AnswerState | None" = None
    load_seconds: float = 0.0
    clock: Clock = field(default_factory=Clock)
    degraded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def enter(self, phase: str) -> None:
        """Remember what is being done, in case it fails."""
        self.phase = phase

    def note(self, text: str) -> Iterator[Event]:
        """Tell and keep a sentence, once."""
        if text not in self.notes:
            self.notes.append(text)
            yield Noted(text)

    def keep(self, pipeline: "Attempt") -> None:
        """Take over what an attempt left of the video."""
        self.visual, self.read = pipeline.visual, pipeline.read

    def lower(self, task: PlanningProblem, plan: Plan) -> None:
        """Go on with a smaller plan; the embeddings stay if it looks at the same pictures."""
        before, after = self.plan, plan
        same = (before.indices, before.run_config.height, before.run_config.width, before.run_config.dtype) == (
            after.indices, after.run_config.height, after.run_config.width, after.run_config.dtype,
        )  # fmt: skip
        if not same or not (self.visual and self.visual.complete):
            self.visual = None
        self.read, self.task, self.plan = None, task, plan


@dataclass(frozen=True, slots=True)
class PreviousRequest:
    """The last run, and what must be equal for the next one to go on from it."""

    scene: Scene
    config: EngineConfig
    run: RequestState


def keep(run: RequestState, config: EngineConfig) -> PreviousRequest | None:
    """What the next question can go on from; None where the video was not seen to its end."""
    return PreviousRequest(run.scene, config, run) if run.visual is not None and run.visual.complete else None


def resume_from(kept: PreviousRequest, request: Request, config: EngineConfig, loaded: "Loaded") -> RequestState | None:
    """A run that goes on from the last one; None where pictures or settings are others, or the room is too small.

    Raises VideoError children where the file is gone.
    """
    from vidqa.video.probe import check_file

    check_file(request.video)
    last = kept.run
    if kept.config != config or video_cache_key(request) != kept.scene or last.read is None or last.visual is None:
        return None
    room = last.read.cache.capacity - last.visual.filled - request.max_tokens
    shorter = request
    while (tokens := _text_tokens(shorter, last.plan, loaded)) > room and shorter.history:
        shorter = replace(shorter, history=shorter.history[1:])
    if tokens > room:
        return None
    run_config = replace(last.plan.run_config, max_tokens=request.max_tokens)
    plan = replace(last.plan, run_config=run_config, prompt_tokens=last.plan.visual_tokens + tokens)
    dropped = len(request.history) - len(shorter.history)
    task = replace(last.task, request=shorter)
    return RequestState(shorter, kept.scene, last.video, last.checkpoint, task, plan, last.visual, last.read, dropped)


def prompt_of(request: Request, loaded: "Loaded", stopped: Callable[[], bool] = never) -> "PromptTokens":
    """The request as token ids around the video; raises Interrupted soon after `stopped` says so."""
    from vidqa.engine.prompt import build_prompt

    return build_prompt(loaded, request.question, request.system, request.history, stopped)


def _text_tokens(request: Request, plan: Plan, loaded: "Loaded") -> int:
    """Return the tokens of a request's prompt without the video's."""
    from vidqa.engine.prompt import layout_of, text_tokens

    return text_tokens(layout_of(prompt_of(request, loaded), plan, loaded))
