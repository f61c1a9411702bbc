"""PyTorch's fused kernels, called so that none of them needs a mask or a copy of K and V.

A chunk's attention is two calls: all cached keys without a mask, and the chunk's own square
with the causal flag. Each gives its log-sum-exp, and softmax over both is their weighted mean
(Milakov and Gimelshein 2018; as FlashAttention merges its splits). A masked call would fall to
the math kernel, and a causal call over more keys than queries is aligned to the wrong corner.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidqa.errors import AttentionUnavailable
from vidqa.models.attention.base import fold

# (query, key, value, causal, scale) -> output like the query, log-sum-exp (1, heads, n) in float32.
Front = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
_aten = torch.ops.aten


def _flash_cuda(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, sums, *_ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
    return out, sums


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, sums = _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    return out, sums


def _cudnn(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, sums, *_ = _aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, causal, False, scale=scale
    )
    return out, sums.reshape(query.shape[:3])  # some versions add a dimension of one


def _efficient(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, sums, *_ = _aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, causal, scale=scale
    )
    return out, sums[:, :, : query.shape[2]]  # the kernel pads its rows to whole warps


# Per device and rung: the call, and whether it takes fewer key heads than query heads.
_FRONTS: dict[tuple[str, str], tuple[Front, bool]] = {
    ("cuda", "flash"): (_flash_cuda, True),
    ("cuda", "cudnn"): (_cudnn, True),
    ("cuda", "efficient"): (_efficient, False),
    ("cpu", "flash"): (_flash_cpu, True),
    ("cpu", "efficient"): (_flash_cpu, False),  # the same arrangement over the one fused kernel of a processor
}


class FusedKernel:
    """A fused kernel of PyTorch: `flash`, `cudnn` or `efficient`."""

    def __init__(self, name: str, device: torch.device) -> None:
        if (device.type, name) not in _FRONTS:
            raise AttentionUnavailable(
                f"There is no {name} attention on {device.type}.",
                "Use --attn auto, or --attn tiled, which runs anywhere.",
            )
        self.name = name
        self._front, self._grouped = _FRONTS[device.type, name]
        self._past = 0

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        self._past = past

    def end(self) -> None:
        """Nothing was prepared."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        past, end = self._past, self._past + query.shape[2]
        if query.shape[2] == 1:  # one position sees all keys, its own among them
            return self._unmasked(query, key[:, :, :end], value[:, :, :end], scaling)[0]
        own, own_sums = self._causal_square(query, key[:, :, past:end], value[:, :, past:end], scaling)
        if not past:
            return own
        out, sums = self._unmasked(query, key[:, :, :past], value[:, :, :past], scaling)
        # softmax over both parts: the own part weighs exp(own) / (exp(own) + exp(past)).
        weight = torch.sigmoid(own_sums - sums)[..., None].to(query.dtype)
        return out.lerp_(own, weight)

    def _unmasked(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        if self._grouped:
            return self._front(query, key, value, False, scaling)
        out, sums = self._front(fold(query, key.shape[1]), key, value, False, scaling)
        return out.reshape(query.shape), sums.reshape(query.shape[:3])

    def _causal_square(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        if self._grouped or query.shape[1] == key.shape[1]:
            return self._front(query, key, value, True, scaling)
        # Folded rows of different positions need a mask; one head of every group at a time needs none.
        kv_heads = key.shape[1]
        group = query.shape[1] // kv_heads
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        for member in range(group):
            heads = slice(member, None, group)
            out[:, heads], sums[:, heads] = self._front(query[:, heads], key, value, True, scaling)
        return out, sums
