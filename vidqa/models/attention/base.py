"""What every attention kernel is, and how grouped queries are arranged for it. Knows shapes only."""

from typing import Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """Causal attention of new tokens over a cache that already holds them."""

    name: str

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        """Prepare for `length` new tokens after `past` cached ones, in buffers of `capacity`; cheap if repeated."""

    def end(self) -> None:
        """Let go of what only this pass through the layers needed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention of (1, heads, n, d) over whole buffers (1, kv_heads, capacity, d): like the query."""


def fold(query: Tensor, kv_heads: int) -> Tensor:
    """Turn each key head's group of query heads into rows: (1, heads, n, d) -> (1, kv_heads, group·n, d).

    The heads of a group share their keys, so where no mask tells rows apart the result is the same.
    """
    _, heads, length, dim = query.shape
    return query.reshape(1, kv_heads, heads // kv_heads * length, dim)
