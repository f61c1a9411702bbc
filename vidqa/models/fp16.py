"""Models in float16 without overflow, for GPUs that have no bfloat16.

Trained in bfloat16, these models have residual streams and MLP products beyond float16's 65,504:
plain float16 turns them into infinity, then NaN, and every answer into "!!!!" (token 0). Here the
residual streams are float32, and what could overflow is divided by a power of two, which is exact,
before its matrix product and multiplied afterwards. Knows modules; is not used for other precisions.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from vidqa.models.family import FamilyRuntime

_MOST = 32_752.0  # half of float16's largest number: room for rounding and the shift to a power of two
_MOST_SCALE = 2.0**24  # its inverse is float16's smallest number; what it cannot save becomes infinity, and is told


def patch_for_fp16(decoder: Any, tower: Any, family: FamilyRuntime, largest: Callable[[Any], float]) -> None:
    """Replace the norms and the projections into the residual streams of a loaded model in float16.

    Any forward pass over the modules is safe then: float32 branches make float32 sums. `largest`
    gives a linear layer's largest absolute weight.
    """

    def scaled(linear: Any) -> ScaledLinear:
        return ScaledLinear(linear, largest(linear))

    for layer in decoder.layers:
        layer.input_layernorm = Fp32ResidualNorm(layer.input_layernorm)
        layer.post_attention_layernorm = Fp32ResidualNorm(layer.post_attention_layernorm)
        layer.self_attn.o_proj = scaled(layer.self_attn.o_proj)
        layer.mlp = ScaledMLP(layer.mlp, scaled(layer.mlp.down_proj))
    decoder.norm = Fp32ResidualNorm(decoder.norm)
    family.patch_vision_for_fp16(tower, scaled)


class Fp32ResidualNorm(nn.Module):
    """A norm from a float32 residual stream to float16: at most sqrt(width) · its weight."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: Tensor) -> Tensor:
        norm: Any = self.norm
        states = states.float()
        if isinstance(norm, nn.LayerNorm):  # wants one precision for all it gets
            weight, bias = norm.weight.float(), norm.bias.float()
            return nn.functional.layer_norm(states, norm.normalized_shape, weight, bias, norm.eps).half()
        normed: Tensor = norm(states)
        return normed.half()


class ScaledLinear(nn.Module):
    """A projection from (rows, inputs) in float16 or float32 to float32 that multiplies in float16.

    No sum, whole or partial, is larger than |row|·|column of weights| (Cauchy-Schwarz), so rows
    are divided by the power of two that brings this bound below float16's largest number: by 1
    for nearly all of them.
    """

    def __init__(self, linear: Any, largest: float) -> None:
        super().__init__()
        self.linear, self.bias = linear, linear.bias
        linear.bias = None  # it must not be scaled
        self._limit = _MOST / (largest * math.sqrt(linear.in_features))

    def forward(self, states: Tensor) -> Tensor:
        scale = self.scale(states)
        return self.undo(self.linear((states * scale.reciprocal().to(states.dtype)).half()), scale)

    def scale(self, states: Tensor) -> Tensor:
        """What each row must be divided by: (rows, 1) powers of two in float32."""
        sizes = vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        return power_of_two(sizes, self._limit).clamp(max=_MOST_SCALE)

    def undo(self, product: Tensor, scale: Tensor) -> Tensor:
        """In float32 what came of rows that were divided by `scale`, with the bias."""
        out = product.float().mul_(scale)
        return out if self.bias is None else out.add_(self.bias)


class ScaledMLP(nn.Module):
    """A gated MLP whose product of two halves stays in float16 and whose result is float32."""

    def __init__(self, mlp: Any, down_proj: ScaledLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.act_fn
        self.down_proj = down_proj

    def forward(self, states: Tensor) -> Tensor:
        wide = self.act_fn(self.gate_proj(states))
        other = self.up_proj(states)
        first = power_of_two(_largest(wide) * _largest(other), _MOST)
        wide = wide * first.reciprocal().half()
        wide = wide * other
        del other
        second = self.down_proj.scale(wide)
        wide.mul_(second.reciprocal().half())
        return self.down_proj.undo(self.down_proj.linear(wide), first * second)


class ToHalf(nn.Module):
    """To float16. What does not fit becomes infinity, then NaN logits, which are an error."""

    def forward(self, states: Tensor) -> Tensor:
        return states.half()


def power_of_two(sizes: Tensor, limit: float) -> Tensor:
    """The smallest powers of two, at least 1, that bring float32 sizes to the limit or below."""
    ratio = (sizes / limit).clamp(min=0.5)
    mantissa, _ = torch.frexp(ratio)
    return ratio / mantissa  # m · 2^e / m, with m from 0.5 to 1: exactly 2^e


@torch.no_grad()
def largest_weight(linear: Any) -> float:
    """The largest absolute weight of a linear layer, or a bound of it where it is packed."""
    if hasattr(linear, "qweight"):  # AWQ and GPTQ: scales · (code - zero)
        return float(linear.scales.abs().max()) * float(2**linear.bits)
    weight = linear.weight
    if (state := getattr(weight, "quant_state", None)) is not None:  # codes reach from -1 to 1
        scales = state.absmax
        if state.nested:
            from bitsandbytes.functional import dequantize_blockwise

            scales = dequantize_blockwise(scales, state.state2) + state.offset
        return float(scales.max())
    scales = getattr(weight, "SCB", None)
    low, high = torch.aminmax(weight if scales is None else scales)
    return max(-float(low), float(high), torch.finfo(torch.float16).tiny)


def _largest(states: Tensor) -> Tensor:
    """The largest absolute value of each row, in float32."""
    largest: Tensor = vector_norm(states, ord=math.inf, dim=-1, keepdim=True)
    return largest.float()
