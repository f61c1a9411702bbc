"""The plan options that the user set, and the request and settings that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from os.path import basename
from typing import Any, Literal

from vidqa.config import FOCUS_CHOICES, KV_CHOICES, QUALITY_CHOICES, SAMPLE_CHOICES, EngineConfig
from vidqa.planner.placement import weight_choices
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.search import search_space
from vidqa.types import Request, Turn
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes, format_span
from vidqa.video.subtitle_files import AUTO, CHOICES, EMBEDDED, OFF

PLANNED_QUESTION = ""  # there is none yet: the planner leaves room for a usual one
CHOOSE_FILE = ""  # the value of `subs` that asks for a file
_SHARES = (0.5, 0.25, 0.125)
_GIB = 2**30
_WAITS = (5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 300.0, 600.0, inf)
_BUDGETS = (2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80)
# The context that a conversation has besides its first question and answer, in tokens.
_CONVERSATION_TOKENS = 1024
# The longest step between two checks for a cancel.
_STEP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class PlanOverrides:
    """Values that replace the planner's; None is the planner's choice.

    `size` is (height, width) in pixels. `max_wait_seconds` is infinite for no limit.
    """

    start_seconds: float | None = None
    end_seconds: float | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    weights: str | None = None
    kv: str | None = None
    vram_bytes: int | None = None
    quality: str | None = None
    max_wait_seconds: float | None = None
    sample: Literal["uniform", "change", "auto"] | None = None
    prune: Literal["auto", "off"] | float | None = None
    focus: Literal["auto", "off"] | None = None
    subs: str | None = None

    def request(self, base: Request, question: str, history: tuple[Turn, ...] = ()) -> Request:
        """Return a request with `base`'s video, system prompt and sampling."""
        return replace(
            base,
            question=question,
            history=history,
            frames=self.frames or base.frames,
            size=(self.size[1], self.size[0]) if self.size else base.size,
            start_seconds=self.start_seconds,
            end_seconds=self.end_seconds,
            sample=self.sample or base.sample,
            focus=self.focus or base.focus,
            subs=self.subs or base.subs,
        )

    def for_another_video(self) -> "PlanOverrides":
        """Return the overrides without those that are about one video."""
        subs = self.subs if self.subs in CHOICES else None
        return replace(self, start_seconds=None, end_seconds=None, frames=None, size=None, subs=subs)

    def config(self, base: EngineConfig) -> EngineConfig:
        """Return `base` with the overridden settings."""
        return replace(
            base,
            weights=self.weights or base.weights,
            kv=self.kv or base.kv,
            vram_bytes=self.vram_bytes or base.vram_bytes,
            quality=self.quality or base.quality,
            max_wait_seconds=self.max_wait_seconds or base.max_wait_seconds,
            prune=self.prune or base.prune,
        )


def interactive_config(config: EngineConfig, cores: int) -> EngineConfig:
    """Return the settings of an interactive session: short steps, a longer context, and a free core to draw."""
    return replace(
        config,
        conversation_tokens=config.conversation_tokens or _CONVERSATION_TOKENS,
        step_seconds=config.step_seconds or _STEP_SECONDS,
        cpu_threads=config.cpu_threads or max(cores - 1, 1),
    )


# The fields of PlanOverrides that the plan panel shows, with their tooltips.
PLAN_OPTIONS: Mapping[str, str] = {
    "frames": "How many frames are sampled; more frames are smaller",
    "size": "The size of each frame; larger frames are fewer",
    "quality": "The planner's limit: fast, balanced or best",
    "max_wait_seconds": "The longest time to the first word",
    "weights": "Precision of the weights; a change loads the model again",
    "kv": "Precision of the KV cache",
    "vram_bytes": "The memory to plan for, instead of all free memory",
    "sample": "Where frames lie: evenly, where the video changes, or there if it changes unevenly (auto)",
    "prune": "Drop visual tokens that repeat (auto), or keep a share of them",
    "focus": "Let the question select the frames of a video that is too long to read",
    "subs": "Subtitles that the model reads: beside the video or in it (auto), in it (embedded), or a file",
}
SETTING_OPTIONS = ("sample", "prune", "focus", "subs")  # None is the setting of this name, not the planner's choice


def option_choices(problem: PlanningProblem) -> Mapping[str, tuple[Any, ...]]:
    """Return the values that each option can be set to, in order."""
    unconstrained = replace(problem, request=replace(problem.request, frames=None, fps=None, size=None))
    space = search_space(unconstrained, forecast=False)
    total = problem.device.total_bytes
    return {
        "frames": space.counts,
        "size": space.sizes,
        "quality": QUALITY_CHOICES,
        "max_wait_seconds": _WAITS,
        "weights": weight_choices(problem.device, problem.spec) if not problem.spec.stored else (),
        "kv": KV_CHOICES,
        "vram_bytes": tuple(size * _GIB for size in _BUDGETS if size * _GIB < total),
        "sample": SAMPLE_CHOICES,
        "prune": _prune_choices(problem.config.prune),
        "focus": FOCUS_CHOICES[::-1],
        "subs": _subtitle_choices(problem.request.subs),
    }


def _prune_choices(current: str | float) -> tuple[str | float, ...]:
    shares = {*_SHARES, current} if isinstance(current, int | float) else set(_SHARES)
    return ("off", "auto", *sorted(shares, reverse=True))


def _subtitle_choices(current: str) -> tuple[str, ...]:
    file = () if current in CHOICES else (current,)
    return (OFF, AUTO, EMBEDDED, *file, CHOOSE_FILE)


def format_option(field: str, value: Any) -> str:
    """Return the value of an option as text."""
    if field == "size":
        return f"{value[1]}×{value[0]}"
    if field == "max_wait_seconds":
        return "no limit" if value == inf else f"at most {format_span(value)}"
    if field == "subs":
        return "a file…" if value == CHOOSE_FILE else value if value in CHOICES else safe_line(basename(value))
    return format_bytes(value) if field == "vram_bytes" else str(value)
