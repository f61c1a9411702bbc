"""The device under test: synchronisation, peak memory of a run, and a memory cap.

All CUDA calls are in `Cuda`, so that a rehearsal on a CPU runs every other line. `Host` does the same by counting live
tensors; its cap makes an allocation fail as a GPU's does.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from vidqa.devices.device import find_device, reread
from vidqa.devices.memory_tracker import CudaMeter, Meter, TensorMeter, runtime_bytes
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.devices.torch_device import release_cached_memory


class _NeverReset:
    """A meter whose peak is over all phases and between them, where frames are prefetched."""

    def reset(self) -> None:
        """Keep the peak."""


class WholeRunTensorMeter(_NeverReset, TensorMeter):
    """Live tensors over a whole run."""


class WholeRunCudaMeter(_NeverReset, CudaMeter):
    """torch's allocator over a whole run."""


class Peak:
    """The peak bytes of a finished run: of tensors, and reserved by the allocator.

    The run's tracker must read `meter`, since its own would start a new peak with each phase.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.tensors = 0
        self.reserved = 0


class Accelerator(Protocol):
    """Interface of a device under test."""

    device: torch.device
    name: str

    def wait(self) -> None:
        """Wait until all queued work is done."""

    def cap(self, process_bytes: int | None) -> None:
        """Limit this process to so many bytes, with its runtime; None lifts the limit."""

    def peak(self, model: Any) -> Any:
        """Return a context that gives a Peak of its block; `model` is on the device already."""

    def runtime_bytes(self) -> int:
        """Return the process's bytes on the device before any tensor."""

    def driver_bytes(self) -> int:
        """Return this process's bytes by the driver; 0 if it does not report them."""


class Cuda:
    """The NVIDIA GPU with most free memory."""

    def __init__(self) -> None:
        self._index = find_device("cuda").index
        self.device = torch.device("cuda", self._index)
        torch.cuda.set_device(self.device)
        self.name = torch.cuda.get_device_name(self.device)

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def cap(self, process_bytes: int | None) -> None:
        total = torch.cuda.get_device_properties(self.device).total_memory
        share = 1.0 if process_bytes is None else (process_bytes - self.runtime_bytes()) / total
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0), self.device)

    @contextmanager
    def peak(self, model: Any) -> Iterator[Peak]:
        release_cached_memory()
        torch.cuda.reset_peak_memory_stats(self.device)
        peak = Peak(WholeRunCudaMeter(self._index))
        try:
            yield peak
        finally:
            peak.tensors = torch.cuda.max_memory_allocated(self.device)
            peak.reserved = torch.cuda.max_memory_reserved(self.device)

    def runtime_bytes(self) -> int:
        return runtime_bytes(find_device(str(self.device)))

    def driver_bytes(self) -> int:
        return reread(find_device(str(self.device))).process_bytes


class _CappedBytes(TensorCounter):
    """Live tensors with a cap, beyond which OutOfMemoryError is raised."""

    def __init__(self, cap: int | None) -> None:
        super().__init__("cpu")
        self.cap = cap

    def count(self, tensor: Tensor) -> None:
        super().count(tensor)
        if self.cap is not None and self.now > self.cap:
            raise torch.OutOfMemoryError(f"{self.now} B of tensors are out of memory under a cap of {self.cap} B")


class Host:
    """The CPU."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.name = platform.processor() or platform.machine()
        self._cap: int | None = None

    def wait(self) -> None:
        """Nothing is queued."""

    def cap(self, process_bytes: int | None) -> None:
        self._cap = process_bytes

    @contextmanager
    def peak(self, model: Any) -> Iterator[Peak]:
        release_cached_memory()
        live = _CappedBytes(None)
        live.count_model(model)
        live.cap = self._cap
        live.reset()
        peak = Peak(WholeRunTensorMeter(live))
        try:
            with live:
                yield peak
        finally:
            peak.tensors = peak.reserved = live.peak

    def runtime_bytes(self) -> int:
        return 0

    def driver_bytes(self) -> int:
        return 0
