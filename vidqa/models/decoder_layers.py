"""The language model's layers over rows of hidden states: one loop for prefill chunks and decode steps.

Runs the checkpoint's modules, with vidqa's own rotary embedding and attention. A row is a token: all of one sequence in
a chunk, one of each sequence in a decode step.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# (layer, query (rows, heads, d), key and value (rows, kv_heads, d)) -> (rows, heads·d).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Rotary:
    """M-RoPE (Qwen2-VL, section 2.1): each frequency rotates with the time (0), the row (1) or the column (2)."""

    def __init__(self, frequencies: Tensor, components: Sequence[int]) -> None:
        self._frequencies = frequencies.float()  # (d/2,)
        self._component = torch.tensor(components).to(frequencies.device)  # (d/2,)

    def of_positions(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (rows, 1, d/2) in float32 of M-RoPE positions (3, rows)."""
        return self._cosine_and_sine(positions[self._component].T)

    def of_text(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of text positions (rows,), whose three components are equal."""
        return self._cosine_and_sine(positions[:, None])

    def _cosine_and_sine(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = (positions.float() * self._frequencies)[:, None]
        return angles.cos(), angles.sin()


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate (..., d) by angles with cosine and sine (..., d/2), in float32, one half at a time to save memory."""
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

    The input is not changed.
    """
    for index, layer in enumerate(layers):
        hidden = hidden + _attention(index, layer, hidden, rotary, attend)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if index < len(added):
            hidden = hidden + added[index]
    return hidden


def _attention(index: int, layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
    out: Tensor = layer.self_attn.o_proj(attend(index, *project(layer, hidden, rotary)))
    return out


def project(layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries and keys, and values, of (rows, hidden): each (rows, heads, d)."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    split = (hidden.shape[0], -1, attention.head_dim)
    query = rotate(_normalise(attention, "q_norm", attention.q_proj(normed).view(split)), *rotary)
    key = rotate(_normalise(attention, "k_norm", attention.k_proj(normed).view(split)), *rotary)
    return query, key, attention.v_proj(normed).view(split)


def _normalise(attention: Any, name: str, states: Tensor) -> Tensor:
    """Normalise queries or keys (rows, heads, d) if the family does."""
    norm = getattr(attention, name, None)
    return states if norm is None else norm(states)
