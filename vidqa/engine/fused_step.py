"""Whether the fused layers of a decode step run on a device, and a model with them.

Documentation is not believed: before a model is loaded, one small layer of its head layout is run both ways on the
device, and the results are compared. What does not run, or differs, leaves the plain layers.
"""

import functools
import importlib.util
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vidqa.engine.kv_cache import Storage
from vidqa.engine.static_step import Places, next_hidden
from vidqa.memory.gpus import OLDEST_FOR_TRITON
from vidqa.models.decoder import Rotary
from vidqa.models.fused_decoder import FusedDecoder, merging_bytes
from vidqa.models.qwen2_vl import Qwen2VL
from vidqa.models.skeleton import config_of, mrope_sections
from vidqa.models.specs import ModelSpec

_INTERMEDIATE = 256  # of the small layer: Triton compiles one kernel for all widths
_LENGTHS = (700, 130)  # tokens cached before the compared one
# Of the largest result. A key on the edge between two int8 steps may differ by one of 127.
_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 3e-2}


def load_kernels() -> ModuleType:
    """The Triton kernels; raises ImportError where Triton is not installed."""
    from vidqa.models import triton_kernels

    return triton_kernels


def can_compile(device: torch.device) -> str:
    """Why Triton cannot compile for a device; nothing where it can."""
    if device.type != "cuda":
        return f"on {device.type} it runs as it is"
    if torch.cuda.get_device_capability(device) < OLDEST_FOR_TRITON:
        return "Triton needs compute capability 8.0"
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"


def why_not_fused(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> str:
    """Why the fused layers cannot run a model's decode step on a device; nothing where they can.

    Compiles the kernels the first time on a machine (about five seconds), and compares their results.
    """
    if why := can_compile(device):
        return why
    if spec.head_dim & (spec.head_dim - 1):
        return f"a head of {spec.head_dim} is no power of two"
    if dtype == torch.float16:
        return "in float16 the residual streams are float32"
    return _compared(replace(spec, layers=1, intermediate=_INTERMEDIATE, vocabulary=64), device, dtype)


def fuse(model: Qwen2VL, room_bytes: int) -> Qwen2VL:
    """A loaded model with fused layers where they run, else as it is.

    Its projections are merged where `room_bytes` of the device hold the largest of them beside what it replaces.
    """
    if why_not_fused(model.spec, model.device, model.dtype):
        return model
    text: Any = model.model.model.language_model
    if merging_bytes(text) > room_bytes:
        return model.with_fused(FusedDecoder.of(text, load_kernels(), None))
    # A layer's old matrices go back to the device before the next ones are merged.
    return model.with_fused(FusedDecoder.of(text, load_kernels(), torch.cuda.empty_cache))


def _no_cache() -> None:
    """Keep what the allocator holds."""


@functools.cache
def _compared(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> str:
    """Run one layer of random weights both ways; what differs or fails, in a sentence."""
    try:
        off = max(difference(spec, device, dtype, load_kernels(), quantized=quantized) for quantized in (False, True))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler can raise anything
        return f"Triton's kernels do not run: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return "" if off <= _TOLERANCE[dtype] else f"Triton's kernels differ from the plain layers by {off:.1e}"


@torch.no_grad()
def difference(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, kernels: ModuleType, *, quantized: bool
) -> float:
    """The largest difference between fused and plain results of one random layer, over the largest result."""
    model, hidden = _one_layer(spec, device, dtype)
    fused = model.with_fused(FusedDecoder.of(model.model.model.language_model, kernels, _no_cache))
    results = [_one_step(one, hidden, quantized=quantized) for one in (model, fused)]
    plain, ours = ((states.float(), store.float()) for states, store in results)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(plain, ours, strict=True))


def _one_layer(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> tuple[Qwen2VL, Tensor]:
    """A language model of a spec's first layer with random weights, and hidden states for each of `_LENGTHS`."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

    generator = torch.Generator().manual_seed(0)
    layer: Any = Qwen2VLDecoderLayer(config_of(spec).text_config, 0).to(device, dtype).eval()
    for parameter in layer.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.1 * values)
    text = SimpleNamespace(layers=[layer], norm=layer.post_attention_layernorm)
    model = Qwen2VL(SimpleNamespace(model=SimpleNamespace(language_model=text)), spec, device, dtype, 0)
    frequencies = 1e6 ** -(torch.arange(0, spec.head_dim, 2, device=device).float() / spec.head_dim)
    vars(model)["rotary"] = Rotary(frequencies, mrope_sections(spec.head_dim))
    hidden = torch.randn(len(_LENGTHS), spec.hidden, generator=generator)
    return model, hidden.to(device, dtype)


def _one_step(model: Qwen2VL, hidden: Tensor, *, quantized: bool) -> tuple[Tensor, Tensor]:
    """Hidden states after one step behind a random cache, and that cache."""
    generator = torch.Generator().manual_seed(1)
    storage = Storage.allocate(
        model.spec, max(_LENGTHS) + 1, model.dtype, model.device, sequences=len(_LENGTHS), quantized=quantized
    )
    values = torch.randn(storage.store.shape, generator=generator)
    storage.store.copy_(values.mul(40).round().clamp(-127, 127) if quantized else values)
    if storage.scales is not None:
        storage.scales.copy_(torch.rand(storage.scales.shape, generator=generator) * 0.05)
    places = Places.of(_LENGTHS, _LENGTHS, model.device)
    return next_hidden(model, hidden, storage, places, storage.capacity), storage.store
