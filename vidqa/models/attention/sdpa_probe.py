"""What a plain call of PyTorch's attention would get on a device: every kernel is asked alone, then all.

vidqa makes no such call; others do, and their memory goes here. Knows PyTorch's kernels;
decides nothing. A kernel's documentation is not believed: the shapes are run, with fewer
queries than keys.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from vidqa.models.attention.selector import HeadLayout

MATH = "math"
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    MATH: SDPBackend.MATH,
}
# Operators that the fused kernels appear as (ATen's native_functions.yaml); the math kernel is none of them.
_FUSED = {
    "flash_attention": "flash",
    "efficient_attention": "memory-efficient",
    "cudnn_attention": "cuDNN",
    "attention_math_for_mps": "Metal",
    "fused_attention_overrideable": "the vendor's",
}
_ROWS = 128  # queries of a prefill tile
_KEYS = 1024


@dataclass(frozen=True, slots=True)
class BackendProbe:
    """Whether one of SDPA's kernels takes a plain grouped call, and one with a causal mask; why it refused one."""

    name: str
    plain: bool
    plain_masked: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AttentionProbe:
    """What runs where no kernel is forced: a name of `BackendProbe`, per kind of call."""

    layout: HeadLayout
    dtype: str
    element_bytes: int
    backends: tuple[BackendProbe, ...]
    plain: str
    plain_masked: str


def probe_attention(layout: HeadLayout, device: str, dtype: torch.dtype) -> AttentionProbe:
    """Run each call with each kernel alone, then with PyTorch's own choice. Takes milliseconds and a few MiB."""
    calls = _calls(layout, torch.device(device), dtype)
    return AttentionProbe(
        layout=layout,
        dtype=str(dtype).removeprefix("torch."),
        element_bytes=dtype.itemsize,
        backends=tuple(_probe(name, backend, calls) for name, backend in _BACKENDS.items()),
        **{name: _chosen(call) for name, call in calls.items()},
    )


def device_dtype(device: str, bf16: bool) -> torch.dtype:
    """The precision that attention is computed in: fp32 on a processor, else bf16 where it is native, else fp16."""
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if bf16 else torch.float16


def _calls(layout: HeadLayout, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    query = torch.ones(1, layout.heads, _ROWS, layout.head_dim, device=device, dtype=dtype)
    key, value = torch.ones(2, 1, layout.kv_heads, _KEYS, layout.head_dim, device=device, dtype=dtype)
    causal = torch.ones(_ROWS, _KEYS, dtype=torch.bool, device=device).tril(_KEYS - _ROWS)
    return {
        "plain": lambda: scaled_dot_product_attention(query, key, value, enable_gqa=True),
        "plain_masked": lambda: scaled_dot_product_attention(query, key, value, attn_mask=causal, enable_gqa=True),
    }


def _probe(name: str, backend: SDPBackend, calls: dict[str, Callable[[], Any]]) -> BackendProbe:
    refusals = {call: _refusal(backend, run) for call, run in calls.items()}
    reason = next((refusal for refusal in refusals.values() if refusal), "")
    return BackendProbe(name, **{call: not refusal for call, refusal in refusals.items()}, reason=reason)


def _refusal(backend: SDPBackend, run: Callable[[], Any]) -> str:
    """Why a kernel does not take a call when it is the only one allowed; nothing where it does."""
    with warnings.catch_warnings(record=True) as said, torch.no_grad(), sdpa_kernel(backend):
        warnings.simplefilter("always")
        try:
            run()
        except RuntimeError as error:
            return _reason([str(warning.message) for warning in said]) or _first_sentence(str(error))
    return ""


def _reason(warned: list[str]) -> str:
    """SDPA warns one line per kernel and cause; lines that only say that a kernel was switched off are noise."""
    causes = [_first_sentence(text) for text in warned if "not used because" not in text and "disabled" not in text]
    return next(iter(causes), "")


def _first_sentence(text: str) -> str:
    if "No viable backend" in text or "No available kernel" in text:
        return "not offered on this device"
    line = (text.splitlines() or [""])[0]
    return line.partition(" (Triggered internally")[0].partition(". ")[0].strip().rstrip(".")


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down which operators run below attention's front door."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _chosen(run: Callable[[], Any]) -> str:
    """The kernel that PyTorch takes for a call: seen in the operators that it ran, not guessed from rules."""
    with torch.no_grad(), _Operators() as operators:
        run()
    found = (name for operator in operators.names for part, name in _FUSED.items() if part in operator)
    return next(found, MATH)
