"""Sentences that every face says about plans and answers, so that they say the same. Knows types, no screen."""

from collections.abc import Mapping
from typing import Any

from vidqa.types import Answer, MemoryUse, Plan
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes

_STOPPED = {"length": " (stopped at --max-tokens)", "cancelled": " (stopped)"}


def model_words(name: str) -> str:
    """A model's name; of the demo also what it can do."""
    return "demo model: coloured shapes only" if name == "demo" else safe_line(name)


def usage_words(answer: Answer) -> str:
    """What an answer took: tokens, seconds, and the measured beside the planned memory."""
    timing = answer.timing
    return (
        f"{timing.tokens} tokens{_STOPPED.get(answer.finish_reason, '')} · first after "
        f"{timing.first_token_seconds:.2f} s · {timing.tokens_per_second:.0f} tokens/s · "
        + memory_words(plan_memory(answer.plan), used_memory(answer))
    )


def plan_memory(plan: Plan) -> dict[str, Any]:
    """What is said of a plan's memory, in the words of `--json`."""
    return {
        "device": plan.device,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "tensor_bytes": plan.tensor_bytes,
    }


def used_memory(answer: Answer) -> dict[str, Any]:
    """What is said of the memory that an answer took, in the words of `--json`."""
    return {
        "measured_peak_bytes": answer.memory.measured_peak_bytes,
        "tensor_peak_bytes": answer.memory.tensor_peak_bytes,
        "above_plan": above_plan(answer.plan, answer.memory),
    }


def memory_words(plan: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """Measured beside planned memory, from `plan_memory` and `used_memory`, which older records have in part.

    On a GPU the process's share of it is compared; elsewhere the tensors are, and the process is named apart: it holds
    the interpreter too, which no plan decides.
    """
    planned, measured = plan["predicted_peak_bytes"], used["measured_peak_bytes"]
    tensors = used.get("tensor_peak_bytes")
    if plan["device"].startswith("cuda") or tensors is None or not plan.get("tensor_bytes"):
        summary = f"peak {format_bytes(measured)} of {format_bytes(planned)} planned"
        above = f"{format_bytes(measured - planned)} above plan" if measured > planned else ""
    else:
        summary = f"tensors {format_bytes(tensors)} of {format_bytes(plan['tensor_bytes'])} planned"
        summary, above = f"{summary} · process {format_bytes(measured)}", ""
    above = used.get("above_plan") or above
    return f"{summary} ({above})" if above else summary


def above_plan(plan: Plan, memory: MemoryUse) -> str:
    """What exceeded the plan, by how much, and why; empty where nothing did."""
    tensors = memory.tensor_peak_bytes or 0
    if tensors > plan.tensor_bytes > 0:
        phase = max(memory.phases, key=lambda use: use.peak_bytes).name if memory.phases else plan.peak_phase
        return _above(tensors - plan.tensor_bytes, f"the {phase} phase's tensors took more than planned")
    over = memory.measured_peak_bytes - plan.predicted_peak_bytes
    if over <= 0:
        return ""
    if plan.device.startswith("cuda"):
        grown = memory.runtime_bytes - sum(line.bytes for line in plan.lines if line.name == "runtime")
        if grown > 0:
            return _above(over, f"CUDA's context took {format_bytes(grown)} more than was planned for it")
        return _above(over, f"torch's allocator held more than the {format_bytes(tensors)} that were in tensors")
    grown = memory.measured_peak_bytes - memory.runtime_bytes - tensors
    return _above(over, f"the process itself grew by {format_bytes(grown)} beside its tensors")


def _above(over_bytes: int, cause: str) -> str:
    return f"{format_bytes(over_bytes)} above plan: {cause}"


def degraded_words(phase: str, step: str, plan: Plan) -> str:
    """What was given up when memory ran out, and what goes on."""
    run_config = plan.run_config
    return (
        f"{phase} ran out of memory; going on with {step}: "
        f"{run_config.frames} frames of {run_config.width}×{run_config.height}, "
        f"{format_bytes(plan.predicted_peak_bytes)}"
    )
