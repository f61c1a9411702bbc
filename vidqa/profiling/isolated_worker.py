"""The process of one run: `python -m vidqa.profiling.isolated_worker FD` with a Job on stdin.

Loads the model, asks a tiny question first so that kernels and libraries are there, then the
real one, and writes one JSON line to descriptor FD. Out of memory is a result. Nothing heavy
is imported before the limit is set.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidqa.profiling.isolated_run import MEMORY_SIGNS, IsolatedRun, from_json
from vidqa.types import Answer, Request

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker
    from vidqa.types import Device

WARM_UP_SIDE = 56  # pixels: four tokens, the smallest picture with rows and columns


def main() -> int:
    """Run the job on stdin; tell the result; returns 0 whenever there is one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends this process itself
    descriptor, job = int(sys.argv[1]), from_json(sys.stdin.read())
    if job.limit_bytes is not None and _is_host(job):
        _limit_data(job.limit_bytes)
    result = caught(_SIDES[job.side], job)
    with os.fdopen(descriptor, "w", encoding="utf-8") as told:
        told.write(json.dumps(result) + "\n")
    return 0


def caught(run: Callable[[IsolatedRun], dict[str, Any]], job: IsolatedRun) -> dict[str, Any]:
    """The run's result, or what stopped it; memory that ran out is told apart from everything else."""
    from vidqa.errors import DoesNotFit, VidqaError

    try:
        return {"outcome": "ok", **run(job)}
    except MemoryError as error:
        return {"outcome": "out_of_memory", "detail": _first_line(error)}
    except DoesNotFit as error:  # planned to fit, and no smaller plan was left
        return {"outcome": "out_of_memory", "detail": str(error)}
    except VidqaError as error:
        return {"outcome": _outcome(error), "detail": str(error)}
    except Exception as error:
        return {"outcome": _outcome(error), "detail": _first_line(error)}


def _outcome(error: Exception) -> str:
    """Out of memory by the error's kind, or by its words where a library wrapped it."""
    from vidqa.devices.torch_device import is_out_of_memory

    return "out_of_memory" if is_out_of_memory(error) or any(sign in str(error) for sign in MEMORY_SIGNS) else "failed"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def warm_up(request: Request) -> Request:
    """The same question about two tiny frames: nothing of it serves the real one."""
    return replace(request, frames=2, fps=None, size=(WARM_UP_SIDE, WARM_UP_SIDE), max_tokens=2)


def _run_vidqa(job: IsolatedRun) -> dict[str, Any]:
    from vidqa.engine.session import Session

    with Session(job.config) as session:
        device = _limited_device(job)
        first = _answer(session.ask(warm_up(job.request)))
        answer = _answer(session.ask(job.request))
    plan, memory = answer.plan, answer.memory
    peak = max(first.memory.measured_peak_bytes, memory.measured_peak_bytes)
    return {
        "frames": plan.run_config.frames,
        "width": plan.run_config.width,
        "height": plan.run_config.height,
        "visual_tokens": plan.visual_tokens,
        "prompt_tokens": plan.prompt_tokens,
        "peak_bytes": peak,
        "runtime_bytes": memory.runtime_bytes,
        "weights_bytes": memory.weights_bytes,
        "first_token_seconds": answer.timing.first_token_seconds,
        "answer": answer.text,
        "answer_tokens": answer.timing.tokens,
        "notes": [*answer.notes, *(f"degraded: {step}" for step in answer.degraded)],
        "detail": f"{plan.run_config.weights} on {device.name}",
    }


def _answer(events: Iterator[Any]) -> Answer:
    *_, last = events
    answer: Answer = last.answer
    return answer


def _run_transformers(job: IsolatedRun) -> dict[str, Any]:
    from vidqa.devices.allocator import allocator_environment
    from vidqa.devices.memory_tracker import Tracker, runtime_bytes
    from vidqa.models.registry import find_checkpoints
    from vidqa.planner.placement import compute_dtype

    os.environ.update(allocator_environment(os.environ))  # as a Session does
    device = _limited_device(job)
    runtime = runtime_bytes(device)
    tracker = Tracker(device, None, runtime)
    found = find_checkpoints(job.config.model, local=True)[0]
    spoken, weights = _ask_plainly(job, found, device, tracker)
    size = job.request.size
    assert size is not None and job.request.frames is not None
    return {
        "visual_tokens": spoken.visual_tokens,
        "prompt_tokens": spoken.prompt_tokens,
        "peak_bytes": tracker.process_peak_bytes(),
        "runtime_bytes": tracker.runtime_bytes or runtime,
        "weights_bytes": weights,
        "first_token_seconds": spoken.first_token_seconds,
        "answer": spoken.text,
        "answer_tokens": len(spoken.tokens),
        "notes": _position_notes(job.request.frames // 2, *(side // found.spec.pixel_factor for side in size)),
        "detail": f"{compute_dtype(device)} on {device.name}",
    }


def _ask_plainly(job: IsolatedRun, found: Any, device: "Device", tracker: "Tracker") -> tuple[Any, int]:
    """Load, warm up and ask, each measured; returns what was said and the weights' bytes."""
    from vidqa.devices.torch_device import torch_device
    from vidqa.planner.placement import compute_dtype
    from vidqa.profiling.hf_baseline import HFBaseline
    from vidqa.video.reader import open_video

    with tracker.phase("load"):
        model = HFBaseline(found.local_folder(), torch_device(device.torch_name), compute_dtype(device))
    for name, request in (("warm-up", warm_up(job.request)), ("generate", job.request)):
        video = open_video(request.video, isolated=job.config.isolate_decoder, stream=request.stream)
        with video as reader, tracker.phase(name):
            assert request.size is not None
            indices = _indices(reader.info, request, found.bounds)
            spoken = model.ask(request, reader, indices, (request.size[1], request.size[0]))
    return spoken, model.weights_bytes


def _indices(info: Any, request: Request, bounds: Any) -> tuple[int, ...]:
    from vidqa.video.frame_sampling import choose_indices

    return choose_indices(
        info,
        frames=request.frames,
        fps=None,
        start_seconds=request.start_seconds,
        end_seconds=request.end_seconds,
        bounds=bounds,
    )


def _position_notes(slices: int, columns: int, rows: int) -> list[str]:
    """Where the two sides differ by rule: see `position_after_video`."""
    if slices <= max(rows, columns):
        return []
    return [
        "more slices than rows and columns: transformers places the question at max(H, W), the paper at max(T, H, W)"
    ]


def _is_host(job: IsolatedRun) -> bool:
    from vidqa.devices.device import find_device

    return find_device(job.config.device).kind != "cuda"


def _limit_data(limit_bytes: int) -> None:
    """What `ulimit -d` does: private writable memory of this process and its children (Linux)."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _limited_device(job: IsolatedRun) -> "Device":
    """The device, with the allocator's share of a GPU set to the limit less the runtime's own memory."""
    from vidqa.devices.device import find_device

    device = find_device(job.config.device)
    if device.kind == "cuda" and job.limit_bytes is not None:
        import torch

        from vidqa.devices.memory_tracker import runtime_bytes

        share = (job.limit_bytes - runtime_bytes(device)) / device.total_bytes
        torch.cuda.set_per_process_memory_fraction(min(max(share, 0.0), 1.0), device.index)
    return device


_SIDES: dict[str, Callable[[IsolatedRun], dict[str, Any]]] = {"vidqa": _run_vidqa, "transformers": _run_transformers}


if __name__ == "__main__":
    raise SystemExit(main())
