"""Measured memory of a request: by phase, and in samples while it runs.

On CUDA by torch's caching allocator and NVML. Elsewhere live tensors are counted one by one, and the process's resident
size, which includes Python, libraries and the heap, is reported separately.
"""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vidqa.devices.device import find_device, reread, start_cuda
from vidqa.events import MemorySampled
from vidqa.types import PHASE_MARK, PHASES, Device
from vidqa.utils.metrics import PhaseMemory

if TYPE_CHECKING:
    from torch import Tensor

    from vidqa.devices.tensor_counter import TensorCounter

_SAMPLE_SECONDS = 0.1
_OTHERS_SECONDS = 1.0  # reading other processes' memory takes longer than a sample may
_COUNTED_STEPS = 4  # first iterations of decoding that are counted: the fourth has the first model step
_COUNTED_EVERY = 31
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Meter(Protocol):
    """Reader of one kind of memory, in bytes."""

    def now(self) -> int:
        """Return the bytes of this moment."""

    def peak(self) -> int:
        """Return the largest bytes since the reset."""

    def reset(self) -> None:
        """Set the peak to the bytes of now."""

    def reserved(self) -> int | None:
        """Return the bytes that the allocator holds, None without an allocator."""

    def reserved_peak(self) -> int | None:
        """Return the largest reserved bytes since the reset."""


class CudaMeter:
    """torch's caching allocator of one device. It counts when work is queued, so no reading waits for the device."""

    def __init__(self, index: int) -> None:
        import torch

        self._cuda, self._index = torch.cuda, index

    def now(self) -> int:
        return int(self._cuda.memory_allocated(self._index))

    def peak(self) -> int:
        return int(self._cuda.max_memory_allocated(self._index))

    def reset(self) -> None:
        self._cuda.reset_peak_memory_stats(self._index)

    def reserved(self) -> int | None:
        return int(self._cuda.memory_reserved(self._index))

    def reserved_peak(self) -> int | None:
        return int(self._cuda.max_memory_reserved(self._index))


class ResidentMeter:
    """Resident size of this process. Only Linux can reset its peak."""

    def now(self) -> int:
        import psutil

        return int(psutil.Process().memory_info().rss)

    def peak(self) -> int:
        return host_peak_bytes()

    def reset(self) -> None:
        try:
            _CLEAR_REFS.write_text("5", encoding="ascii")
        except OSError:
            return

    def reserved(self) -> int | None:
        return None

    reserved_peak = reserved


class TensorMeter:
    """Live tensors as `TensorCounter` counts them."""

    def __init__(self, live: "TensorCounter") -> None:
        self._live = live

    def now(self) -> int:
        return int(self._live.now)

    def peak(self) -> int:
        return int(self._live.peak)

    def reset(self) -> None:
        self._live.reset()

    def reserved(self) -> int | None:
        return None

    reserved_peak = reserved


def host_peak_bytes() -> int:
    """Return the largest resident size of this process, on Linux since the last reset."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def runtime_bytes(device: Device, tensor_bytes: int = 0) -> int:
    """Return this process's bytes on the device besides tensors: its CUDA context, or Python with its libraries.

    On CUDA measured once per process, before anything else has run. Elsewhere the resident size of this moment less
    `tensor_bytes` of live tensors: import first what loading a model imports. Raises UsageError if torch cannot use
    the device.
    """
    if device.kind == "cuda":
        return _context_bytes(device.index)
    trim_heap()
    return max(ResidentMeter().now() - tensor_bytes, 0)


@cache
def _context_bytes(index: int) -> int:
    import torch

    device = find_device(f"cuda:{index}")
    start_cuda(device, partial(_first_product, device))
    held = reread(device).process_bytes - int(torch.cuda.memory_reserved(index))
    return max(int(held), 0)


def trim_heap() -> None:
    """Make glibc return freed memory to the system (about a millisecond); does nothing elsewhere."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _first_product(device: Device) -> None:
    """Create the CUDA context and load what a first matrix product loads."""
    import torch

    from vidqa.devices.torch_device import torch_device

    where = torch_device(device.torch_name)
    (torch.ones(1, 16, device=where) @ torch.ones(16, 16, device=where)).sum()
    torch.cuda.synchronize(where)


def _merge(first: PhaseMemory, second: PhaseMemory) -> PhaseMemory:
    """Return two visits of one phase as one."""
    peaks = (first.reserved_peak_bytes, second.reserved_peak_bytes)
    return replace(
        second,
        start_bytes=first.start_bytes,
        peak_bytes=max(first.peak_bytes, second.peak_bytes),
        reserved_start_bytes=first.reserved_start_bytes,
        reserved_peak_bytes=None if None in peaks else max(peak for peak in peaks if peak is not None),
        seconds=first.seconds + second.seconds,
    )


def _meter_of(device: Device, live: "TensorCounter | None") -> Meter:
    if device.kind == "cuda":
        return CudaMeter(device.index)
    return ResidentMeter() if live is None else TensorMeter(live)


def phase_mark(name: str) -> AbstractContextManager[object]:
    """Return a context that torch.profiler records as a range, by which a trace is divided into phases."""
    from torch.profiler import record_function

    return record_function(PHASE_MARK + name)


class Tracker:
    """Phases and samples of one request on one device. `runtime_bytes` is the process's memory besides tensors.

    With `live`, phases are measured in tensors, which are counted inside `counting`.
    """

    def __init__(
        self, device: Device, meter: Meter | None = None, runtime_bytes: int = 0, live: "TensorCounter | None" = None
    ) -> None:
        self._device, self._live = device, live
        self._runtime_bytes: int = runtime_bytes if device.kind == "cuda" else 0  # a resident size includes it
        self._meter: Meter = meter or _meter_of(device, live)
        self._resident = ResidentMeter()
        if live is not None:
            self._resident.reset()
        self._phase = ""
        self._decoded = 0
        self._last_sample = self._last_look = 0.0
        self._others_bytes = device.other_bytes
        self._uses: dict[str, PhaseMemory] = {}

    @property
    def phases(self) -> tuple[PhaseMemory, ...]:
        """The measured phases in their order."""
        return tuple(sorted(self._uses.values(), key=lambda use: PHASES.index(use.name)))

    def counting(self) -> AbstractContextManager[object]:
        """Return a context that counts new tensors where tensors are counted; enter it in the thread that makes them.

        Decode steps are alike, so after the first ones every 31st is counted.
        """
        if self._live is None:
            return nullcontext()
        if self._phase == "decode":
            self._decoded += 1
            if self._decoded > _COUNTED_STEPS and self._decoded % _COUNTED_EVERY:
                return nullcontext()
        return self._live

    def count(self, tensor: "Tensor") -> None:
        """Count a tensor that was made outside `counting`, from any thread."""
        if self._live is not None:
            self._live.count(tensor)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block: bytes at its start, peak and end, and seconds. A second visit adds to the first.

        torch.profiler records a mark around it, which costs 20 µs where no profiler runs.
        """
        self._meter.reset()
        meter, began = self._meter, time.perf_counter()
        self._phase, start, held = name, meter.now(), meter.reserved()
        try:
            with phase_mark(name):
                yield
        finally:
            peak, seconds = meter.peak(), time.perf_counter() - began
            reserved = (held, meter.reserved_peak(), meter.reserved())
            use = PhaseMemory(name, start, peak, meter.now(), *reserved, seconds)
            before = self._uses.get(name)
            self._uses[name] = use if before is None else _merge(before, use)

    def sample(self) -> MemorySampled | None:
        """Return the memory of this moment, at most ten times a second, else None."""
        moment = time.monotonic()
        if moment - self._last_sample < _SAMPLE_SECONDS or not self._phase:
            return None
        self._last_sample = moment
        now, peak = self._process_bytes()
        if moment - self._last_look >= _OTHERS_SECONDS:
            self._last_look, self._others_bytes = moment, reread(self._device).other_bytes
        tensors = None if self._live is None else max([self._live.peak, *self._peaks()])
        return MemorySampled(self._phase, now, peak, self._others_bytes, tensors)

    def _process_bytes(self) -> tuple[int, int]:
        """Return (now, peak) of the process on the device."""
        if self._live is not None:
            return self._resident.now(), self._resident.peak()
        now = self._meter.now() + self._runtime_bytes
        return now, max([now, *(peak + self._runtime_bytes for peak in self._peaks())])

    def _peaks(self) -> list[int]:
        return [use.peak_bytes for use in self._uses.values()]

    @property
    def tensor_peak_bytes(self) -> int | None:
        """The largest bytes of live tensors; None where only the process is measured."""
        return None if isinstance(self._meter, ResidentMeter) else max(self._peaks(), default=0)

    @property
    def runtime_bytes(self) -> int:
        """The process's bytes besides tensors; they grow as kernels are loaded."""
        if self._device.kind == "cuda":
            held = reread(self._device).process_bytes - (self._meter.reserved() or 0)
            self._runtime_bytes = max(self._runtime_bytes, int(held))
        return self._runtime_bytes

    def host_peak_bytes(self) -> int:
        """Return the process's resident peak over all phases, each of which may have reset the system's peak."""
        peaks = self._peaks() if isinstance(self._meter, ResidentMeter) else []
        return max([host_peak_bytes(), *peaks])

    def process_peak_bytes(self) -> int:
        """Return the process's peak: on CUDA runtime and reserved bytes, else the resident peak."""
        if self._device.kind != "cuda":
            return self.host_peak_bytes()
        return self.runtime_bytes + max(
            (use.reserved_peak_bytes or use.peak_bytes for use in self._uses.values()), default=0
        )
