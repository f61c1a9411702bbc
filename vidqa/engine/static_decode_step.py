"""A decode step of constant shapes: one new token for each of several sequences, which a CUDA graph can replay.

The numbers of cached tokens are tensors on the device. Where Triton runs, the layers are `models/fused_decoder.py`'s.
The plain layers here run anywhere; they read the same number of tokens of every sequence's cache, masked. Their
attention is two matrix products per key head, its group folded into rows; the second is split along the cache,
or its few rows would leave a GPU idle (as in Flash-Decoding, Dao et al. 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidqa.engine.kv_cache import Storage, to_int8
from vidqa.models.block_sizes import INT8_BLOCK_TOKENS, KV_BLOCK_TOKENS
from vidqa.models.decoder_layers import run_layers
from vidqa.models.vlm import VisionLanguageModel

_FEW_HEADS = 8  # up to here the value product is split: more heads fill a GPU by themselves


@dataclass(frozen=True, slots=True)
class DecodeState:
    """For B sequences the cached tokens, the next M-RoPE position, and 1 while active: (B,) int64 on the device.

    A finished sequence overwrites its last place with every step.
    """

    lengths: Tensor
    positions: Tensor
    active: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], positions: Sequence[int], device: torch.device) -> "DecodeState":
        """Make the tensors from numbers on the host; all are active."""
        cached = torch.tensor(lengths, device=device)
        return cls(cached, torch.tensor(positions, device=device), torch.ones_like(cached))

    def set(self, lengths: Sequence[int], positions: Sequence[int]) -> None:
        """Set new numbers in the same tensors; all are active."""
        self.lengths.copy_(torch.tensor(lengths))
        self.positions.copy_(torch.tensor(positions))
        self.active.fill_(1)

    def advance(self, tokens: int = 1) -> None:
        """Add `tokens` to length and position of each active sequence."""
        self.lengths.add_(self.active, alpha=tokens)
        self.positions.add_(self.active, alpha=tokens)


def next_logits(
    model: VisionLanguageModel, hidden: Tensor, storage: Storage, decode_state: DecodeState, visible: int
) -> Tensor:
    """Append embedded tokens (B, hidden) to their sequences; return float32 logits (B, vocabulary) of what follows.

    The first `visible` tokens of the storage are read, a multiple of 128 above every sequence's length; the fused
    layers read up to each length instead. The storage lies on the device.
    """
    normed = next_hidden(model, hidden, storage, decode_state, visible)
    decode_state.advance()
    return model.score(normed)


def next_hidden(
    model: VisionLanguageModel, hidden: Tensor, storage: Storage, decode_state: DecodeState, visible: int
) -> Tensor:
    """Return the hidden states (B, hidden) after the last norm; lengths and positions stay as they are."""
    rotary = model.rotary.of_text(decode_state.positions)
    if model.fused is not None:
        return model.fused.run(hidden, rotary, storage.store, storage.scales, decode_state.lengths)
    return _plain_layers(model, hidden, rotary, storage, decode_state.lengths, visible)


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of a plain step share: the new token's place, and a mask of the places that are empty.

    place: indices (sequence, head, token) for (B, kv_heads); unwritten: (B, 1, 1, visible).
    """

    place: tuple[Tensor, Tensor, Tensor]
    unwritten: Tensor

    @classmethod
    def of(cls, storage: Storage, lengths: Tensor, visible: int) -> "_Step":
        device = lengths.device
        sequence = torch.arange(len(lengths), device=device)[:, None]
        head = torch.arange(storage.store.shape[3], device=device)[None]
        # A sequence that finished with a full cache overwrites its last place, not the one after it.
        last = lengths.clamp(max=storage.capacity - 1)[:, None]
        columns = torch.arange(visible, device=device)
        return cls((sequence, head, last), (columns > lengths[:, None])[:, None, None])


def _plain_layers(
    model: VisionLanguageModel,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    storage: Storage,
    lengths: Tensor,
    visible: int,
) -> Tensor:
    """Run all layers and the last norm by transformers' modules: (B, hidden)."""
    text, step = model.language_model, _Step.of(storage, lengths, visible)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scales = None if storage.scales is None else storage.scales[layer]
        for part, states in enumerate((key, value)):
            _write(storage.store[layer, part], None if scales is None else scales[part], step.place, states)
        seen = storage.store[layer, :, :, :, :visible]
        if scales is None:
            return _attend(query, seen, step.unwritten)
        return _attend_int8(query, seen, scales[..., :visible], step.unwritten)

    normed: Tensor = text.norm(run_layers(text.layers, hidden, rotary, attend))
    return normed


def _write(store: Tensor, scales: Tensor | None, place: tuple[Tensor, Tensor, Tensor], states: Tensor) -> None:
    """Write (B, kv_heads, d) after each sequence's last token in (B, kv_heads, capacity, d)."""
    if scales is not None:
        states, scale = to_int8(states)
        scales.index_put_(place, scale)
    store.index_put_(place, states.to(store.dtype))


def _attend(query: Tensor, seen: Tensor, unwritten: Tensor) -> Tensor:
    """Attend (B, heads, d) over the visible part (2, B, kv_heads, visible, d) of the cache: (B, heads·d)."""
    batch, heads, dim = query.shape
    keys, values = (part.flatten(0, 1) for part in seen.unbind(0))  # (B·kv_heads, visible, d)
    scores = _product(_folded(query, len(keys)), keys.transpose(1, 2))
    weights = _softmax(scores, unwritten).to(query.dtype)
    return _weighted(weights, values).to(query.dtype).reshape(batch, heads * dim)


def _attend_int8(query: Tensor, seen: Tensor, scales: Tensor, unwritten: Tensor) -> Tensor:
    """Attend over int8 with scales (2, B, kv_heads, visible), a block in 16-bit at a time.

    Scales multiply scores and weights, not vectors.
    """
    batch, heads, dim = query.shape
    keys, values = (part.flatten(0, 1) for part in seen.unbind(0))
    key_scales, value_scales = (part.flatten(0, 1)[:, None] for part in scales.unbind(0))  # (B·kv_heads, 1, visible)
    folded = _folded(query, len(keys))
    scores = torch.empty(*folded.shape[:2], keys.shape[1], device=query.device)
    for start in range(0, keys.shape[1], INT8_BLOCK_TOKENS):
        block = slice(start, start + INT8_BLOCK_TOKENS)
        scores[..., block] = _product(folded, keys[:, block].to(query.dtype).transpose(1, 2))
    weights = _softmax(scores.mul_(key_scales), unwritten).mul_(value_scales).to(query.dtype)
    mixed = torch.zeros(folded.shape, device=query.device)
    for start in range(0, keys.shape[1], INT8_BLOCK_TOKENS):
        block = slice(start, start + INT8_BLOCK_TOKENS)
        mixed += _product(weights[..., block], values[:, block].to(query.dtype))
    return mixed.to(query.dtype).reshape(batch, heads * dim)


def _folded(query: Tensor, key_heads: int) -> Tensor:
    """Scale (B, heads, d) and fold each key head's group into rows: (B·kv_heads, group, d)."""
    dim = query.shape[-1]
    scaled: Tensor = query * dim**-0.5
    return scaled.view(key_heads, -1, dim)


def _softmax(scores: Tensor, unwritten: Tensor) -> Tensor:
    """Return float32 weights of scores (B·kv_heads, group, visible), 0 at unwritten places."""
    apart = scores.view(len(unwritten), -1, *scores.shape[1:])
    return torch.softmax(apart.masked_fill_(unwritten, -torch.inf), dim=-1).view(scores.shape)


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Multiply weights (n, group, visible) and values (n, visible, d) in float32; split the cache if heads are few."""
    if len(values) > _FEW_HEADS:
        return _product(weights, values)
    splits = values.shape[1] // KV_BLOCK_TOKENS
    heads = []
    for weight, value in zip(weights, values, strict=True):
        parts = weight.view(-1, splits, KV_BLOCK_TOKENS).transpose(0, 1)  # (splits, group, 128)
        heads.append(_product(parts, value.view(splits, KV_BLOCK_TOKENS, -1)).sum(0))
    return torch.stack(heads)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply batches of matrices with float32 results: 16-bit scores would be off by their size's 256th part."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
