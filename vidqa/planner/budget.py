"""The memory budget of a plan, and the memory that the runtime takes beside tensors."""

from dataclasses import dataclass, replace

from vidqa.config import EngineConfig
from vidqa.devices.device import BLOCK
from vidqa.devices.nvml import ASSUMED_CONTEXT_BYTES
from vidqa.errors import UsageError
from vidqa.planner.calibration import measured_runtime
from vidqa.types import Device, VideoInfo
from vidqa.utils.units import format_bytes

_MIB = 2**20
# What the runtime takes before any tensor, until it was measured on this machine. CUDA: context
# and lazily loaded kernels of a PyTorch process; CPU: Python, torch and transformers imported
# (RSS 753 MiB on the development machine).
_RUNTIME_BYTES = {"cuda": ASSUMED_CONTEXT_BYTES, "mps": 256 * _MIB, "cpu": 752 * _MIB}
# What Python's libraries and the heap add beside tensors while a question runs: measured 36 MiB in the first one of the
# demo model, up to 21 MiB in later ones of other sizes.
_HOST_GROWTH_BYTES = 48 * _MIB
# aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize: 2 · 4096 + 8 · 16 KiB, and 32 MiB on Hopper and
# Blackwell, for each stream that cuBLAS uses: the current one, and the captured decode step's (decode_runners.py).
_CUBLAS_BYTES = 8320 * 1024
_CUBLAS_LARGE_BYTES = 32 * _MIB
_CUBLAS_LARGE = (9, 10, 12)  # major compute capabilities
_CUBLAS_STREAMS = 2
# A large and a small segment of CUDA's caching allocator that are partly filled, of the default pool and of the
# captured decode step's.
_SEGMENT_BYTES = 2 * (20 * _MIB + 2 * _MIB + BLOCK)


@dataclass(frozen=True, slots=True)
class RuntimeOverhead:
    """Bytes that a process takes on a device beside tensors: the runtime, its workspaces and the allocator's segments.

    `host_pixels`: pixels of a source frame, which is resized on the host, if the device is the host; else 0. Moving
    tensors to the host saves nothing then.
    """

    context_bytes: int
    context_source: str
    workspace_bytes: int
    allocator_bytes: int
    host_pixels: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of all of it."""
        return self.context_bytes + self.workspace_bytes + self.allocator_bytes


def budget_bytes(device: Device, config: EngineConfig) -> int:
    """Return the bytes that this process may hold: free and held already, or `--vram` if less, minus `--reserve`.

    Raise UsageError if nothing is left.
    """
    available = device.free_bytes + device.process_bytes
    vram = config.vram_bytes
    budget = (available if vram is None else min(vram, available)) - config.reserve_bytes
    if budget <= 0:
        raise UsageError(
            f"Nothing is left to plan with: {format_bytes(available)} free on {device.name}, "
            + (f"--vram {format_bytes(vram)}, " if vram is not None else "")
            + f"{format_bytes(config.reserve_bytes)} reserved.",
            "Lower --reserve, or raise --vram.",
        )
    return budget


def runtime_overhead(device: Device, video: VideoInfo) -> RuntimeOverhead:
    """Return the runtime's memory on a device: as measured on this machine before, else assumed."""
    on_host, on_cuda = device.kind == "cpu", device.kind == "cuda"
    measured = measured_runtime(device)
    overhead = RuntimeOverhead(
        context_bytes=measured or _RUNTIME_BYTES[device.kind],
        context_source="measured on this machine" if measured else "assumed until measured here",
        workspace_bytes=cublas_bytes(device) if on_cuda else 0,
        allocator_bytes=_SEGMENT_BYTES if on_cuda else 0,
        host_pixels=video.coded_width * video.coded_height if on_host else 0,
    )
    if not on_host:
        return overhead
    return _with_host_growth(overhead, max(overhead.context_bytes, device.process_bytes), overhead.context_source)


def cublas_bytes(device: Device) -> int:
    """Return the bytes of cuBLAS' workspaces on a GPU, which lie in torch's allocator."""
    large = device.compute_capability is not None and device.compute_capability[0] in _CUBLAS_LARGE
    return _CUBLAS_STREAMS * (_CUBLAS_LARGE_BYTES if large else _CUBLAS_BYTES)


def with_measured_runtime(overhead: RuntimeOverhead, runtime_bytes: int) -> RuntimeOverhead:
    """Return the overhead on a CPU with the bytes that this process was just measured to hold beside its tensors."""
    return _with_host_growth(overhead, runtime_bytes, "measured in this process")


def _with_host_growth(overhead: RuntimeOverhead, runtime_bytes: int, source: str) -> RuntimeOverhead:
    source = f"{source}; {format_bytes(_HOST_GROWTH_BYTES)} of it for what Python and its libraries still add"
    return replace(overhead, context_bytes=runtime_bytes + _HOST_GROWTH_BYTES, context_source=source)
