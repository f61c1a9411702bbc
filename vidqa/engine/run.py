"""One `ask` on its way, and what the next one can go on from.

Decides whether a new request sees the same pictures and whether its conversation still fits
the cache; the oldest turns go first, whole. Runs nothing.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vidqa.config import EngineConfig
from vidqa.engine.timing import Clock
from vidqa.events import Event, Noted
from vidqa.memory.search import Task
from vidqa.models.choice import Checkpoint
from vidqa.types import Plan, Request, VideoInfo
from vidqa.video.decode import never

if TYPE_CHECKING:
    from vidqa.engine.kept import Read, Visual
    from vidqa.engine.pipeline import Pipeline
    from vidqa.engine.prompt import Prompt
    from vidqa.engine.speech import Speech
    from vidqa.models.loader import Loaded


# The file's path and its identity, and what of it is looked at.
Scene = tuple[str | int | float | tuple[int, int] | None, ...]


def scene_of(request: Request) -> Scene:
    """What must be equal for two requests to see the same pictures."""
    status = os.stat(request.video)
    sampling = (request.frames, request.fps, request.start_seconds, request.end_seconds, request.size, request.stream)
    identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)  # copies can keep a time
    return (os.path.realpath(request.video), *identity, *sampling)


@dataclass(slots=True)
class Run:
    """What was asked, what runs now, what is there of the video, and what was given up."""

    request: Request
    scene: Scene
    video: VideoInfo
    checkpoint: Checkpoint
    task: Task
    plan: Plan
    visual: "Visual | None" = None
    read: "Read | None" = None
    dropped_turns: int = 0
    phase: str = "load"
    speech: "Speech | None" = None
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

    def keep(self, pipeline: "Pipeline") -> None:
        """Take over what an attempt left of the video."""
        self.visual, self.read = pipeline.visual, pipeline.read

    def lower(self, task: Task, plan: Plan) -> None:
        """Go on with a smaller plan; the embeddings stay if it looks at the same pictures."""
        before, after = self.plan, plan
        same = (before.indices, before.draft.height, before.draft.width, before.draft.dtype) == (
            after.indices, after.draft.height, after.draft.width, after.draft.dtype,
        )  # fmt: skip
        if not same or not (self.visual and self.visual.complete):
            self.visual = None
        self.read, self.task, self.plan = None, task, plan


@dataclass(frozen=True, slots=True)
class Kept:
    """The last run, and what must be equal for the next one to go on from it."""

    scene: Scene
    config: EngineConfig
    run: Run


def keep(run: Run, config: EngineConfig) -> Kept | None:
    """What the next question can go on from; None where the video was not seen to its end."""
    return Kept(run.scene, config, run) if run.visual is not None and run.visual.complete else None


def recall(kept: Kept, request: Request, config: EngineConfig, loaded: "Loaded") -> Run | None:
    """A run that goes on from the last one; None where pictures or settings are others, or the room is too small.

    Raises VideoError children where the file is gone.
    """
    from vidqa.video.probe import check_file

    check_file(request.video)
    last = kept.run
    if kept.config != config or scene_of(request) != kept.scene or last.read is None or last.visual is None:
        return None
    room = last.read.cache.capacity - last.visual.filled - request.max_tokens
    shorter = request
    while (tokens := text_tokens(shorter, loaded)) > room and shorter.history:
        shorter = replace(shorter, history=shorter.history[1:])
    if tokens > room:
        return None
    draft = replace(last.plan.draft, max_tokens=request.max_tokens)
    plan = replace(last.plan, draft=draft, prompt_tokens=last.plan.visual_tokens + tokens)
    dropped = len(request.history) - len(shorter.history)
    task = replace(last.task, request=shorter)
    return Run(shorter, kept.scene, last.video, last.checkpoint, task, plan, last.visual, last.read, dropped)


def prompt_of(request: Request, loaded: "Loaded", stopped: Callable[[], bool] = never) -> "Prompt":
    """The request as token ids around the video; raises Interrupted soon after `stopped` says so."""
    from vidqa.engine.prompt import build_prompt

    return build_prompt(loaded, request.question, request.system, request.history, stopped)


def text_tokens(request: Request, loaded: "Loaded") -> int:
    """Tokens of the request without the video's."""
    prompt = prompt_of(request, loaded)
    return len(prompt.head) + len(prompt.tail)
