"""Compile ahead what the first question would otherwise wait for, and say how long it took.

A single layer of the model's shapes with random weights is enough: the graph is the same for
all layers. Fetches no model and reads no video.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from vidqa.engine.compiling import DECODE_STEP, FLEX, can_compile, compiled_layer, key_of, remember
from vidqa.engine.kv_cache import Storage
from vidqa.engine.timing import Stopwatch
from vidqa.models.decoder import Rotary
from vidqa.models.ladder import HeadLayout, Rung, climb, try_rung
from vidqa.models.skeleton import config_of
from vidqa.models.specs import ModelSpec

_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Warmed:
    """One thing that was made ready, or why not, and the seconds it took."""

    name: str
    done: bool
    detail: str
    seconds: float


def warm_up(spec: ModelSpec, device: torch.device, dtype: torch.dtype, *, flex: bool) -> Iterator[Warmed]:
    """Try the attention ladder and compile the decode step for a model's shapes; with `flex`, FlexAttention too."""
    layout = HeadLayout.of(spec)
    watch = Stopwatch()
    *_, rung = climb(layout, str(device), dtype, timed=True)
    yield Warmed("attention", True, _told(rung), watch.seconds())
    if flex:
        watch = Stopwatch()
        rung = try_rung("flex", layout, str(device), dtype)
        if rung.runs:
            remember(key_of(FLEX, spec, device, dtype), watch.seconds())
        yield Warmed("flex attention", rung.runs, _told(rung) if rung.runs else rung.reason, watch.seconds())
    if why := can_compile(device):
        yield Warmed(DECODE_STEP, True, f"nothing to compile: {why}", 0.0)
        return
    watch = Stopwatch()
    compile_decode_step(spec, device, dtype)
    remember(key_of(DECODE_STEP, spec, device, dtype), watch.seconds())
    yield Warmed(DECODE_STEP, True, "compiled: answers use it from now on", watch.seconds())


def _told(rung: Rung) -> str:
    return f"{rung.name}: {1e3 * rung.chunk_seconds:.1f} ms for 128 tokens after 896"


@torch.no_grad()
def compile_decode_step(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Run a layer of the spec's shapes once through the compiled step; its output (1, hidden)."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

    one = replace(spec, layers=1)
    text = config_of(one).text_config
    layer = Qwen2VLDecoderLayer(text, 0).to(device, dtype).eval()
    storage = Storage.allocate(one, _TOKENS, dtype, device)
    frequencies = 1e6 ** -(torch.arange(0, spec.head_dim, 2, device=device).float() / spec.head_dim)
    rotary = Rotary(frequencies, text.rope_parameters["mrope_section"])
    lengths = torch.tensor([_TOKENS // 2], device=device)
    unwritten = (torch.arange(storage.capacity, device=device) > lengths[:, None])[:, None, None]
    hidden = torch.randn(1, spec.hidden, device=device, dtype=dtype)
    return compiled_layer(layer, hidden, *rotary.of_text(lengths), storage.store[0], None, lengths, unwritten)
