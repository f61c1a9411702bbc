"""Stages of an answer in words: how far each is, how fast, and what all of it took. Knows events, no widget."""

import time
from collections.abc import Mapping
from typing import Any

from vidqa.events import StageProgress, StageStarted
from vidqa.history.export import describe_figures
from vidqa.utils.units import format_bytes

_UNITS = {"video": "frames", "vision": "slices", "prefill": "tokens", "decode": "tokens"}
_RATE_AFTER_SECONDS = 0.2


def took(finish_reason: str | None, plan: Mapping[str, Any], usage: Mapping[str, Any]) -> str:
    """The line under an answer, from figures as the history keeps them; empty where nothing is known."""
    mark = {"cancelled": "■ stopped · ", "length": "■ at its longest (max_tokens) · "}.get(finish_reason or "", "")
    figures = describe_figures(plan, usage)
    return mark + figures if figures else ""


class StageWords:
    """Collects the progress of one answer."""

    def __init__(self) -> None:
        self._stages: dict[str, tuple[int, int]] = {}
        self._begun: dict[str, float] = {}

    def started(self, event: StageStarted) -> None:
        """A stage begins."""
        self._stages[event.stage] = (0, event.total)
        self._begun[event.stage] = time.monotonic()

    def progressed(self, event: StageProgress) -> None:
        """A stage goes on."""
        self._stages[event.stage] = (event.done, event.total)
        self._begun.setdefault(event.stage, time.monotonic())

    def told(self) -> str:
        """All stages so far; a running one with its rate."""
        return " · ".join(self._one(stage, *counts) for stage, counts in self._stages.items())

    def _one(self, stage: str, done: int, total: int) -> str:
        if stage == "load":
            if not done:
                return "loading the model: starting PyTorch"
            return (
                "model loaded" if done >= total else f"loading the model: {format_bytes(done)} of {format_bytes(total)}"
            )
        if done >= total and stage != "decode":
            return f"{stage} ✓"
        seconds = time.monotonic() - self._begun[stage]
        rate = f" ({done / seconds:.0f}/s)" if done and seconds > _RATE_AFTER_SECONDS else ""
        return f"{stage} {done}/{total} {_UNITS.get(stage, '')}{rate}"
