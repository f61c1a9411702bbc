"""A record of what FlexAttention was compiled for: GPU, torch version and shapes.

torch stores the compiled kernels on disk itself; the record lets a question announce that it will wait.
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
    """Return what identifies a compiled result: device, torch's version and all shapes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    shapes = f"{spec.hidden}/{spec.intermediate}/{spec.heads}/{spec.kv_heads}/{spec.head_dim}"
    return f"{what} · {name} · torch {torch.__version__} · {shapes} · {str(dtype).removeprefix('torch.')}"


def remember(key: str) -> None:
    """Record a compilation; a file that cannot be written is ignored."""
    with contextlib.suppress(OSError):
        write_whole(_file(), json.dumps(sorted(_compiled() | {key}), indent=1) + "\n")


def pending(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Return a note for each compilation of FlexAttention that a question will wait for, by key."""
    key = key_of(FLEX, spec, device, dtype)
    if key in _compiled():
        return {}
    return {
        key: f"compiling attention (once per GPU and version), about {_ABOUT_SECONDS} s; `vidqa warmup` does it ahead"
    }


def _file() -> Path:
    return state_folder() / "compiled.json"


def _compiled() -> frozenset[str]:
    """Return the recorded keys; older files have seconds by key."""
    try:
        records = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()
    return frozenset(map(str, records)) if isinstance(records, list | dict) else frozenset()
