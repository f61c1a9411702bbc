"""What is compiled once per GPU and version: whether that was done, and the compiled decode step.

torch keeps the results on disk; this file remembers what was compiled for what. Nobody waits for
a compiler who did not ask for one.
"""

import contextlib
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidqa.config import state_folder
from vidqa.engine.static_step import Layer, run_layer
from vidqa.files import write_whole
from vidqa.memory.gpus import OLDEST_FOR_TRITON
from vidqa.models.qwen2_vl import Qwen2VL
from vidqa.models.specs import ModelSpec

DECODE_STEP, FLEX = "decode step", "flex"
_ABOUT_SECONDS = 30


def can_compile(device: torch.device) -> str:
    """Why the decode step cannot be compiled here; nothing where it can."""
    if device.type != "cuda":
        return f"on {device.type} it runs as it is"
    if torch.cuda.get_device_capability(device) < OLDEST_FOR_TRITON:
        return "Triton needs compute capability 8.0"
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"


def key_of(what: str, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> str:
    """What must be equal for a compiled result to serve again: the device, torch's version and all shapes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    shapes = f"{spec.hidden}/{spec.intermediate}/{spec.heads}/{spec.kv_heads}/{spec.head_dim}"
    return f"{what} · {name} · torch {torch.__version__} · {shapes} · {str(dtype).removeprefix('torch.')}"


def seconds_taken(key: str) -> float | None:
    """How long it took here to compile this; None if that was not done yet."""
    return _known().get(key)


def remember(key: str, seconds: float) -> None:
    """Note that it was compiled; nothing here may stop an answer."""
    with contextlib.suppress(OSError):
        write_whole(_record(), json.dumps(_known() | {key: round(seconds, 1)}, indent=1) + "\n")


def layer_step(model: Qwen2VL, choice: str, *, quantized: bool) -> Layer:
    """The decode step's layer, compiled where the choice says so: `on`, or `auto` once it was compiled here."""
    if choice == "off" or quantized or can_compile(model.device):
        return run_layer
    key = key_of(DECODE_STEP, model.spec, model.device, model.dtype)
    return compiled_layer if choice == "on" or seconds_taken(key) is not None else run_layer


def pending(model: Qwen2VL, attention: str, step: Layer) -> dict[str, str]:
    """What a question will compile first, by key, each with the sentence that tells of it."""
    wanted = {FLEX: attention == "flex", DECODE_STEP: step is compiled_layer}
    told = {}
    for what, needed in wanted.items():
        key = key_of(what, model.spec, model.device, model.dtype)
        if needed and seconds_taken(key) is None:
            name = "attention" if what == FLEX else "the decode step"
            told[key] = (
                f"compiling {name} (once per GPU and version), about {_ABOUT_SECONDS} s; `vidqa warmup` does it ahead"
            )
    return told


def compiled_layer(layer: Any, hidden: Tensor, cosine: Tensor, sine: Tensor, store: Tensor, scales: Tensor | None,
                   lengths: Tensor, unwritten: Tensor) -> Tensor:  # fmt: skip
    """`run_layer`, compiled: one graph for all layers, and for caches of every capacity."""
    for tensor, dimension in ((store, 3), (unwritten, 3), (scales, 3)):
        if tensor is not None:
            torch._dynamo.mark_dynamic(tensor, dimension)
    out: Tensor = _compiled()(layer, hidden, cosine, sine, store, scales, lengths, unwritten)
    return out


@functools.cache
def _compiled() -> Layer:
    return torch.compile(run_layer, dynamic=False, fullgraph=True)


def _record() -> Path:
    return state_folder() / "compiled.json"


def _known() -> dict[str, float]:
    try:
        known = json.loads(_record().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
