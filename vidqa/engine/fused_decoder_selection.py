"""Checks that the fused layers of a decode step run correctly on a device, and adds them to a model.

Before a model is loaded, one small layer of its head layout is run on the device by plain and by fused kernels. If they
do not run or results differ, the model keeps its plain layers.
"""

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vidqa.devices.gpu_catalog import OLDEST_FOR_TRITON
from vidqa.devices.torch_device import default_dtype, first_line
from vidqa.engine.kv_cache import Storage
from vidqa.engine.static_decode_step import DecodeState, next_hidden
from vidqa.models.family import family_of
from vidqa.models.fused_decoder import FusedDecoder, merging_bytes
from vidqa.models.spec import ModelSpec
from vidqa.models.vlm import VisionLanguageModel

_INTERMEDIATE = 256  # of the small layer: Triton compiles one kernel for all widths
# Tokens cached before the compared one: above 64 · 128 a program of the attention kernel meets several tiles.
_LENGTHS = (8300, 130)
# Of the largest result. A key on the edge between two int8 steps may differ by one of 127.
_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 3e-2}


def load_kernels() -> ModuleType:
    """Import the Triton kernels; raises ImportError if Triton is not installed."""
    from vidqa.models import triton_kernels

    return triton_kernels


def can_compile(device: torch.device) -> str:
    """Return why Triton cannot compile for a device; "" if it can."""
    if device.type != "cuda":
        return f"on {device.type} it runs as it is"
    if torch.cuda.get_device_capability(device) < OLDEST_FOR_TRITON:
        return "Triton needs compute capability 8.0"
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"


def why_not_fused(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> str:
    """Return why the fused layers cannot run a model's decode step on a device; "" if they can.

    Compiles the kernels the first time on a machine (about five seconds), and compares their results.
    """
    if why := can_compile(device):
        return why
    if spec.head_dim & (spec.head_dim - 1):
        return f"a head of {spec.head_dim} is no power of two"
    if spec.qk_norm:
        return "queries and keys are normalised between the kernels"
    if dtype == torch.float16:
        return "in float16 the residual streams are float32"
    small = replace(spec, layers=1, intermediate=_INTERMEDIATE, vocabulary=64, stored=None, stop_tokens=())
    return _compared(small, device, dtype)


def fuse(model: VisionLanguageModel, room_bytes: int) -> VisionLanguageModel:
    """Return a loaded model with fused layers if they run, else as it is.

    Projections are merged if `room_bytes` of the device hold the largest of them beside the ones that it replaces.
    """
    if why_not_fused(model.spec, model.device, model.dtype):
        return model
    text: Any = model.language_model
    return model.with_fused(FusedDecoder.of(text, load_kernels(), merge=merging_bytes(text) <= room_bytes))


@functools.cache
def _compared(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> str:
    """Run one layer of random weights both ways; return what differs or fails."""
    try:
        differences = difference(spec, device, dtype, load_kernels())
    except Exception as error:  # a compiler can raise anything; out of memory too leaves the plain layers
        return f"Triton's kernels do not run: {first_line(error)}"
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    off = next((one for one in differences if not one <= _TOLERANCE[dtype]), None)  # a NaN too
    return "" if off is None else f"Triton's kernels differ from the plain layers by {off:.1e}"


@torch.no_grad()
def difference(spec: ModelSpec, device: torch.device, dtype: torch.dtype, kernels: ModuleType) -> tuple[float, float]:
    """Return the largest relative difference between fused and plain results of one random layer.

    The first is with a cache in the compute precision, the second with an int8 one.
    """
    plain, hidden = _one_layer(spec, device, dtype)
    fused = plain.with_fused(FusedDecoder.of(plain.language_model, kernels, merge=True))
    native, int8 = (
        _distance(_one_step(plain, hidden, quantized=quantized), _one_step(fused, hidden, quantized=quantized))
        for quantized in (False, True)
    )
    return native, int8


def _distance(expected: Sequence[Tensor], made: Sequence[Tensor]) -> float:
    """Return the largest difference over the largest number, of all pairs; NaN if there is one."""
    pairs = [(one.float(), other.float()) for one, other in zip(expected, made, strict=True)]
    return float(torch.stack([(one - other).abs().max() / one.abs().max() for one, other in pairs]).max())


def _one_layer(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> tuple[VisionLanguageModel, Tensor]:
    """Return a model of one layer with random weights, and hidden states for each of `_LENGTHS`."""
    family = family_of(spec).load_runtime()
    generator = torch.Generator(device).manual_seed(0)
    with device, default_dtype(dtype):
        layer: Any = family.decoder_layer(spec)
    for parameter in layer.parameters():
        parameter.normal_(generator=generator)
        parameter.mul_(parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1).add_(parameter.dim() == 1)
    text = SimpleNamespace(layers=[layer], norm=layer.post_attention_layernorm)
    model = VisionLanguageModel(None, spec, device, dtype, 0)
    vars(model).update(language_model=text, rotary=family.random_rotary(spec, device))
    shape = (len(_LENGTHS), spec.hidden)
    return model, torch.randn(shape, generator=generator, device=device, dtype=dtype)


def _one_step(model: VisionLanguageModel, hidden: Tensor, *, quantized: bool) -> tuple[Tensor, Tensor]:
    """Return hidden states after one step with a random cache, and that cache."""
    generator = torch.Generator(model.device).manual_seed(1)
    storage = Storage.allocate(
        model.spec, max(_LENGTHS) + 1, model.dtype, model.device, sequences=len(_LENGTHS), quantized=quantized
    )
    if storage.scales is None:
        storage.store.normal_(generator=generator)
    else:
        storage.store.random_(-127, 128, generator=generator)
        storage.scales.uniform_(0, 0.05, generator=generator)
    decode_state = DecodeState.of(_LENGTHS, _LENGTHS, model.device)
    return next_hidden(model, hidden, storage, decode_state, storage.capacity), storage.store
