"""Compile ahead what the first question would otherwise wait for, and say how long it took.

A single layer of the model's shapes with random weights is enough: the kernels are the same for
all layers. Fetches no model and reads no video.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vidqa.engine.compile_cache import FLEX, key_of, remember
from vidqa.engine.fused_decode import can_compile, why_not_fused
from vidqa.engine.timers import Stopwatch
from vidqa.models.attention.selector import HeadLayout, KernelProbe, probe_kernel, select_kernel
from vidqa.models.spec import ModelSpec

DECODE_STEP = "decode step"


@dataclass(frozen=True, slots=True)
class Warmed:
    """One thing that was made ready, or why not, and the seconds it took."""

    name: str
    done: bool
    detail: str
    seconds: float


def warm_up(spec: ModelSpec, device: torch.device, dtype: torch.dtype, *, flex: bool) -> Iterator[Warmed]:
    """Try the attention ladder and compile the decode step's kernels for a model; with `flex`, FlexAttention too."""
    layout = HeadLayout.of(spec)
    watch = Stopwatch()
    *_, rung = select_kernel(layout, str(device), dtype, timed=True)
    yield Warmed("attention", True, _told(rung), watch.seconds())
    if flex:
        watch = Stopwatch()
        rung = probe_kernel("flex", layout, str(device), dtype)
        if rung.runs:
            remember(key_of(FLEX, spec, device, dtype), watch.seconds())
        yield Warmed("flex attention", rung.runs, _told(rung) if rung.runs else rung.reason, watch.seconds())
    yield _decode_step(spec, device, dtype)


def _decode_step(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Warmed:
    """Compile and compare the decode step's Triton kernels, where the device can run them."""
    if why := can_compile(device):
        return Warmed(DECODE_STEP, True, f"nothing to compile: {why}", 0.0)
    watch = Stopwatch()
    why = why_not_fused(spec, device, dtype)
    return Warmed(DECODE_STEP, not why, why or "Triton's kernels are compiled and agree", watch.seconds())


def _told(rung: KernelProbe) -> str:
    return f"{rung.name}: {1e3 * rung.chunk_seconds:.1f} ms for 128 tokens after 896"
