"""The progress of an answer, and its figures, as text."""

import time
from collections.abc import Mapping
from typing import Any

from vidqa.events import LOADING, StageProgress, StageStarted
from vidqa.history.export import answer_seconds, describe_figures
from vidqa.utils.units import format_bytes

_UNITS = {
    "video": "frames", "vision": "slices", "focus": "slices", "prefill": "tokens", "decode": "tokens",
}  # fmt: skip
_LOADING_STEPS = {"libraries": "starting libraries", "speed": "measuring this machine's speed, once,"}
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
    mark = "■ stopped · " if finish_reason == "cancelled" else "■ cut · " if finish_reason == "length" else ""
    return f"{mark}answer in {answer_seconds(usage):.1f} s · {plan['frames']} frames · {usage['tokens']} tokens"


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
        texts = (self._stage_text(stage, *counts) for stage, counts in self._stages.items())
        return " · ".join(filter(None, texts))

    def _stage_text(self, stage: str, done: int, total: int) -> str:
        if stage in LOADING and done < total:
            if stage == "load":
                return f"loading the model: {format_bytes(done)} of {format_bytes(total)}"
            return f"loading the model: {_LOADING_STEPS[stage]} {100 * done // total} %"
        if stage in LOADING:
            return "model loaded" if stage == "load" else ""
        if done >= total and stage != "decode":
            return f"{stage} ✓"
        if stage == "scan":  # a scan that is short of time leaves frames out, so a rate of frames would be false
            return f"scan {100 * done // total} %"
        seconds = time.monotonic() - self._started[stage]
        rate = f" ({done / seconds:.0f}/s)" if done and seconds > _MIN_RATE_SECONDS else ""
        return f"{stage} {done}/{total} {_UNITS.get(stage, '')}{rate}"
