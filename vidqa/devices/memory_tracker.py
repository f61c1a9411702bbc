"""What memory a run really takes: per phase, and as samples while it runs.

Measures; plans nothing. CUDA counts by its caching allocator and NVML. Elsewhere living tensors are counted one by
one, and the process's resident size is reported apart from them: it holds what Python, libraries and the heap hold too.
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
from vidqa.types import PHASE_MARK, PHASES, Device, PhaseMemory

if TYPE_CHECKING:
    from torch import Tensor

    from vidqa.devices.live_bytes import LiveBytes

_SAMPLE_SECONDS = 0.1
_OTHERS_SECONDS = 1.0  # asking the driver about everybody takes longer than a sample may
_COUNTED_STEPS = 4  # turns of decoding: the first model step is in the fourth
_COUNTED_EVERY = 31
_CLEAR = Path("/proc/self/clear_refs")


class Meter(Protocol):
    """Reads one kind of memory: bytes now, and the peak since the last reset."""

    def now(self) -> int:
        """Bytes at this moment."""

    def peak(self) -> int:
        """Largest since the reset."""

    def reset(self) -> None:
        """Start anew."""

    def reserved(self) -> int | None:
        """Bytes that the allocator holds now, where there is one."""

    def reserved_peak(self) -> int | None:
        """The most that it held since the reset."""


class CudaMeter:
    """torch's caching allocator of one device.

    It counts when work is queued, not when it is done: no reading waits for the device.
    """

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
    """Resident size of this process. Linux can reset its high-water mark; elsewhere the peak only grows."""

    def now(self) -> int:
        import psutil

        return int(psutil.Process().memory_info().rss)

    def peak(self) -> int:
        return host_peak_bytes()

    def reset(self) -> None:
        try:
            _CLEAR.write_text("5", encoding="ascii")
        except OSError:
            return

    def reserved(self) -> int | None:
        return None

    reserved_peak = reserved


class TensorMeter:
    """Living tensors, as `LiveBytes` counts them."""

    def __init__(self, live: "LiveBytes") -> None:
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
    """Largest resident size of this process, since the mark was last reset where that is possible."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def runtime_bytes(device: Device, tensor_bytes: int = 0) -> int:
    """What this process takes on the device beside its tensors: its context, or Python with its libraries.

    On CUDA it is measured once per process: later there are leftovers of what ran. Elsewhere it is the resident size
    of this moment, less `tensor_bytes` that are known to live. Raises UsageError where torch cannot use the device.
    """
    if device.kind == "cuda":
        return _context_bytes(device.index)
    _import_libraries()
    give_back_heap()
    return max(ResidentMeter().now() - tensor_bytes, 0)


@cache
def _context_bytes(index: int) -> int:
    import torch

    device = find_device(f"cuda:{index}")
    start_cuda(device, partial(_first_product, device))
    held = reread(device).process_bytes - int(torch.cuda.memory_reserved(index))
    return max(int(held), 0)


def _import_libraries() -> None:
    """What loading a model imports anyway."""
    import transformers.models.qwen2_vl.modeling_qwen2_vl  # noqa: F401


def give_back_heap() -> None:
    """Let the C library return what it keeps of freed memory, where it can (glibc); it takes about a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _first_product(device: Device) -> None:
    """Make the context on a GPU, and load what a first matrix product loads."""
    import torch

    from vidqa.devices.torch_device import torch_device

    where = torch_device(device.torch_name)
    (torch.ones(1, 16, device=where) @ torch.ones(16, 16, device=where)).sum()
    torch.cuda.synchronize(where)


def _joined(first: PhaseMemory, second: PhaseMemory) -> PhaseMemory:
    """Two visits of one phase as one."""
    peaks = (first.reserved_peak_bytes, second.reserved_peak_bytes)
    return replace(
        second,
        start_bytes=first.start_bytes,
        peak_bytes=max(first.peak_bytes, second.peak_bytes),
        reserved_start_bytes=first.reserved_start_bytes,
        reserved_peak_bytes=None if None in peaks else max(peak for peak in peaks if peak is not None),
        seconds=first.seconds + second.seconds,
    )


def _meter_of(device: Device, live: "LiveBytes | None") -> Meter:
    if device.kind == "cuda":
        return CudaMeter(device.index)
    return ResidentMeter() if live is None else TensorMeter(live)


def phase_mark(name: str) -> AbstractContextManager[object]:
    """Return a context that torch.profiler records as a range, by which a trace is divided into phases."""
    from torch.profiler import record_function

    return record_function(PHASE_MARK + name)


class Tracker:
    """Phases and samples of one request on one device, where the runtime itself takes `runtime_bytes`.

    With `live`, phases are measured in its tensors, which are counted inside `counting`.
    """

    def __init__(
        self, device: Device, meter: Meter | None = None, runtime_bytes: int = 0, live: "LiveBytes | None" = None
    ) -> None:
        self._device, self._live = device, live
        self._runtime_bytes: int = runtime_bytes if device.kind == "cuda" else 0  # a resident size has it already
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
        """The phases so far, in the order of the stages."""
        return tuple(sorted(self._uses.values(), key=lambda use: PHASES.index(use.name)))

    def counting(self) -> AbstractContextManager[object]:
        """What is made inside is counted, where tensors are counted one by one; enter it in the thread that makes them.

        Steps of decoding are alike, so after the first ones every 31st is counted.
        """
        if self._live is None:
            return nullcontext()
        if self._phase == "decode":
            self._decoded += 1
            if self._decoded > _COUNTED_STEPS and self._decoded % _COUNTED_EVERY:
                return nullcontext()
        return self._live

    def count(self, tensor: "Tensor") -> None:
        """Count a tensor that was made outside of `counting`, from any thread."""
        if self._live is not None:
            self._live.count(tensor)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside: bytes at the start, the peak and the end, and seconds.

        Phases may take turns: a second visit goes on with the first one's figures. torch.profiler records a mark
        around it (20 µs where no profiler runs).
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
            self._uses[name] = use if before is None else _joined(before, use)

    def sample(self) -> MemorySampled | None:
        """How memory stands, at most ten times a second; None when it is too early."""
        moment = time.monotonic()
        if moment - self._last_sample < _SAMPLE_SECONDS or not self._phase:
            return None
        self._last_sample = moment
        now, peak = self._standing()
        if moment - self._last_look >= _OTHERS_SECONDS:
            self._last_look, self._others_bytes = moment, reread(self._device).other_bytes
        tensors = None if self._live is None else max([self._live.peak, *self._peaks()])
        return MemorySampled(self._phase, now, peak, self._others_bytes, tensors)

    def _standing(self) -> tuple[int, int]:
        """(now, peak) of the process on the device."""
        if self._live is not None:
            return self._resident.now(), self._resident.peak()
        now = self._meter.now() + self._runtime_bytes
        return now, max([now, *(peak + self._runtime_bytes for peak in self._peaks())])

    def _peaks(self) -> list[int]:
        return [use.peak_bytes for use in self._uses.values()]

    @property
    def tensor_peak_bytes(self) -> int | None:
        """The most that lived in tensors at once; None where only the process is measured."""
        return None if isinstance(self._meter, ResidentMeter) else max(self._peaks(), default=0)

    @property
    def runtime_bytes(self) -> int:
        """What the process holds beside its tensors by now: kernels are loaded as they are first used."""
        if self._device.kind == "cuda":
            held = reread(self._device).process_bytes - (self._meter.reserved() or 0)
            self._runtime_bytes = max(self._runtime_bytes, int(held))
        return self._runtime_bytes

    def host_peak_bytes(self) -> int:
        """The process's resident peak over all phases: each of them may have reset the system's mark."""
        peaks = self._peaks() if isinstance(self._meter, ResidentMeter) else []
        return max([host_peak_bytes(), *peaks])

    def process_peak_bytes(self) -> int:
        """The process's peak: what the driver saw on CUDA (runtime and reserved), else its resident peak."""
        if self._device.kind != "cuda":
            return self.host_peak_bytes()
        return self.runtime_bytes + max(
            (use.reserved_peak_bytes or use.peak_bytes for use in self._uses.values()), default=0
        )
