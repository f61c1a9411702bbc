"""The language model's layers over rows of hidden states: one loop for prefill chunks and decode steps.

Runs the checkpoint's modules; only the order, the rotation and the attention are ours. A row
is a token: of one sequence in a chunk, of one sequence each in a decode step.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# (layer, query (rows, heads, d), key (rows, kv_heads, d), value likewise) -> (rows, heads·d).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Rotary:
    """M-RoPE (Qwen2-VL, section 2.1): each frequency turns with time (0), with the row (1) or with the column (2)."""

    def __init__(self, frequencies: Tensor, components: Sequence[int]) -> None:
        self._frequencies = frequencies.float()  # (d/2,)
        self._component = torch.tensor(components).to(frequencies.device)  # (d/2,)

    def of_positions(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (rows, 1, d/2) in float32 of M-RoPE positions (3, rows)."""
        return self._turned(positions[self._component].T)

    def of_text(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Likewise of text positions (rows,), whose three components are equal."""
        return self._turned(positions[:, None])

    def _turned(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = (positions.float() * self._frequencies)[:, None]
        return angles.cos(), angles.sin()


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn (..., d) by angles whose cosine and sine (..., d/2) fit it; in float32, a half at a time."""
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    rotated = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    rotated[..., :half] = (first * cosine).sub_(second * sine)
    rotated[..., half:] = (second * cosine).add_(first * sine)
    return rotated


def run_layers(
    layers: Iterable[Any], hidden: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend, added: Sequence[Tensor] = ()
) -> Tensor:
    """Run (rows, hidden) through all layers; `added[i]` (rows, hidden) is added after layer i (DeepStack).

    Each addition makes a new tensor: the input stays as it is.
    """
    for index, layer in enumerate(layers):
        hidden = hidden + _mixed(index, layer, hidden, rotary, attend)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if index < len(added):
            hidden = hidden + added[index]
    return hidden


def _mixed(index: int, layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
    out: Tensor = layer.self_attn.o_proj(attend(index, *_projected(layer, hidden, rotary)))
    return out


def _projected(layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, turned, and values of (rows, hidden): each (rows, heads, d)."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    split = (hidden.shape[0], -1, attention.head_dim)
    query = rotate(_per_head(attention, "q_norm", attention.q_proj(normed).view(split)), *rotary)
    key = rotate(_per_head(attention, "k_norm", attention.k_proj(normed).view(split)), *rotary)
    return query, key, attention.v_proj(normed).view(split)


def _per_head(attention: Any, name: str, states: Tensor) -> Tensor:
    """Normalise queries or keys (rows, heads, d) where the family does."""
    norm = getattr(attention, name, None)
    return states if norm is None else norm(states)
