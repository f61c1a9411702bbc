"""The attention ladder on a device: which rungs run there, whether they are exact, and how fast.

Documentation is not believed: each rung runs a chunk and a single token after cached ones, in
the model's own head layout, and its result is held against float32. Decides by order and
result; knows nothing of plans.
"""

import functools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from vidqa.errors import AttentionUnavailable
from vidqa.models.attention import Kernel, TiledKernel, make_kernel
from vidqa.models.spec import ModelSpec

# From the fastest that needs no compilation to the one that runs anywhere. flex is asked for by name:
# it has to be compiled first, and where there is a flash kernel it gains nothing that pays for that.
LADDER = ("flash", "cudnn", "efficient", "tiled")
_ROWS = 128  # fewer queries than keys: kernels that take a square refuse (or misalign) a real chunk
_KEYS = 1024
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_RUNS = 5


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Query heads, key/value heads, and the width of each."""

    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, spec: ModelSpec) -> "HeadLayout":
        """The language model's layout."""
        return cls(spec.heads, spec.kv_heads, spec.head_dim)

    def score_bytes(self, tokens: int, element_bytes: int) -> int:
        """Bytes of one layer's full score matrix, which only the math kernel builds: heads · tokens² · element."""
        return self.heads * tokens * tokens * element_bytes


@dataclass(frozen=True, slots=True)
class KernelProbe:
    """One kernel here: whether it can be used, its largest difference from float32, or why not.

    `chunk_seconds` is the quickest run of a chunk, 0 where that was not asked for.
    """

    name: str
    runs: bool
    difference: float
    chunk_seconds: float
    reason: str = ""


@functools.cache
def select_kernel(
    layout: HeadLayout, device: str, dtype: torch.dtype, *, timed: bool = False
) -> tuple[KernelProbe, ...]:
    """Try the ladder from its top until a rung runs: what was tried, the choice last. Once per process."""
    tried: list[KernelProbe] = []
    for name in LADDER:
        tried.append(try_rung(name, layout, device, dtype, timed=timed))
        if tried[-1].runs:
            return tuple(tried)
    reasons = "; ".join(f"{rung.name}: {rung.reason}" for rung in tried)
    raise AttentionUnavailable(f"No attention runs on {device} ({reasons}).", "Use --device cpu, and report this.")


@torch.no_grad()
def try_rung(name: str, layout: HeadLayout, device: str, dtype: torch.dtype, *, timed: bool = True) -> KernelProbe:
    """Run one rung on a chunk and on one token; milliseconds and a few MiB, for flex half a minute of compilation."""
    try:
        kernel = make_kernel(name, torch.device(device))
        states = _states(layout, torch.device(device), dtype)
        difference = max(_difference(kernel, states, rows) for rows in (_ROWS, 1))
        if not difference <= _TOLERANCE[dtype]:  # a NaN too
            return KernelProbe(name, False, difference, 0.0, f"differs from float32 by {difference:.1e}")
        return KernelProbe(name, True, difference, _seconds(kernel, states) if timed else 0.0)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttentionUnavailable, NotImplementedError) as error:
        return KernelProbe(name, False, 0.0, 0.0, _first_sentence(error))


def _states(layout: HeadLayout, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (1, heads, 128, d), keys and values (1, kv_heads, 1024, d), the same on every device."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, layout.heads, _ROWS, layout.head_dim, generator=generator)
    keys = torch.randn(2, 1, layout.kv_heads, _KEYS, layout.head_dim, generator=generator)
    return query.to(device, dtype), keys[0].to(device, dtype), keys[1].to(device, dtype)


def _difference(kernel: Kernel, states: tuple[Tensor, Tensor, Tensor], rows: int) -> float:
    query, key, value = states
    ours = _attend(kernel, query[:, :, :rows], key, value)
    exact = _attend(TiledKernel(), query[:, :, :rows].float(), key.float(), value.float())
    return float((ours.float() - exact).abs().max())


def _attend(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A call as the engine makes it, its queries being the last of the keys."""
    rows = query.shape[2]
    kernel.begin(_KEYS - rows, rows, _KEYS, query.device)
    try:
        return kernel.attend(query, key, value, query.shape[3] ** -0.5)
    finally:
        kernel.end()


def _seconds(kernel: Kernel, states: tuple[Tensor, Tensor, Tensor]) -> float:
    """The quickest of a few runs of the chunk, waited for."""
    quickest = float("inf")
    for _ in range(_RUNS):
        begun = time.perf_counter()
        _attend(kernel, *states).flatten()[0].item()
        quickest = min(quickest, time.perf_counter() - begun)
    return quickest


def _first_sentence(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0].strip().rstrip(".")
