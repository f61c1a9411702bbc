"""Attention kernels: their interface, and the choice of the one to use on a device.

Each kernel runs a chunk and a single token after cached ones, in the model's head layout, and its result is compared
with float32 before it is used.
"""

import functools
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidqa.config import ATTENTION_CHOICES
from vidqa.devices.torch_device import first_line
from vidqa.errors import AttentionUnavailable, UsageError
from vidqa.models.attention.flex import FlexKernel
from vidqa.models.attention.sdpa import FusedKernel
from vidqa.models.attention.tiled import TiledKernel
from vidqa.models.spec import ModelSpec

# From the fastest to the one that runs anywhere. flex is used by name only: it must be compiled first, which does not
# pay where flash is available.
KERNELS_BY_PREFERENCE = ("flash", "cudnn", "efficient", "tiled")
_ROWS = 128  # fewer queries than keys: kernels for squares refuse (or misalign) a real chunk
_KEYS = 1024
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_TIMED_CALLS = 5


class Kernel(Protocol):
    """Causal attention of new tokens over a preallocated KV cache that already holds them.

    No kernel expands keys or values to all heads, or allocates a matrix of the prompt's length squared.
    """

    name: str

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        """Prepare for `length` new tokens after `past` cached ones, in buffers of `capacity`; cheap if repeated."""

    def end(self) -> None:
        """Free what only this pass through the layers needed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attend with (1, heads, n, d) over whole buffers (1, kv_heads, capacity, d); return the query's shape."""


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Query heads, key/value heads, and the width of each."""

    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, spec: ModelSpec) -> "HeadLayout":
        """Return the language model's layout."""
        return cls(spec.heads, spec.kv_heads, spec.head_dim)


@dataclass(frozen=True, slots=True)
class KernelProbe:
    """Whether a kernel can be used on a device, and its largest difference from float32, or the reason against it.

    `chunk_seconds` is the fastest time of a chunk, 0 if it was not measured.
    """

    name: str
    runs: bool
    difference: float
    chunk_seconds: float
    reason: str = ""


def make_kernel(name: str, device: torch.device) -> Kernel:
    """Make a kernel by its name in a plan; raise UsageError for other names, AttentionUnavailable for other devices."""
    if name == "auto" or name not in ATTENTION_CHOICES:
        names = ", ".join(choice for choice in ATTENTION_CHOICES if choice != "auto")
        raise UsageError(f"There is no attention kernel {name!r}.", f"Choose one of {names}.")
    if name == "flex":
        return FlexKernel()
    return TiledKernel() if name == "tiled" else FusedKernel(name, device)


@functools.cache
def select_kernel(
    layout: HeadLayout, device: str, dtype: torch.dtype, *, timed: bool = False
) -> tuple[KernelProbe, ...]:
    """Probe kernels in order of preference until one runs; return all probes, the selected kernel's last."""
    probes: list[KernelProbe] = []
    for name in KERNELS_BY_PREFERENCE:
        probes.append(probe_kernel(name, layout, device, dtype, timed=timed))
        if probes[-1].runs:
            return tuple(probes)
    reasons = "; ".join(f"{probe.name}: {probe.reason}" for probe in probes)
    raise AttentionUnavailable(f"No attention runs on {device} ({reasons}).", "Use --device cpu, and report this.")


@torch.no_grad()
def probe_kernel(name: str, layout: HeadLayout, device: str, dtype: torch.dtype, *, timed: bool = True) -> KernelProbe:
    """Run a kernel on a chunk and on one token: milliseconds and a few MiB, for flex half a minute of compilation."""
    try:
        kernel = make_kernel(name, torch.device(device))
        states = _states(layout, torch.device(device), dtype)
        difference = max(_difference(kernel, states, rows) for rows in (_ROWS, 1))
        if not difference <= _TOLERANCE[dtype]:  # also if it is NaN
            return KernelProbe(name, False, difference, 0.0, f"differs from float32 by {difference:.1e}")
        return KernelProbe(name, True, difference, _seconds(kernel, states) if timed else 0.0)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttentionUnavailable, NotImplementedError) as error:
        return KernelProbe(name, False, 0.0, 0.0, first_line(error).partition(". ")[0].strip().rstrip("."))


def _states(layout: HeadLayout, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (1, heads, 128, d), keys and values (1, kv_heads, 1024, d), the same on every device."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, layout.heads, _ROWS, layout.head_dim, generator=generator)
    key, value = torch.randn(2, 1, layout.kv_heads, _KEYS, layout.head_dim, generator=generator).to(device, dtype)
    return query.to(device, dtype), key, value


def _difference(kernel: Kernel, states: tuple[Tensor, Tensor, Tensor], rows: int) -> float:
    query, key, value = states
    output = _attend(kernel, query[:, :, :rows], key, value)
    exact = _attend(TiledKernel(), query[:, :, :rows].float(), key.float(), value.float())
    return float((output.float() - exact).abs().max())


def _attend(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Call a kernel as the engine does: the queries belong to the last of the keys."""
    rows = query.shape[2]
    kernel.begin(_KEYS - rows, rows, _KEYS, query.device)
    try:
        return kernel.attend(query, key, value, query.shape[3] ** -0.5)
    finally:
        kernel.end()


def _seconds(kernel: Kernel, states: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the fastest time of a few synchronised calls on the chunk."""
    fastest = float("inf")
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        _attend(kernel, *states).flatten()[0].item()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
