"""Records of the history: conversations about videos, their turns, and the figures of an answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import Any, Literal

from vidqa.messages import plan_memory, used_memory
from vidqa.types import Answer, Plan

TurnState = Literal["running", "answered", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A conversation about one video. Times are UTC, sizes in pixels; `title` is the first question."""

    id: int
    video_path: str
    video_seconds: float
    video_width: int
    video_height: int
    model: str
    title: str
    turn_count: int
    created: datetime
    updated: datetime

    @property
    def video_name(self) -> str:
        """The file's name without its folder."""
        return PurePath(self.video_path).name


@dataclass(frozen=True, slots=True)
class SavedTurn:
    """A question and its answer; of a stopped or failed turn the text until then.

    `start_seconds` and `end_seconds` are the range of the question, None for the video's ends. `plan` and `usage` are
    `plan_figures` and `usage_figures` of the answer, empty before there is one.
    """

    id: int
    session_id: int
    question: str
    answer: str
    state: TurnState
    finish_reason: str | None
    start_seconds: float | None
    end_seconds: float | None
    plan: Mapping[str, Any] = field(repr=False)
    usage: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...]
    degraded: tuple[str, ...]
    error: str
    created: datetime
    updated: datetime


@dataclass(frozen=True, slots=True)
class Hit:
    """A turn with the searched text: `snippet` is one line around it, in which it stands from `start` to `end`."""

    session: SavedSession
    turn: SavedTurn
    snippet: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RecentVideo:
    """A video of an earlier session, as it was then; sizes in pixels, `opened` in UTC."""

    path: str
    seconds: float
    width: int
    height: int
    opened: datetime


def plan_figures(plan: Plan) -> dict[str, Any]:
    """Return the figures of a plan that are saved, with the keys of `vidqa ask --json`."""
    run_config = plan.run_config
    return {
        **plan_memory(plan),
        "weights": run_config.weights,
        "kv": run_config.kv,
        "frames": run_config.frames,
        "width": run_config.width,
        "height": run_config.height,
        "visual_tokens": plan.visual_tokens,
        "prompt_tokens": plan.prompt_tokens,
        "budget_bytes": plan.budget_bytes,
    }


def usage_figures(answer: Answer) -> dict[str, Any]:
    """Return the figures of an answer that are saved: seconds, tokens, tokens per second, bytes.

    `total_s` is without loading, `answer_s` with it and with opening the video.
    """
    timing = answer.timing
    return {
        "load_s": round(timing.load_seconds, 3),
        "first_token_s": round(timing.first_token_seconds, 3),
        "total_s": round(timing.first_token_seconds + timing.decode_seconds, 3),
        "answer_s": round(timing.total_seconds, 3),
        "tokens": timing.tokens,
        "tokens_per_s": round(timing.tokens_per_second, 3),
        **used_memory(answer),
    }
