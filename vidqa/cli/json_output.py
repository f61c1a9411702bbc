"""The objects of `--json` (docs/reference/json.md), from plans, videos and answers."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vidqa.engine.slice_selection import Moment
from vidqa.events import Found
from vidqa.messages import above_plan, pruning_object, sampling_object, subtitle_values
from vidqa.types import Answer, Plan, VideoInfo
from vidqa.video.change_signal import ChangeSignal

SCHEMA_VERSION = 1


def video_object(video: VideoInfo) -> dict[str, Any]:
    """Return the object `video`: the file's metadata."""
    return {
        "path": video.path,
        "container": video.container,
        "codec": video.codec,
        "duration_s": round(video.duration_seconds, 6),
        "start_s": round(video.start_seconds, 6),
        "lead_s": round(video.lead_seconds, 6),
        "width": video.width,
        "height": video.height,
        "fps": round(video.fps, 6),
        "frames": video.frame_count,
        "rotation": video.rotation_degrees,
        "pixel_aspect": round(video.pixel_aspect, 6),
        "sources": dict(video.sources),
    }


def plan_object(plan: Plan) -> dict[str, Any]:
    """Return the object `plan`: how the request runs, and the predicted memory and time."""
    run_config = plan.run_config
    return {
        **_values(plan, "model device"),
        **_values(run_config, "weights dtype kv"),
        "placement": asdict(run_config.placement),
        **_values(run_config, "frames height width"),
        **_values(plan, "visual_tokens prompt_tokens"),
        "pruning": _pruning_object(plan),
        "timestamps_s": [round(seconds, 6) for seconds in plan.timestamps_seconds],
        **_values(run_config, "attention prefill_chunk vision_chunk"),
        **_values(plan, "kv_capacity_tokens predicted_peak_bytes tensor_bytes margin_bytes required_bytes"),
        **_values(plan, "budget_bytes peak_phase"),
        "phase_bytes": dict(plan.phase_bytes),
        "lines": [asdict(line) for line in plan.lines],
        "limits": list(plan.limits),
        "choices": list(plan.choices),
        "predicted_s": _seconds(
            plan.seconds, "start scan video vision prefill first_token decode", digits=3, suffix=""
        ),
        "speed": plan.seconds.source,
        "score": round(plan.score, 3),
        **subtitle_values(plan),
        "sampling": sampling_object(plan),
        **({"focus": _focus_object(plan)} if plan.candidates else {}),
    }


def signal_object(signal: ChangeSignal) -> dict[str, Any]:
    """Return a video's change signal."""
    return {
        "complete": signal.complete,
        "seconds": list(signal.seconds),
        "change": list(signal.change),
        "cuts_s": list(signal.cuts),
    }


def _focus_object(plan: Plan) -> dict[str, Any]:
    """Return how a question selects or selected the frames; scores and slices are null before the run."""
    selection = plan.selection
    return {
        "candidates": len(plan.candidates),
        "host_bytes": plan.host_bytes,
        "slices": list(selection.chosen) if selection else None,
        "scores": [round(score, 6) for score in selection.scores] if selection else None,
        "slice_times_s": [round(seconds, 6) for seconds in selection.seconds] if selection else None,
        "scoring_s": round(selection.scoring_seconds, 6) if selection else None,
    }


def find_object(found: Found, text: str, moments: Sequence[Moment]) -> dict[str, Any]:
    """Return the object of `vidqa find --json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "video": video_object(found.video),
        "text": text,
        "moments": [
            {
                "start_s": round(one.start_seconds, 6),
                "end_s": round(one.end_seconds, 6),
                "score": round(one.score, 6),
            }
            for one in moments
        ],
        "plan": plan_object(found.plan),
        **domain_object(found.out_of_domain),
    }


def domain_object(out_of_domain: bool | None) -> dict[str, bool]:
    """Return the entry `out_of_domain`; none for a model of real videos."""
    return {} if out_of_domain is None else {"out_of_domain": out_of_domain}


def answer_object(answer: Answer) -> dict[str, Any]:
    """Return the object of `vidqa ask --json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "video": video_object(answer.video),
        "question": answer.question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "plan": plan_object(answer.plan),
        "memory": _memory_object(answer),
        "timing": {
            **_seconds(answer.timing, "open load video vision prefill first_token decode total", digits=6, suffix="_s"),
            "tokens": answer.timing.tokens,
            "tokens_per_s": round(answer.timing.tokens_per_second, 3),
        },
        "notes": list(answer.notes),
        "degraded": list(answer.degraded),
        **domain_object(answer.out_of_domain),
    }


def _memory_object(answer: Answer) -> dict[str, Any]:
    plan, memory = answer.plan, answer.memory
    return {
        **_values(memory, "weights_bytes kv_bytes runtime_bytes"),
        "planned_peak_bytes": plan.predicted_peak_bytes,
        "measured_peak_bytes": memory.measured_peak_bytes,
        "planned_tensor_bytes": plan.tensor_bytes,
        "tensor_peak_bytes": memory.tensor_peak_bytes,
        "above_plan": above_plan(plan, memory) or None,
        **_values(memory, "host_peak_bytes other_bytes"),
        "phases": [asdict(use) | {"seconds": round(use.seconds, 6)} for use in memory.phases],
    }


def _pruning_object(plan: Plan) -> dict[str, Any] | None:
    """Return how visual tokens are dropped; once the plan ran, kept and dropped ones of each temporal slice."""
    if (values := pruning_object(plan)) is None:
        return None
    kept = plan.kept_tokens
    return values | {
        "kept_per_slice": list(kept),
        "dropped_per_slice": [plan.slice_tokens - tokens for tokens in kept],
    }


def _values(record: object, names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names.split()}


def _seconds(record: object, names: str, *, digits: int, suffix: str) -> dict[str, float]:
    return {f"{name}{suffix}": round(getattr(record, f"{name}_seconds"), digits) for name in names.split()}
