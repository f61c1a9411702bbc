"""The device under test as the sections see it: its name, when it is idle, how much memory a run took, and a cap.

Every call that only a GPU answers stands in `Cuda`, so that a rehearsal on a CPU runs all other lines.
`Host` is its twin: it counts living tensors, and its cap makes an allocation fail as a GPU's does.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from vidqa.devices.device import find_device, reread
from vidqa.devices.live_bytes import LiveBytes
from vidqa.devices.memory_tracker import CudaMeter, Meter, TensorMeter, runtime_bytes
from vidqa.devices.torch_device import release_cached_memory


class _OnePeak:
    """Counts between the phases too, where frames are read ahead."""

    def reset(self) -> None:
        """One peak for all phases."""


class WholeTensors(_OnePeak, TensorMeter):
    """Living tensors over a whole run."""


class WholeCuda(_OnePeak, CudaMeter):
    """torch's allocator over a whole run."""


class Peak:
    """The most bytes that a run took: of its tensors, and as reserved by the allocator; known when it is over.

    `meter` is what the run's own tracker has to read, or it would start a new peak with each phase.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.tensors = 0
        self.reserved = 0


class Accelerator(Protocol):
    """What the sections ask of a device."""

    device: torch.device
    name: str

    def wait(self) -> None:
        """Return when all that was queued is done."""

    def cap(self, process_bytes: int | None) -> None:
        """Let this process hold so many bytes, its runtime included; None lifts the cap."""

    def peak(self, model: Any) -> Any:
        """A context that gives a Peak of what runs in it; `model` lies on the device already."""

    def runtime_bytes(self) -> int:
        """What the process holds on the device before any tensor."""

    def driver_bytes(self) -> int:
        """What the driver says that this process holds now; 0 where it says nothing."""


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
        peak = Peak(WholeCuda(self._index))
        try:
            yield peak
        finally:
            peak.tensors = torch.cuda.max_memory_allocated(self.device)
            peak.reserved = torch.cuda.max_memory_reserved(self.device)

    def runtime_bytes(self) -> int:
        return runtime_bytes(find_device(str(self.device)))

    def driver_bytes(self) -> int:
        return reread(find_device(str(self.device))).process_bytes


class _CappedBytes(LiveBytes):
    """Living tensors, of which one too many is out of memory."""

    def __init__(self, cap: int | None) -> None:
        super().__init__("cpu")
        self.cap = cap

    def count(self, tensor: Tensor) -> None:
        super().count(tensor)
        if self.cap is not None and self.now > self.cap:
            raise torch.OutOfMemoryError(f"{self.now} B of tensors are out of memory under a cap of {self.cap} B")


class Host:
    """The processor."""

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
        peak = Peak(WholeTensors(live))
        try:
            with live:
                yield peak
        finally:
            peak.tensors = peak.reserved = live.peak

    def runtime_bytes(self) -> int:
        return 0

    def driver_bytes(self) -> int:
        return 0
