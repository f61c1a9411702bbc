"""Ahead-of-time compilation of the kernels that the first question would otherwise wait for.

One layer with the model's shapes and random weights is enough: all layers use the same kernels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vidqa.engine.compile_cache import FLEX, key_of, remember
from vidqa.engine.fused_decoder_selection import can_compile, why_not_fused
from vidqa.engine.timers import Stopwatch
from vidqa.models.attention.selector import HeadLayout, KernelProbe, probe_kernel, select_kernel
from vidqa.models.spec import ModelSpec

DECODE_STEP = "decode step"


@dataclass(frozen=True, slots=True)
class WarmupResult:
    """What was compiled, or why not, and the seconds it took."""

    name: str
    done: bool
    detail: str
    seconds: float


def warm_up(spec: ModelSpec, device: torch.device, dtype: torch.dtype, *, flex: bool) -> Iterator[WarmupResult]:
    """Select the attention kernel and compile the decode step's kernels for a model; with `flex`, FlexAttention too."""
    layout = HeadLayout.of(spec)
    watch = Stopwatch()
    *_, kernel = select_kernel(layout, str(device), dtype, timed=True)
    yield WarmupResult("attention", True, _timing(kernel), watch.seconds())
    if flex:
        watch = Stopwatch()
        kernel = probe_kernel("flex", layout, str(device), dtype)
        if kernel.runs:
            remember(key_of(FLEX, spec, device, dtype))
        yield WarmupResult(
            "flex attention", kernel.runs, _timing(kernel) if kernel.runs else kernel.reason, watch.seconds()
        )
    yield _decode_step(spec, device, dtype)


def _decode_step(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> WarmupResult:
    """Compile the decode step's Triton kernels and compare them with plain layers, if the device can run them."""
    if why := can_compile(device):
        return WarmupResult(DECODE_STEP, True, f"nothing to compile: {why}", 0.0)
    watch = Stopwatch()
    why = why_not_fused(spec, device, dtype)
    return WarmupResult(DECODE_STEP, not why, why or "Triton's kernels are compiled and agree", watch.seconds())


def _timing(kernel: KernelProbe) -> str:
    return f"{kernel.name}: {1e3 * kernel.chunk_seconds:.1f} ms for 128 tokens after 896"
