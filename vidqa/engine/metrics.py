"""What is told of a finished run: the answer, its times and its memory, and what the next plan learns from them.

Puts together what others measured. Runs nothing.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vidqa.devices.device import reread
from vidqa.engine.request_state import RequestState
from vidqa.planner import calibration
from vidqa.types import Answer, FinishReason, MemoryUse, Plan, Timing

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker
    from vidqa.models.loader import Loaded


def answer_of(run: RequestState, plan: Plan, reason: FinishReason, memory: MemoryUse) -> Answer:
    """A run's answer, with the plan that ran."""
    assert run.speech is not None
    return Answer(
        text=run.speech.text,
        finish_reason=reason,
        question=run.request.question,
        video=run.video,
        plan=plan,
        timing=_timing(run, len(run.speech.tokens)),
        memory=memory,
        notes=tuple(run.notes),
        degraded=tuple(run.degraded),
    )


def memory_use(run: RequestState, loaded: "Loaded", tracker: "Tracker", kv_bytes: int, runtime_bytes: int) -> MemoryUse:
    """What a run took; `runtime_bytes` is the process's own where the tracker does not know it."""
    return MemoryUse(
        weights_bytes=loaded.model.weights_bytes,
        kv_bytes=kv_bytes,
        runtime_bytes=tracker.runtime_bytes or runtime_bytes,
        measured_peak_bytes=tracker.process_peak_bytes(),
        host_peak_bytes=tracker.host_peak_bytes(),
        other_bytes=reread(run.task.device).other_bytes,
        phases=tracker.phases,
        tensor_peak_bytes=tracker.tensor_peak_bytes,
    )


def remember_peaks(run: RequestState, memory: MemoryUse) -> None:
    """Keep what was planned and what it took, for the next plan on this machine.

    On CUDA that is the process on the device; elsewhere its tensors, which alone are predicted there.
    """
    plan, device = run.plan, run.task.device
    planned, measured, runtime = plan.predicted_peak_bytes, memory.measured_peak_bytes, memory.runtime_bytes or None
    if device.kind != "cuda":
        if memory.tensor_peak_bytes is None:
            return
        planned, measured = plan.tensor_bytes, memory.tensor_peak_bytes
        runtime = runtime if run.load_seconds else None  # later there is what earlier questions left
    calibration.remember(device, plan.model, plan.run_config.weights, planned, measured, runtime)


def dropped_turns(run: RequestState) -> Iterator[str]:
    """A sentence where the conversation outgrew its room."""
    if run.dropped_turns:
        yield (
            f"the conversation outgrew its {run.plan.kv_capacity_tokens:,} planned tokens: the oldest "
            f"{run.dropped_turns} of its questions and answers are no longer remembered"
        )


def _timing(run: RequestState, tokens: int) -> Timing:
    clock = run.clock
    return Timing(
        load_seconds=run.load_seconds,
        video_seconds=clock.video,
        vision_seconds=clock.vision,
        prefill_seconds=clock.prefill,
        first_token_seconds=clock.first_token,
        decode_seconds=clock.decode,
        tokens=tokens,
    )
