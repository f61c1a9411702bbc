"""Texts about plans and answers that the command line and the interactive session share."""

from collections.abc import Mapping
from typing import Any

from vidqa.types import Answer, Plan
from vidqa.utils.metrics import MemoryUse
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes, format_span

_STOPPED = {"length": " (stopped at --max-tokens)", "cancelled": " (stopped)"}


def model_label(name: str) -> str:
    """Return a model's name; for the demo model with its limits."""
    return "demo model: coloured shapes only" if name == "demo" else safe_line(name)


def base_name(model: str) -> str:
    """Return a model's name without its owner or folder, and without `-Instruct`, which is no part of what differs."""
    return model.rstrip("/").rpartition("/")[2].removesuffix("-Instruct")


def out_of_domain_text(knows: str, advice: str = "") -> str:
    """Return the warning for a video that the model cannot know; `advice` names a model that fits here, if any."""
    warning = f"The demo model knows only {safe_line(knows)}: its answer about this video means nothing."
    return f"{warning} {safe_line(advice)}".strip()


def usage_text(answer: Answer) -> str:
    """Return the seconds, tokens and memory of an answer, measured and planned."""
    timing, kept = answer.timing, ""
    if answer.plan.kept_tokens:
        kept = f" · {visual_tokens_text(answer.plan)} tokens kept"
    return (
        f"{duration_text(timing.total_seconds, timing.load_seconds, timing.first_token_seconds)}{kept} · "
        f"{timing.tokens} tokens{_STOPPED.get(answer.finish_reason, '')} at {timing.tokens_per_second:.0f}/s · "
        + memory_text(plan_memory(answer.plan), used_memory(answer))
    )


def duration_text(total_seconds: float, load_seconds: float, first_token_seconds: float) -> str:
    """Return how long an answer took, with its parts: `answer in 12.4 s (8.9 to load, first word after 0.8)`.

    The total includes loading; the first word counts from a loaded model.
    """
    loading = f"{load_seconds:.1f} to load, " if load_seconds else ""
    return f"answer in {total_seconds:.1f} s ({loading}first word after {first_token_seconds:.1f})"


def visual_tokens_text(plan: Plan) -> str:
    """Return a plan's visual tokens, and of how many they are kept if some are dropped."""
    kept, whole = f"{plan.visual_tokens:,}", f"{plan.video_tokens:,}"
    if plan.kept_tokens or plan.visual_tokens < plan.video_tokens:
        return f"{kept} of {whole} visual"
    return f"at most {kept} visual" if plan.run_config.drop_repeats else f"{kept} visual"


def time_text(plan: Plan) -> str:
    """Return when the first word of a plan's answer is expected, and how fast the others follow."""
    seconds = plan.seconds
    rate = plan.run_config.max_tokens / seconds.decode_seconds
    return (
        f"first word in about {format_span(seconds.first_token_seconds)}, then {rate:.3g} tokens/s ({seconds.source})"
    )


def subtitle_values(plan: Plan) -> dict[str, Any]:
    """Return the entry `subtitles` of a plan's object; none without subtitles."""
    if (planned := plan.subtitles) is None:
        return {}
    names = {"source": planned.source, "language": planned.language}
    return {"subtitles": names | {"lines": len(planned.cues), "left_out": planned.left_out}}


def sampling_object(plan: Plan) -> dict[str, Any] | None:
    """Return how a plan's frames were placed after a scan of the video; None without a scan."""
    if (sampling := plan.sampling) is None:
        return None
    parts = [
        {
            "start_s": round(part.start_seconds, 3),
            "end_s": round(part.end_seconds, 3),
            "frames": part.frames,
            "change": round(part.change, 4),
        }
        for part in sampling.parts
    ]
    return {"kind": sampling.kind, "reason": sampling.reason, "parts": parts}


def pruning_object(plan: Plan) -> dict[str, Any] | None:
    """Return how visual tokens are dropped, without what each temporal slice kept; None if all are kept."""
    run_config = plan.run_config
    if not (run_config.drop_repeats or run_config.visual_share < 1):
        return None
    return {
        "mode": "auto" if run_config.drop_repeats else "share",
        "planned_share": round(run_config.visual_share, 6),
        "video_tokens": plan.video_tokens,
    }


def plan_memory(plan: Plan) -> dict[str, Any]:
    """Return the figures of a plan's memory, with the keys of `--json`."""
    return {
        "device": plan.device,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "margin_bytes": plan.margin_bytes,
        "tensor_bytes": plan.tensor_bytes,
    }


def used_memory(answer: Answer) -> dict[str, Any]:
    """Return the figures of an answer's memory, with the keys of `--json`."""
    return {
        "measured_peak_bytes": answer.memory.measured_peak_bytes,
        "tensor_peak_bytes": answer.memory.tensor_peak_bytes,
        "above_plan": above_plan(answer.plan, answer.memory),
    }


def memory_text(plan: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """Return measured and planned memory, from `plan_memory` and `used_memory`; older records have some of their keys.

    The process's memory is compared with the plan and its margin. On a CPU its tensors are compared too, since the
    process holds the interpreter. The cause of an excess follows only where the margin did not hold it.
    """
    planned, measured, margin = plan["predicted_peak_bytes"], used["measured_peak_bytes"], plan.get("margin_bytes") or 0
    summary = f"peak {format_bytes(measured)} of {format_bytes(planned)} planned"
    summary += f" + {format_bytes(margin)} margin" if margin else ""
    over_bytes, tensors = measured - planned, used.get("tensor_peak_bytes")
    if tensors is not None and plan.get("tensor_bytes") and not plan["device"].startswith("cuda"):
        summary += f" · tensors {format_bytes(tensors)} of {format_bytes(plan['tensor_bytes'])}"
        over_bytes = max(over_bytes, tensors - plan["tensor_bytes"])
    if over_bytes <= margin:
        return summary
    return f"{summary} ({used.get('above_plan') or above_text(over_bytes, margin)})"


def above_plan(plan: Plan, memory: MemoryUse) -> str:
    """Return by how much the memory exceeded the plan, or plan and margin, and why; empty if it did not."""
    over_bytes, why = _excess(plan, memory)
    return f"{above_text(over_bytes, plan.margin_bytes)}: {why}" if over_bytes else ""


def above_text(over_bytes: int, margin_bytes: int) -> str:
    """Return an excess over the plan: the bytes above it if the margin holds them, else those above both."""
    if over_bytes <= margin_bytes:
        return f"{format_bytes(over_bytes)} above plan, within the margin"
    return f"{format_bytes(over_bytes - margin_bytes)} above plan and margin"


def _excess(plan: Plan, memory: MemoryUse) -> tuple[int, str]:
    """Return the bytes above the plan and their cause; 0 if there are none."""
    tensors = memory.tensor_peak_bytes or 0
    if tensors > plan.tensor_bytes > 0:
        phase = max(memory.phases, key=lambda use: use.peak_bytes).name if memory.phases else plan.peak_phase
        return tensors - plan.tensor_bytes, f"the {phase} phase's tensors took more than planned"
    over = memory.measured_peak_bytes - plan.predicted_peak_bytes
    if over <= 0:
        return 0, ""
    if plan.device.startswith("cuda"):
        grown = memory.runtime_bytes - sum(line.bytes for line in plan.lines if line.name == "runtime")
        if grown > 0:
            return over, f"CUDA's context took {format_bytes(grown)} more than was planned for it"
        return over, f"torch's allocator held more than the {format_bytes(tensors)} that were in tensors"
    grown = memory.measured_peak_bytes - memory.runtime_bytes - tensors
    return over, f"the process itself grew by {format_bytes(grown)} outside its tensors"


def degraded_text(phase: str, step: str, plan: Plan) -> str:
    """Return what was lowered after memory ran out, and the new plan."""
    run_config = plan.run_config
    return (
        f"{phase} ran out of memory; going on with {step}: "
        f"{run_config.frames} frames of {run_config.width}×{run_config.height}, "
        f"{format_bytes(plan.predicted_peak_bytes)}"
    )
