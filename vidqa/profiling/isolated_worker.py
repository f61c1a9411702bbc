"""The process of one run: `python -m vidqa.profiling.isolated_worker FD` with an `IsolatedRun` on stdin.

It loads the model, answers a tiny question so that kernels and libraries are loaded, then the real one, and writes one
JSON line to descriptor FD. Running out of memory is a result. Heavy imports come after the limit is set.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidqa.profiling.isolated_run import OUT_OF_MEMORY_MESSAGES, IsolatedRun, from_json
from vidqa.types import Answer, Request

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker
    from vidqa.models.spec import ModelSpec
    from vidqa.types import Device


def main() -> int:
    """Run the question on stdin and write its result; returns 0 if there is one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills this process
    descriptor, run = int(sys.argv[1]), from_json(sys.stdin.read())
    if run.limit_bytes is not None and _is_host(run):
        _limit_data(run.limit_bytes)
    result = catch(_SIDES[run.side], run)
    with os.fdopen(descriptor, "w", encoding="utf-8") as output:
        output.write(json.dumps(result) + "\n")
    return 0


def catch(ask: Callable[[IsolatedRun], dict[str, Any]], run: IsolatedRun) -> dict[str, Any]:
    """Return the result of a run, or its error as `out_of_memory` or `failed`."""
    from vidqa.errors import DoesNotFit, VidqaError

    try:
        return {"outcome": "ok", **ask(run)}
    except MemoryError as error:
        return {"outcome": "out_of_memory", "detail": _first_line(error)}
    except DoesNotFit as error:  # it was planned to fit, and no smaller plan is left
        return {"outcome": "out_of_memory", "detail": str(error)}
    except VidqaError as error:
        return {"outcome": _outcome(error), "detail": str(error)}
    except Exception as error:
        return {"outcome": _outcome(error), "detail": _first_line(error)}


def _outcome(error: Exception) -> str:
    """Return `out_of_memory` by the error's type, or by its message where a library wrapped it."""
    from vidqa.devices.torch_device import is_out_of_memory

    return (
        "out_of_memory"
        if is_out_of_memory(error) or any(message in str(error) for message in OUT_OF_MEMORY_MESSAGES)
        else "failed"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def warm_up(request: Request, spec: "ModelSpec") -> Request:
    """Return the question about two frames of four tokens, the smallest with rows and columns.

    Nothing of them is reused for the real one.
    """
    side = 2 * spec.pixel_factor
    return replace(request, frames=2, fps=None, size=(side, side), max_tokens=2)


def _run_vidqa(run: IsolatedRun) -> dict[str, Any]:
    from vidqa.engine.session import Session
    from vidqa.models.registry import find_checkpoints

    spec = find_checkpoints(run.config.model, local=True)[0].spec
    with Session(run.config) as session:
        device = _limited_device(run)
        first = last_answer(session.ask(warm_up(run.request, spec)))
        answer = last_answer(session.ask(run.request))
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


def last_answer(events: Iterator[Any]) -> Answer:
    """Run a question to its end and return its answer."""
    *_, last = events
    answer: Answer = last.answer
    return answer


def _run_transformers(run: IsolatedRun) -> dict[str, Any]:
    from vidqa.devices.device import allocator_environment
    from vidqa.devices.memory_tracker import Tracker, runtime_bytes
    from vidqa.models.family import family_of
    from vidqa.models.registry import find_checkpoints
    from vidqa.planner.placement import compute_dtype

    os.environ.update(allocator_environment(os.environ))  # as a Session does
    device = _limited_device(run)
    found = find_checkpoints(run.config.model, local=True)[0]
    family_of(found.spec).load_runtime().hf_classes()  # with what loading a model imports
    runtime = runtime_bytes(device)
    tracker = Tracker(device, None, runtime)
    answer, weights = _ask_baseline(run, found, device, tracker)
    size = run.request.size
    assert size is not None and run.request.frames is not None
    return {
        "visual_tokens": answer.visual_tokens,
        "prompt_tokens": answer.prompt_tokens,
        "peak_bytes": tracker.process_peak_bytes(),
        "runtime_bytes": tracker.runtime_bytes or runtime,
        "weights_bytes": weights,
        "first_token_seconds": answer.first_token_seconds,
        "answer": answer.text,
        "answer_tokens": len(answer.tokens),
        "notes": _position_notes(run.request.frames // 2, *(side // found.spec.pixel_factor for side in size)),
        "detail": f"{compute_dtype(device, found.spec)} on {device.name}",
    }


def _ask_baseline(run: IsolatedRun, found: Any, device: "Device", tracker: "Tracker") -> tuple[Any, int]:
    """Load, warm up and ask, each measured; return the answer and the weights' bytes."""
    from vidqa.devices.torch_device import torch_device
    from vidqa.planner.placement import compute_dtype
    from vidqa.profiling.hf_baseline import HFBaseline
    from vidqa.video.frame_sampling import choose_indices
    from vidqa.video.reader import open_video

    with tracker.phase("load"):
        dtype = compute_dtype(device, found.spec)
        model = HFBaseline(found.local_folder(), torch_device(device.torch_name), dtype)
    for name, request in (("warm-up", warm_up(run.request, found.spec)), ("generate", run.request)):
        video = open_video(
            request.video, isolated=run.config.isolate_decoder, stream=request.stream, pictures=request.picture_times
        )
        with video as reader, tracker.phase(name):
            assert request.size is not None
            interval = {"start_seconds": request.start_seconds, "end_seconds": request.end_seconds}
            indices = choose_indices(reader.info, frames=request.frames, fps=None, bounds=found.bounds, **interval)
            answer = model.ask(request, reader, indices, (request.size[1], request.size[0]))
    return answer, model.weights_bytes


def _position_notes(slices: int, columns: int, rows: int) -> list[str]:
    """Return a note where the two sides' positions differ, see `position_after_video`."""
    if slices <= max(rows, columns):
        return []
    return [
        "more slices than rows and columns: transformers places the question at max(H, W), the paper at max(T, H, W)"
    ]


def _is_host(run: IsolatedRun) -> bool:
    from vidqa.devices.device import find_device

    return find_device(run.config.device).kind != "cuda"


def _limit_data(limit_bytes: int) -> None:
    """Limit the private writable memory of this process and its children, as `ulimit -d` does (Linux)."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _limited_device(run: IsolatedRun) -> "Device":
    """Return the device, with a GPU's allocator limited to `limit_bytes` less the CUDA context."""
    from vidqa.devices.device import find_device

    device = find_device(run.config.device)
    if device.kind == "cuda" and run.limit_bytes is not None:
        import torch

        from vidqa.devices.memory_tracker import runtime_bytes

        share = (run.limit_bytes - runtime_bytes(device)) / device.total_bytes
        torch.cuda.set_per_process_memory_fraction(min(max(share, 0.0), 1.0), device.index)
    return device


_SIDES: dict[str, Callable[[IsolatedRun], dict[str, Any]]] = {"vidqa": _run_vidqa, "transformers": _run_transformers}


if __name__ == "__main__":
    raise SystemExit(main())
