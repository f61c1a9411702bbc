"""What the person set, and what of it becomes a request and a configuration. Frozen data, no widget."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vidqa.config import KV_CHOICES, QUALITY_CHOICES, EngineConfig
from vidqa.planner.placement import weight_choices
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.search import search_space
from vidqa.types import Request, Turn
from vidqa.utils.units import format_bytes

PLANNED_QUESTION = "what happens?"  # before there is a question, this one is planned for
_GIB = 2**30
_BUDGETS = (2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80)
# What every conversation has room for beside its first question and answer, in tokens.
_CONVERSATION_TOKENS = 1024
# Where a person can press Stop, nothing may run longer than this without looking.
_STEP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class PlanOverrides:
    """What is looked at and how; None leaves a choice to the planner. `size` is (height, width)."""

    start_seconds: float | None = None
    end_seconds: float | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    weights: str | None = None
    kv: str | None = None
    vram_bytes: int | None = None
    quality: str | None = None

    def request(self, base: Request, question: str, history: tuple[Turn, ...] = ()) -> Request:
        """The request for a question, with `base`'s video, system prompt and sampling."""
        return replace(
            base,
            question=question,
            history=history,
            frames=self.frames or base.frames,
            size=(self.size[1], self.size[0]) if self.size else base.size,
            start_seconds=self.start_seconds,
            end_seconds=self.end_seconds,
        )

    def config(self, base: EngineConfig) -> EngineConfig:
        """The settings to plan and run with."""
        return replace(
            base,
            weights=self.weights or base.weights,
            kv=self.kv or base.kv,
            vram_bytes=self.vram_bytes or base.vram_bytes,
            quality=self.quality or base.quality,
        )


def interactive(config: EngineConfig, cores: int) -> EngineConfig:
    """What a face that draws needs: short steps, room to talk, and a core for itself."""
    return replace(
        config,
        conversation_tokens=config.conversation_tokens or _CONVERSATION_TOKENS,
        step_seconds=config.step_seconds or _STEP_SECONDS,
        cpu_threads=config.cpu_threads or max(cores - 1, 1),
    )


KNOBS: Mapping[str, str] = {
    "frames": "How many frames are sampled; more frames leave fewer pixels for each",
    "size": "How large each frame is; larger ones leave room for fewer",
    "quality": "The planner's cap: fast, balanced or best",
    "weights": "Precision of the weights; another one loads the model anew",
    "kv": "Precision of the KV cache",
    "vram_bytes": "The memory to plan for, instead of all that is free",
}


def knob_choices(task: PlanningProblem) -> Mapping[str, tuple[Any, ...]]:
    """What each knob can be set to, in order; None, the planner's choice, is not listed."""
    free = replace(task, request=replace(task.request, frames=None, fps=None, size=None))
    space = search_space(free)
    most = task.device.total_bytes
    return {
        "frames": space.counts,
        "size": space.sizes,
        "quality": QUALITY_CHOICES,
        "weights": tuple(weight_choices(task.device)) if not task.spec.stored else (),
        "kv": KV_CHOICES,
        "vram_bytes": tuple(size * _GIB for size in _BUDGETS if size * _GIB < most),
    }


def shown_value(name: str, value: Any) -> str:
    """A knob's value in words."""
    if name == "size":
        return f"{value[1]}×{value[0]}"
    return format_bytes(value) if name == "vram_bytes" else str(value)
