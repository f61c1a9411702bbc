"""Keys and values of everything the model has read, in one allocation made once.

They lie in the compute precision, or as int8 with a scale per token and head; on the
device, or on the host. Whatever is not ready to be read goes through one layer's scratch.
Knows bytes and positions; knows nothing of attention. Nothing is ever concatenated.
"""

import torch
from torch import Tensor

from vidqa.errors import DoesNotFit
from vidqa.models.specs import ModelSpec

ROUND_TOKENS = 128  # whole attention blocks


def rounded_capacity(tokens: int) -> int:
    """Tokens that a cache for `tokens` really holds."""
    return -(-tokens // ROUND_TOKENS) * ROUND_TOKENS


class KVCache:
    """A preallocated cache of (layers, 2, kv_heads, capacity, head_dim)."""

    def __init__(
        self,
        spec: ModelSpec,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        quantized: bool = False,
        on_host: bool = False,
    ) -> None:
        self.capacity = rounded_capacity(tokens)
        self.length = 0
        self._quantized = quantized
        place = torch.device("cpu") if on_host else device
        shape = (spec.layers, 2, spec.kv_heads, self.capacity, spec.head_dim)
        # Zeroed once: a kernel that reads masked positions multiplies them by 0, and 0 · NaN is NaN.
        self._store = _zeros(shape, torch.int8 if quantized else dtype, place)
        self._scales = _zeros(shape[:-1], torch.float16, place) if quantized else None
        self._scratch = _zeros(shape[1:], dtype, device) if quantized or on_host else None

    @property
    def bytes(self) -> int:
        """Bytes of all its allocations."""
        parts = (self._store, self._scales, self._scratch)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> Tensor:
        """Put (n, kv_heads, d) after the cached tokens; returns the layer's (2, kv_heads, capacity, d)."""
        end = self.length + keys.shape[0]
        if end > self.capacity:
            raise DoesNotFit(
                f"The KV cache holds {self.capacity} tokens and {end} are needed.", "Ask for fewer frames or tokens."
            )
        fresh = slice(self.length, end)
        for part, states in enumerate((keys, values)):
            self._put(layer, part, fresh, states.transpose(0, 1))
        return self._store[layer] if self._scratch is None else self._recall(layer, end)

    def _put(self, layer: int, part: int, fresh: slice, states: Tensor) -> None:
        """Store (kv_heads, n, head_dim) of keys (part 0) or values (part 1)."""
        if self._scales is not None:
            scale = (states.abs().amax(dim=-1).float() / 127).clamp_(min=_SMALLEST_SCALE).to(torch.float16)
            self._scales[layer, part, :, fresh] = scale
            states = (states / scale[..., None]).round_().clamp_(-127, 127)
        self._store[layer, part, :, fresh] = states

    def _recall(self, layer: int, end: int) -> Tensor:
        """Bring a layer's first `end` tokens, as numbers to compute with, into the scratch."""
        assert self._scratch is not None
        filled = self._scratch[:, :, :end]
        filled.copy_(self._store[layer, :, :, :end])
        if self._scales is not None:
            filled.mul_(self._scales[layer, :, :, :end, None].to(filled.device))
        return self._scratch

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as cached, once all layers have written them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)


_SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number: a row of zeros stays zeros


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).zero_()
