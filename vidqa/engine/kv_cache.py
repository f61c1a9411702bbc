"""Keys and values of everything the model has read, in one allocation made once.

Knows bytes and positions; knows nothing of attention. Nothing is ever concatenated.
"""

import torch
from torch import Tensor

from vidqa.errors import DoesNotFit
from vidqa.models.specs import ModelSpec

_ROUND_TOKENS = 128  # whole attention blocks


class KVCache:
    """A preallocated cache of (layers, 2, kv_heads, capacity, head_dim)."""

    def __init__(self, spec: ModelSpec, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = -(-tokens // _ROUND_TOKENS) * _ROUND_TOKENS
        self.length = 0
        shape = (spec.layers, 2, spec.kv_heads, self.capacity, spec.head_dim)
        # Zeroed once: a kernel that reads masked positions multiplies them by 0, and 0 · NaN is NaN.
        self._store = torch.empty(shape, dtype=dtype, device=device).zero_()

    @property
    def bytes(self) -> int:
        """Bytes of the allocation."""
        return self._store.numel() * self._store.element_size()

    def view(self, *, whole: bool) -> "CacheView":
        """What transformers' layers write through; `whole` returns full buffers instead of the filled part."""
        return CacheView(self, whole)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> Tensor:
        """Put (1, kv_heads, n, head_dim) after the cached tokens; returns the layer's (2, ...) buffers."""
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise DoesNotFit(
                f"The KV cache holds {self.capacity} tokens and {end} are needed.", "Ask for fewer frames or tokens."
            )
        store = self._store[layer]  # (2, kv_heads, capacity, head_dim)
        store[0, :, self.length : end] = keys[0]
        store[1, :, self.length : end] = values[0]
        return store

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as cached, once all layers have written them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)


class CacheView:
    """The two methods that transformers' attention layers call on a cache."""

    def __init__(self, cache: KVCache, whole: bool) -> None:
        self._cache = cache
        self._whole = whole

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values in place; returns views (1, kv_heads, m, head_dim)."""
        store = self._cache.write(layer_idx, key_states, value_states)
        end = self._cache.capacity if self._whole else self._cache.length + key_states.shape[2]
        return store[0, None, :, :end], store[1, None, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Cached tokens before this pass."""
        return self._cache.length
