"""A decode step as a CUDA graph, captured once for a KV cache's storage and replayed for every token and question.

At most one graph is live per process and device: a new capture releases the one before, which is captured again when
its storage is used again. So the plan counts one graph's memory, and no graph outlives a workspace that it shares.
The step itself is in `decode_runners`.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

_WARM_UPS = 2  # steps before the capture: libraries and Triton initialize in the first ones

Step = Callable[[], None]
Snapshot = Callable[[], Step]  # stores what a step changes; returns a function that restores it
Capture = Callable[[Step, Snapshot], Step]  # runs a step a few times, undoing each, and records it; returns its replay

_lock = threading.RLock()  # sessions may run in several threads


class CudaGraphStep:
    """One storage's captured step, while it is the live one of its device."""

    def __init__(self, device: torch.device, capture: Capture) -> None:
        self._device, self._capture = device, capture
        self._replay: Step | None = None
        self._key: tuple[object, ...] = ()

    def run(self, key: tuple[object, ...], step: Step, snapshot: Snapshot) -> None:
        """Replay the step; capture it first if it is not captured for `key`. `snapshot` undoes the warm-ups."""
        with _lock:
            if self._replay is None or self._key != key:
                if (live := _live.get(self._device)) is not None:
                    live.release()
                self._replay, self._key = self._capture(step, snapshot), key
                _live[self._device] = self
            self._replay()

    def release(self) -> None:
        """Free the graph and its memory once the device has finished with it."""
        with _lock:
            if self._replay is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._replay = None


_live: "weakref.WeakValueDictionary[torch.device, CudaGraphStep]" = weakref.WeakValueDictionary()


def capture_on(device: torch.device) -> Capture | None:
    """Return how a step is captured on a device; None if steps are run instead of replayed."""
    return functools.partial(_capture, device) if device.type == "cuda" else None


@torch.no_grad()
def _capture(device: torch.device, step: Step, snapshot: Snapshot) -> Step:
    with torch.cuda.device(device):  # torch.cuda.graph waits for the current device
        stream, undo = _side_stream(device), snapshot()
        _release_cached(device)  # the warm-ups' memory takes the place of the prefill's, not one beside it
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                step()
                undo()
        torch.cuda.current_stream(device).wait_stream(stream)
        # cuBLAS keeps a workspace for every stream it has seen. Cleared before, the warm-up's does not stay beside the
        # graph's; cleared after, the graph's belongs to the graph's memory pool alone, and ends with it.
        _release_cached(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
        torch._C._cuda_clearCublasWorkspaces()
    return graph.replay


def _release_cached(device: torch.device) -> None:
    """Free workspaces of cuBLAS and unused memory of the allocator."""
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """Return one stream for all captures: cuBLAS keeps a handle and a workspace for every stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
