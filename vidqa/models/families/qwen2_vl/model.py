"""Qwen2-VL as the engine sees it: embed a slice group, embed text, run tokens, score the last one.

Runs transformers' modules without patching them. The vision tower has its own forward
here, because transformers' attends slice by slice in a Python loop; this one attends to
all slices of a group in one batched call. Knows tensors; knows no files and no prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention

from vidqa.devices.torch_device import to_device
from vidqa.models.attention import Kernel
from vidqa.models.decoder_layers import Rotary, rotate, run_layers
from vidqa.models.families.qwen2_vl.spec import ModelSpec
from vidqa.models.fused_decoder import FusedDecoder

VISION_MLP_ROWS = 2048  # rows of the vision MLP that are wide at once
_VISION_ROPE_THETA = 10_000.0  # Qwen2-VL's vision tower, fixed in every release


class TokenCache(Protocol):
    """What the forward pass needs of a KV cache."""

    length: int
    capacity: int

    def write(self, layer: int, keys: Tensor, values: Tensor, /) -> Tensor:
        """Put (rows, kv_heads, d) after the cached tokens; returns the layer's (2, kv_heads, capacity, d)."""

    def advance(self, tokens: int, /) -> None:
        """Count tokens as cached once every layer has written them."""


def vision_rotary(rows: int, columns: int, head_dim: int, merge: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine (patches, head_dim / 2) of the 2-D rotary embedding of one slice.

    Half of the frequencies turn with the row, half with the column (Qwen2-VL, section 2.1);
    patches come in merge order: the merge² patches of one token side by side.
    """
    grid = torch.arange(rows * columns, device=device).view(rows // merge, merge, columns // merge, merge)
    order = grid.permute(0, 2, 1, 3).reshape(-1)
    frequencies = _VISION_ROPE_THETA ** -(torch.arange(0, head_dim // 2, 2, device=device).float() / (head_dim // 2))
    coordinates = torch.stack((order // columns, order % columns), dim=1).float()  # (patches, 2)
    angles = (coordinates[:, :, None] * frequencies).reshape(len(order), -1)
    return angles.cos(), angles.sin()


def _go_on() -> None:
    """Nobody stops it."""


def encode_slices(
    visual: nn.Module, hidden: Tensor, rows: int, columns: int, between: Callable[[], None] = _go_on
) -> Tensor:
    """Run the vision tower's blocks and merger on a group of temporal slices.

    hidden: embedded patches (slices, rows·columns, embed_dim); rows and columns count patches.
    `between` is called before each block; what it raises stops the run.
    Returns (slices, rows·columns / merge², hidden). Equal to `visual(...)`, since attention
    never crosses a slice.
    """
    tower: Any = visual
    slices, count, _ = hidden.shape
    head_dim = hidden.shape[-1] // tower.blocks[0].attn.num_heads
    rotary = vision_rotary(rows, columns, head_dim, tower.spatial_merge_size, hidden.device)
    for block in tower.blocks:
        between()
        hidden = hidden + _attend_within_slices(block, hidden, *rotary)
        hidden = _widen_by_tiles(block, hidden.flatten(0, 1)).view(slices, count, -1)
    merged: Tensor = tower.merger(hidden.flatten(0, 1))
    return merged.view(slices, -1, merged.shape[-1])


def embed_patches(visual: nn.Module, patches: Tensor) -> Tensor:
    """Embed patches (slices, patches, 3·temporal_patch·patch²): (slices, patches, embed_dim).

    The patch convolution as the matrix product that it is: its stride is its kernel.
    """
    tower: Any = visual
    projection = tower.patch_embed.proj
    return linear(patches, projection.weight.flatten(1), projection.bias)


def _widen_by_tiles(block: Any, rows: Tensor) -> Tensor:
    """A block's MLP with its residual over (rows, embed_dim): wide for a tile of rows at a time."""
    tiles = [tile + block.mlp(block.norm2(tile)) for tile in torch.split(rows, VISION_MLP_ROWS)]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def _attend_within_slices(block: Any, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Attention of one block over (slices, patches, embed_dim), each slice by itself."""
    slices, count, width = hidden.shape
    attention = block.attn
    qkv = attention.qkv(block.norm1(hidden)).view(slices, count, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (slices, heads, patches, head_dim)
    mixed = scaled_dot_product_attention(rotate(query, cosine, sine), rotate(key, cosine, sine), value)
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(slices, count, width))
    return out


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """New tokens of one sequence: rows (n, hidden), M-RoPE positions (3, n), and the cache that they follow."""

    rows: Tensor
    positions: Tensor
    cache: TokenCache


def _joined(tensors: list[Tensor], dimension: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dimension)


@dataclass(frozen=True)
class Qwen2VL:
    """A loaded model with what the engine needs to run it.

    `between` is called before every layer; what it raises stops the run, and no cache has grown by it. `fused` are the
    same layers for a decode step in few kernels, where the device has them.
    """

    model: Any
    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    weights_bytes: int
    between: Callable[[], None] = _go_on
    fused: FusedDecoder | None = None

    @cached_property
    def rotary(self) -> Rotary:
        """The language model's rotation."""
        text = self.model.model.language_model
        return Rotary(text.rotary_emb.inv_freq, text.config.rope_parameters["mrope_section"])

    def with_cancel_check(self, between: Callable[[], None]) -> "Qwen2VL":
        """The same model with another `between`."""
        return self._changed(between=between)

    def with_fused(self, fused: FusedDecoder) -> "Qwen2VL":
        """The same model with fused layers for its decode steps."""
        return self._changed(fused=fused)

    def _changed(self, **fields: Any) -> "Qwen2VL":
        other = replace(self, **fields)
        vars(other)["rotary"] = self.rotary  # the tables are made once
        return other

    @property
    def visual(self) -> nn.Module:
        """The vision tower, for `encode_slices`."""
        tower: nn.Module = self.model.model.visual
        return tower

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Embed (slices, patches, values) in float32: (slices, patches, embed_dim) on the device."""
        return embed_patches(self.visual, patches.to(self.dtype))

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (n,): (n, hidden). Rows are looked up where the table lies."""
        table = self.model.get_input_embeddings().weight
        return embedding(to_device(ids, table.device), table).to(self.device)

    def run(self, parts: Sequence[SequenceChunk], kernel: Kernel) -> Tensor:
        """Run the tokens of one or several sequences after what their caches hold, and append them.

        All rows go through each layer together; every part attends to its own cache alone. Returns
        the last token of each part: (parts, hidden).
        """
        text = self.model.model.language_model
        ends = list(accumulate(len(part.rows) for part in parts))
        spans = [slice(end - len(part.rows), end) for part, end in zip(parts, ends, strict=True)]
        rows = _joined([part.rows for part in parts])
        positions = _joined([part.positions for part in parts], 1)

        def attend(layer: int, *states: Tensor) -> Tensor:
            self.between()
            mixed = [
                self._attend(layer, kernel, part.cache, *(one[span] for one in states))
                for part, span in zip(parts, spans, strict=True)
            ]
            return _joined(mixed)

        hidden = run_layers(text.layers, rows, self.rotary.of_positions(to_device(positions, self.device)), attend)
        kernel.end()
        for part in parts:
            part.cache.advance(len(part.rows))
        last: Tensor = text.norm(torch.stack([hidden[end - 1] for end in ends]))  # the other rows have done their work
        return last

    def _attend(
        self, layer: int, kernel: Kernel, cache: TokenCache, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """One sequence's new tokens over its cache: (n, heads, d) and (n, kv_heads, d) to (n, heads·d)."""
        kernel.begin(cache.length, len(query), cache.capacity, self.device)
        keys, values = cache.write(layer, key, value).unsqueeze(1).unbind(0)
        mixed = kernel.attend(query.transpose(0, 1)[None], keys, values, self.spec.head_dim**-0.5)
        return mixed[0].transpose(0, 1).flatten(1)

    def score(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocabulary) in float32 of chosen tokens (n, hidden): never of the whole prompt."""
        logits: Tensor = self.model.lm_head(hidden)
        return logits.float()
