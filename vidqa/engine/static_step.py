"""One new token for each of several sequences: shapes that never change, positions that do.

How many tokens are cached, and so where the new one goes, are tensors on the device; keys and
values are read over the whole cache and masked. So a step is the same work every time, and can
be captured once and replayed. Attention is two matrix products per key head, its group folded
into rows; the second is split along the cache, or its few rows would leave a GPU idle
(as in Flash-Decoding, Dao et al. 2023). Knows tensors; chooses no token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidqa.engine.kv_cache import ROUND_TOKENS, Storage, to_int8
from vidqa.models.decoder import run_layers
from vidqa.models.qwen2_vl import Qwen2VL


@dataclass(frozen=True, slots=True)
class Places:
    """Where B sequences stand: cached tokens, the next M-RoPE position, and 1 where it still goes on.

    All are (B,) int64 on the device. A sequence that has ended writes its last place again and again.
    """

    lengths: Tensor
    positions: Tensor
    going_on: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], positions: Sequence[int], device: torch.device) -> "Places":
        """From numbers on the host; all go on."""
        cached = torch.tensor(lengths, device=device)
        return cls(cached, torch.tensor(positions, device=device), torch.ones_like(cached))

    def advance(self, tokens: int = 1) -> None:
        """So many more tokens for each that goes on; or fewer."""
        self.lengths.add_(self.going_on, alpha=tokens)
        self.positions.add_(self.going_on, alpha=tokens)


Layer = Callable[..., Tensor]  # `run_layer`, or it compiled


def next_logits(model: Qwen2VL, hidden: Tensor, storage: Storage, places: Places, layer_step: Layer) -> Tensor:
    """Append embedded tokens (B, hidden) to their sequences; logits (B, vocabulary) in float32 of what follows.

    `layer_step` is `run_layer`, or that compiled. The storage lies on the device.
    """
    text = model.model.model.language_model
    cosine, sine = model.rotary.of_text(places.positions)
    columns = torch.arange(storage.capacity, device=hidden.device)
    unwritten = (columns > places.lengths[:, None])[:, None, None]  # (B, 1, 1, capacity)
    for index, layer in enumerate(text.layers):
        scales = None if storage.scales is None else storage.scales[index]
        hidden = layer_step(layer, hidden, cosine, sine, storage.store[index], scales, places.lengths, unwritten)
    places.advance()
    logits: Tensor = model.model.lm_head(text.norm(hidden))
    return logits.float()


def run_layer(
    layer: Any,
    hidden: Tensor,
    cosine: Tensor,
    sine: Tensor,
    store: Tensor,
    scales: Tensor | None,
    lengths: Tensor,
    unwritten: Tensor,
) -> Tensor:
    """One layer of (B, hidden): writes to store (2, B, kv_heads, capacity, d) where each sequence ends."""

    def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for part, states in enumerate((key, value)):
            _write(store[part], None if scales is None else scales[part], lengths, states)
        return _attend(query, store, scales, unwritten)

    return run_layers((layer,), hidden, (cosine, sine), attend)


def _write(store: Tensor, scales: Tensor | None, lengths: Tensor, states: Tensor) -> None:
    """Put (B, kv_heads, d) at each sequence's end in (B, kv_heads, capacity, d)."""
    sequence = torch.arange(len(lengths), device=lengths.device)[:, None]
    head = torch.arange(store.shape[1], device=lengths.device)[None]
    # A sequence that ended with a full cache writes its last place again, not the one behind it.
    place = (sequence, head, lengths.clamp(max=store.shape[2] - 1)[:, None])
    if scales is not None:
        states, scale = to_int8(states)
        scales.index_put_(place, scale)
    store.index_put_(place, states.to(store.dtype))


def _attend(query: Tensor, store: Tensor, scales: Tensor | None, unwritten: Tensor) -> Tensor:
    """(B, heads, d) over all that is cached: (B, heads·d). int8 scales multiply scores and weights, not vectors."""
    batch, heads, dim = query.shape
    keys, values = store.to(query.dtype).unbind(0)
    kv_heads, capacity = keys.shape[1:3]
    folded = (query * dim**-0.5).view(batch * kv_heads, heads // kv_heads, dim)
    scores = _product(folded, keys.flatten(0, 1).transpose(1, 2)).view(batch, kv_heads, -1, capacity)
    if scales is not None:
        scores = scores * scales[0, :, :, None]
    weights = torch.softmax(scores.masked_fill(unwritten, -torch.inf), dim=-1)
    if scales is not None:
        weights = weights * scales[1, :, :, None]
    # (B·kv_heads·splits, group, 128) @ (B·kv_heads·splits, 128, d), then the sum over the splits.
    splits = capacity // ROUND_TOKENS
    parts = weights.to(query.dtype).view(batch * kv_heads, -1, splits, ROUND_TOKENS).transpose(1, 2).flatten(0, 1)
    mixed = _product(parts, values.reshape(-1, ROUND_TOKENS, dim)).view(batch, kv_heads, splits, -1, dim).sum(2)
    return mixed.to(query.dtype).reshape(batch, heads * dim)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A batch of matrix products with float32 results: 16-bit scores would be off by their size's 256th part."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
