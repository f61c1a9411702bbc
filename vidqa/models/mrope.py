"""M-RoPE for model families: positions of vision segments, and the component that turns each frequency."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidqa.models.decoder_layers import Rotary
from vidqa.models.spec import ModelSpec


def grid_positions(times: Tensor, start: int, rows: int, columns: int) -> Tensor:
    """Return positions (3, slices·rows·columns) from `start`: each slice's time, of (slices,), its rows and columns."""
    down, across = torch.arange(rows) + start, torch.arange(columns) + start
    return torch.stack(torch.meshgrid(times + start, down, across, indexing="ij")).reshape(3, -1)


def consecutive_components(sections: Sequence[int]) -> list[int]:
    """Return the component that turns each frequency: time, row and column, each a run of frequencies."""
    return [component for component, count in enumerate(sections) for _ in range(count)]


def interleaved_components(sections: Sequence[int]) -> list[int]:
    """Return the same with time, row and column in turn, and the frequencies that are left over with the time.

    Qwen3-VL (2511.21631), section 2.1; transformers calls it recomposition_frequencies.
    """
    components = [0] * sum(sections)
    for component in (1, 2):
        places = range(component, min(3 * sections[component], len(components)), 3)
        for place in places:
            components[place] = component
    return components


def loaded_rotary(language_model: Any, components: Sequence[int]) -> Rotary:
    """Return the rotary embedding of a loaded language model."""
    return Rotary(language_model.rotary_emb.inv_freq, components)


def made_rotary(spec: ModelSpec, theta: float, components: Sequence[int], device: Any) -> Rotary:
    """Return the rotary embedding of a base, for layers of random weights."""
    frequencies = theta ** -(torch.arange(0, spec.head_dim, 2, device=device).float() / spec.head_dim)
    return Rotary(frequencies, components)


def mrope_sections(head_dim: int) -> list[int]:
    """Return the numbers of frequencies for time, row and column: 16, 24, 24 of a head of 128, and in proportion."""
    time, row = head_dim // 8, 3 * head_dim // 16
    return [time, row, head_dim // 2 - time - row]
