"""Exact attention from matrix products alone, for devices without a fused kernel.

A tile of queries is multiplied with one block of keys at a time, with a running softmax in float32 (Rabe and Staats
2021), so the workspace does not grow with the prompt.
"""

import torch
from torch import Tensor

from vidqa.models.block_sizes import TILE_KEYS, TILE_QUERIES


class TiledKernel:
    """The kernel for any device. Workspace: heads · 128 · 1024 float32 scores, a few times."""

    name = "tiled"

    def __init__(self) -> None:
        self._past = 0

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        self._past = past

    def end(self) -> None:
        """Free nothing: `begin` prepared nothing."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        output = torch.empty_like(query)
        for start in range(0, query.shape[2], TILE_QUERIES):
            rows = slice(start, min(start + TILE_QUERIES, query.shape[2]))
            output[:, :, rows] = _tile(query[:, :, rows], key, value, self._past + start, scaling)
        return output


def _tile(query: Tensor, key: Tensor, value: Tensor, first: int, scaling: float) -> Tensor:
    """Attend with rows (1, heads, n, d) at positions from `first` on, each over all keys up to its position."""
    kv_heads = key.shape[1]
    rows = (query.float() * scaling).reshape(1, kv_heads, -1, query.shape[3])  # a key head's query heads as rows
    positions = torch.arange(first, first + query.shape[2], device=query.device)
    positions = positions.repeat(query.shape[1] // kv_heads)  # (group·n,)
    sums = torch.zeros(*rows.shape[:3], 1, device=query.device)
    peaks = torch.full_like(sums, -torch.inf)
    mixed = torch.zeros_like(rows)
    end = first + query.shape[2]
    for start in range(0, end, TILE_KEYS):
        block = slice(start, min(start + TILE_KEYS, end))
        scores = rows @ key[:, :, block].float().transpose(2, 3)
        if block.stop > first:  # the block holds keys after some row
            later = torch.arange(start, block.stop, device=query.device) > positions[:, None]
            scores.masked_fill_(later, -torch.inf)
        top = torch.maximum(peaks, scores.amax(-1, keepdim=True))
        shrink = torch.exp(peaks - top)
        scores.sub_(top).exp_()
        sums = sums * shrink + scores.sum(-1, keepdim=True)
        mixed = (mixed * shrink).add_(scores @ value[:, :, block].float())
        peaks = top
    return (mixed / sums).reshape(query.shape).to(query.dtype)
