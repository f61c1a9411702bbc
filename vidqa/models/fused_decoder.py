"""The language model's layers for a decode step in few kernels: merged projections, and Triton kernels between them.

A layer takes ten device operations: four matrix products (queries, keys and values in one; gate and up in one) and six
Triton kernels. Unquantized matrices are merged in place: the checkpoint's modules become views of the merged ones and
run as before. Quantized matrices are not merged; their outputs are concatenated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer: its projections, and the weights and epsilons of the norms before attention and MLP."""

    qkv: Projection
    output: Projection
    gate_up: Projection
    down: Projection
    norms: tuple[Tensor, Tensor]
    epsilons: tuple[float, float]


@dataclass(frozen=True)
class FusedDecoder:
    """All layers and the final norm. `kernels` is the module `triton_kernels`."""

    layers: tuple[FusedLayer, ...]
    norm: Tensor
    epsilon: float
    kernels: Any

    @classmethod
    def of(cls, text: Any, kernels: Any, *, merge: bool) -> "FusedDecoder":
        """Return the layers of transformers' language model, with merged projections if `merge` is set.

        Else their outputs are concatenated, with two more operations a layer.
        """
        layers = []
        for layer in text.layers:
            layers.append(_fused_layer(layer, merge_linear if merge else concatenate_linear))
            if merge:  # the old matrices go back to the device before the next layer's are merged
                torch.cuda.empty_cache()
        return cls(tuple(layers), text.norm.weight, text.norm.variance_epsilon, kernels)

    def run(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], store: Tensor, scales: Tensor | None, lengths: Tensor
    ) -> Tensor:
        """Append embedded tokens (B, H) to their sequences; return the normalised hidden states (B, H).

        store: (layers, 2, B, kv_heads, capacity, d); scales: the same without d, for int8; lengths: (B,) cached tokens.
        """
        kernels, norms = self.kernels, self._norms_after()
        first = self.layers[0]
        normed: Tensor
        hidden, normed = kernels.add_rms_norm(hidden, None, first.norms[0], first.epsilons[0])
        for index, layer in enumerate(self.layers):
            cache = kernels.LayerCache(store[index], None if scales is None else scales[index])
            query = kernels.rotate_and_append(layer.qkv(normed), *rotary, cache, lengths)
            mixed = layer.output(kernels.decode_attention(query, cache, lengths))
            hidden, normed = kernels.add_rms_norm(hidden, mixed, layer.norms[1], layer.epsilons[1])
            wide = kernels.silu_and_multiply(layer.gate_up(normed))
            hidden, normed = kernels.add_rms_norm(hidden, layer.down(wide), *norms[index])
        return normed

    def _norms_after(self) -> list[tuple[Tensor, float]]:
        """Return weight and epsilon of the norm after each layer: the next layer's first one, or the final norm."""
        return [*((layer.norms[0], layer.epsilons[0]) for layer in self.layers[1:]), (self.norm, self.epsilon)]


def merging_bytes(text: Any) -> int:
    """Return the bytes of a layer's merged projections, which exist beside their parts while they are merged."""
    layer = text.layers[0]
    groups = ((layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj), _gate_and_up(layer))
    sizes: list[int] = [sum(module.weight.nbytes for module in group) for group in groups]
    return sum(sizes)


def _gate_and_up(layer: Any) -> tuple[Any, Any]:
    return layer.mlp.gate_proj, layer.mlp.up_proj


def _fused_layer(layer: Any, merge: Callable[[Sequence[Any]], Projection]) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return FusedLayer(
        qkv=merge((attention.q_proj, attention.k_proj, attention.v_proj)),
        output=attention.o_proj,
        gate_up=merge(_gate_and_up(layer)),
        down=mlp.down_proj,
        norms=(norms[0].weight, norms[1].weight),
        epsilons=(norms[0].variance_epsilon, norms[1].variance_epsilon),
    )


def concatenate_linear(modules: Sequence[Any]) -> Projection:
    """Return a projection that runs the modules and concatenates their outputs."""
    return lambda states: torch.cat([module(states) for module in modules], dim=-1)


@torch.no_grad()
def merge_linear(modules: Sequence[Any]) -> Projection:
    """Merge projections of the same input into one with their concatenated output.

    Modules become views of the merged matrix; outputs of quantized ones are concatenated instead.
    """
    if not all(type(module) is nn.Linear for module in modules):
        return concatenate_linear(modules)
    weight, bias = _merged(modules, "weight"), _merged(modules, "bias")
    return lambda states: linear(states, weight, bias)


def _merged(modules: Sequence[Any], name: str) -> Any:
    """Merge a parameter of the modules, which become views of it; return None if they have none."""
    parts = [getattr(module, name) for module in modules]
    if parts[0] is None:
        return None
    whole = torch.cat([part.data for part in parts])
    for module, view in zip(modules, torch.split(whole, [len(part) for part in parts]), strict=True):
        setattr(module, name, nn.Parameter(view, requires_grad=False))
    return whole
