"""PyTorch's fused attention kernels, without masks and without copies of keys and values.

A chunk's attention is two calls: all cached keys without a mask, and the chunk's own square with the causal flag. Both
return their log-sum-exp, and softmax over all keys is their weighted mean (Milakov and Gimelshein 2018; FlashAttention
merges its splits in the same way). A masked call would use the math kernel, and a causal call over more keys than
queries is aligned to the wrong corner.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vidqa.errors import AttentionUnavailable

# (query, key, value, causal, scale) -> output in the query's shape, log-sum-exp (1, heads, n) in float32.
SdpaOperator = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
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


# By device and kernel: the operator, and whether it takes fewer key heads than query heads.
_OPERATORS: dict[tuple[str, str], tuple[SdpaOperator, bool]] = {
    ("cuda", "flash"): (_flash_cuda, True),
    ("cuda", "cudnn"): (_cudnn, True),
    ("cuda", "efficient"): (_efficient, False),
    ("cpu", "flash"): (_flash_cpu, True),
    ("cpu", "efficient"): (_flash_cpu, False),  # a CPU has one fused kernel: the ungrouped calls over it
}


class FusedKernel:
    """One of PyTorch's fused kernels: `flash`, `cudnn` or `efficient`."""

    def __init__(self, name: str, device: torch.device) -> None:
        if (device.type, name) not in _OPERATORS:
            raise AttentionUnavailable(
                f"There is no {name} attention on {device.type}.",
                "Use --attn auto, or --attn tiled, which runs anywhere.",
            )
        self.name = name
        self._operator, self._grouped = _OPERATORS[device.type, name]
        # The kernel for CPUs shares no work between the query heads of a key head. As rows they read it once: measured
        # on 2 cores in bf16 with 1,024 keys, 0.13 ms a token instead of 1.5 ms.
        self._step_grouped = self._grouped and device.type != "cpu"
        self._past = 0

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        self._past = past

    def end(self) -> None:
        """Free nothing: `begin` prepared nothing."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        past, end = self._past, self._past + query.shape[2]
        if query.shape[2] == 1:  # one position attends to all keys, its own included
            return self._unmasked(query, key[:, :, :end], value[:, :, :end], scaling, grouped=self._step_grouped)[0]
        own, own_sums = self._causal_square(query, key[:, :, past:end], value[:, :, past:end], scaling)
        if not past:
            return own
        out, sums = self._unmasked(query, key[:, :, :past], value[:, :, :past], scaling, grouped=self._grouped)
        # softmax over both parts: the own part weighs exp(own) / (exp(own) + exp(past)).
        weight = torch.sigmoid(own_sums - sums)[..., None].to(query.dtype)
        return out.lerp_(own, weight)

    def _unmasked(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, *, grouped: bool
    ) -> tuple[Tensor, Tensor]:
        if grouped:
            return self._operator(query, key, value, False, scaling)
        # Query heads of one key head need no mask between them.
        rows = query.reshape(1, key.shape[1], -1, query.shape[3])
        out, sums = self._operator(rows, key, value, False, scaling)
        return out.reshape(query.shape), sums.reshape(query.shape[:3])

    def _causal_square(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        if self._grouped or query.shape[1] == key.shape[1]:
            return self._operator(query, key, value, True, scaling)
        # Here such rows would need a mask; one query head of every key head at a time needs none.
        kv_heads = key.shape[1]
        group = query.shape[1] // kv_heads
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        for member in range(group):
            heads = slice(member, None, group)
            out[:, heads], sums[:, heads] = self._operator(query[:, heads], key, value, True, scaling)
        return out, sums
