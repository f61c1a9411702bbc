"""Whether FlexAttention was compiled here before: once per GPU, version of torch and shapes of a model.

torch keeps what it compiled on disk; this file remembers for what, so that a question that has to wait says so.
"""

import contextlib
import json
from pathlib import Path

import torch

from vidqa.config import state_folder
from vidqa.models.spec import ModelSpec
from vidqa.utils.atomic_write import write_whole

FLEX = "flex"
_ABOUT_SECONDS = 30


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


def pending(spec: ModelSpec, device: torch.device, dtype: torch.dtype, attention: str) -> dict[str, str]:
    """What a question will compile first, by key, each with a sentence for the user."""
    key = key_of(FLEX, spec, device, dtype)
    if attention != FLEX or seconds_taken(key) is not None:
        return {}
    return {
        key: f"compiling attention (once per GPU and version), about {_ABOUT_SECONDS} s; `vidqa warmup` does it ahead"
    }


def _record() -> Path:
    return state_folder() / "compiled.json"


def _known() -> dict[str, float]:
    try:
        known = json.loads(_record().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
