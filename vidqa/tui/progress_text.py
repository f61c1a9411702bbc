"""The progress of an answer, and its figures, as text."""

import time
from collections.abc import Mapping
from typing import Any

from vidqa.events import StageProgress, StageStarted
from vidqa.history.export import describe_figures
from vidqa.utils.units import format_bytes

_UNITS = {
    "scan": "frames", "video": "frames", "vision": "slices", "focus": "slices", "prefill": "tokens", "decode": "tokens",
}  # fmt: skip
_MIN_RATE_SECONDS = 0.2


def usage_line(finish_reason: str | None, plan: Mapping[str, Any], usage: Mapping[str, Any]) -> str:
    """Return the line under an answer, from figures as the history stores them; empty if there are none."""
    mark = {"cancelled": "■ stopped · ", "length": "■ cut at max_tokens · "}.get(finish_reason or "", "")
    figures = describe_figures(plan, usage)
    return mark + figures if figures else ""


def short_usage_line(finish_reason: str | None, plan: Mapping[str, Any], usage: Mapping[str, Any]) -> str:
    """Return what matters most of `usage_line`; the seconds are with loading. Empty if there are no figures."""
    if not plan or not usage:
        return ""
    seconds = usage.get("load_s", 0.0) + usage.get("total_s", usage["first_token_s"])
    mark = "■ stopped · " if finish_reason == "cancelled" else "■ cut · " if finish_reason == "length" else ""
    return f"{mark}answer in {seconds:.1f} s · {plan['frames']} frames · {usage['tokens']} tokens"


class ProgressText:
    """Collects the progress of all stages of an answer."""

    def __init__(self) -> None:
        self._stages: dict[str, tuple[int, int]] = {}
        self._started: dict[str, float] = {}

    def start(self, event: StageStarted) -> None:
        """Add a stage."""
        self._stages[event.stage] = (0, event.total)
        self._started[event.stage] = time.monotonic()

    def update(self, event: StageProgress) -> None:
        """Update a stage."""
        self._stages[event.stage] = (event.done, event.total)
        self._started.setdefault(event.stage, time.monotonic())

    def text(self) -> str:
        """Return all stages so far, the running one with its rate."""
        return " · ".join(self._stage_text(stage, *counts) for stage, counts in self._stages.items())

    def _stage_text(self, stage: str, done: int, total: int) -> str:
        if stage == "load":
            loaded = f"{format_bytes(done)} of {format_bytes(total)}" if done else "starting PyTorch"
            return "model loaded" if done >= total > 0 else f"loading the model: {loaded}"
        if done >= total and stage != "decode":
            return f"{stage} ✓"
        seconds = time.monotonic() - self._started[stage]
        rate = f" ({done / seconds:.0f}/s)" if done and seconds > _MIN_RATE_SECONDS else ""
        return f"{stage} {done}/{total} {_UNITS.get(stage, '')}{rate}"
