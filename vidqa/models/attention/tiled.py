"""Exact attention from matrix products alone, for devices without a fused kernel.

A tile of queries meets a block of keys at a time, with a running softmax in float32
(Rabe and Staats 2021), so the workspace is a constant, whatever the prompt's length.
"""

import torch
from torch import Tensor

from vidqa.models.attention.base import fold
from vidqa.models.block_sizes import TILE_KEYS, TILE_QUERIES


class TiledKernel:
    """The rung that runs anywhere: workspace of heads · 128 · 1024 float32 scores, a few times."""

    name = "tiled"

    def __init__(self) -> None:
        self._past = 0

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        self._past = past

    def end(self) -> None:
        """Nothing was prepared."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        mixed = torch.empty_like(query)
        for start in range(0, query.shape[2], TILE_QUERIES):
            rows = slice(start, min(start + TILE_QUERIES, query.shape[2]))
            mixed[:, :, rows] = _tile(query[:, :, rows], key, value, self._past + start, scaling)
        return mixed


def _tile(query: Tensor, key: Tensor, value: Tensor, first: int, scaling: float) -> Tensor:
    """Rows (1, heads, n, d) at positions from `first` on, over all keys up to their own."""
    positions = torch.arange(first, first + query.shape[2], device=query.device)
    rows = fold(query.float() * scaling, key.shape[1])
    positions = positions.repeat(query.shape[1] // key.shape[1])  # (group·n,): of every folded row
    sums = torch.zeros(*rows.shape[:3], 1, device=query.device)
    peaks = torch.full_like(sums, -torch.inf)
    mixed = torch.zeros_like(rows)
    end = first + query.shape[2]
    for start in range(0, end, TILE_KEYS):
        block = slice(start, min(start + TILE_KEYS, end))
        scores = rows @ key[:, :, block].float().transpose(2, 3)
        if block.stop > first:  # keys behind some row
            behind = torch.arange(start, block.stop, device=query.device) > positions[:, None]
            scores.masked_fill_(behind, -torch.inf)
        top = torch.maximum(peaks, scores.amax(-1, keepdim=True))
        shrink = torch.exp(peaks - top)
        scores.sub_(top).exp_()
        sums = sums * shrink + scores.sum(-1, keepdim=True)
        mixed = (mixed * shrink).add_(scores @ value[:, :, block].float())
        peaks = top
    return (mixed / sums).reshape(query.shape).to(query.dtype)
