"""The documented objects of `--json` (README, "JSON"), from plans, videos and answers.

Renames and rounds; decides nothing.
"""

from dataclasses import asdict
from typing import Any

from vidqa.messages import above_plan
from vidqa.types import Answer, Plan, VideoInfo

SCHEMA_VERSION = 1


def video_object(video: VideoInfo) -> dict[str, Any]:
    """`video`: what was learned about the file."""
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
    """`plan`: what runs and what it is predicted to take."""
    run_config = plan.run_config
    return {
        "model": plan.model,
        "device": plan.device,
        "weights": run_config.weights,
        "dtype": run_config.dtype,
        "kv": run_config.kv,
        "placement": asdict(run_config.placement),
        "frames": run_config.frames,
        "height": run_config.height,
        "width": run_config.width,
        "visual_tokens": plan.visual_tokens,
        "prompt_tokens": plan.prompt_tokens,
        "timestamps_s": [round(seconds, 6) for seconds in plan.timestamps_seconds],
        "attention": run_config.attention,
        "prefill_chunk": run_config.prefill_chunk,
        "vision_chunk": run_config.vision_chunk,
        "kv_capacity_tokens": plan.kv_capacity_tokens,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "tensor_bytes": plan.tensor_bytes,
        "margin_bytes": plan.margin_bytes,
        "required_bytes": plan.required_bytes,
        "budget_bytes": plan.budget_bytes,
        "peak_phase": plan.peak_phase,
        "phase_bytes": dict(plan.phase_bytes),
        "lines": [asdict(line) for line in plan.lines],
        "limits": list(plan.limits),
        "predicted_s": {
            "video": round(plan.seconds.video_seconds, 3),
            "vision": round(plan.seconds.vision_seconds, 3),
            "prefill": round(plan.seconds.prefill_seconds, 3),
            "decode": round(plan.seconds.decode_seconds, 3),
        },
        "score": round(plan.score, 3),
    }


def answer_object(answer: Answer) -> dict[str, Any]:
    """The one object of `vidqa ask --json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "video": video_object(answer.video),
        "question": answer.question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "plan": plan_object(answer.plan),
        "memory": _memory_object(answer),
        "timing": _timing_object(answer),
        "notes": list(answer.notes),
        "degraded": list(answer.degraded),
    }


def _memory_object(answer: Answer) -> dict[str, Any]:
    memory = answer.memory
    return {
        "weights_bytes": memory.weights_bytes,
        "kv_bytes": memory.kv_bytes,
        "runtime_bytes": memory.runtime_bytes,
        "planned_peak_bytes": answer.plan.predicted_peak_bytes,
        "measured_peak_bytes": memory.measured_peak_bytes,
        "planned_tensor_bytes": answer.plan.tensor_bytes,
        "tensor_peak_bytes": memory.tensor_peak_bytes,
        "above_plan": above_plan(answer.plan, memory) or None,
        "host_peak_bytes": memory.host_peak_bytes,
        "other_bytes": memory.other_bytes,
        "phases": [asdict(use) | {"seconds": round(use.seconds, 6)} for use in memory.phases],
    }


def _timing_object(answer: Answer) -> dict[str, Any]:
    timing = answer.timing
    return {
        "load_s": round(timing.load_seconds, 6),
        "video_s": round(timing.video_seconds, 6),
        "vision_s": round(timing.vision_seconds, 6),
        "prefill_s": round(timing.prefill_seconds, 6),
        "first_token_s": round(timing.first_token_seconds, 6),
        "decode_s": round(timing.decode_seconds, 6),
        "tokens": timing.tokens,
        "tokens_per_s": round(timing.tokens_per_second, 3),
    }
