"""Sentences that every face says about plans and answers, so that they say the same. Knows types, no screen."""

from vidqa.text import safe_line
from vidqa.types import Answer, Plan
from vidqa.units import format_bytes

_STOPPED = {"length": " (stopped at --max-tokens)", "cancelled": " (stopped)"}


def model_words(name: str) -> str:
    """A model's name; of the demo also what it can do."""
    return "demo model: coloured shapes only" if name == "demo" else safe_line(name)


def usage_words(answer: Answer) -> str:
    """What an answer took: tokens, seconds, and the measured beside the planned peak."""
    timing = answer.timing
    return (
        f"{timing.tokens} tokens{_STOPPED.get(answer.finish_reason, '')} · first after "
        f"{timing.first_token_seconds:.2f} s · {timing.tokens_per_second:.0f} tokens/s · peak memory "
        f"{format_bytes(answer.memory.measured_peak_bytes)} of "
        f"{format_bytes(answer.plan.predicted_peak_bytes)} planned"
    )


def degraded_words(phase: str, step: str, plan: Plan) -> str:
    """What was given up when memory ran out, and what goes on."""
    draft = plan.draft
    return (
        f"{phase} ran out of memory; going on with {step}: {draft.frames} frames of {draft.width}×{draft.height}, "
        f"{format_bytes(plan.predicted_peak_bytes)}"
    )
