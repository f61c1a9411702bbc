"""Models in float16 without overflow, for GPUs that have no bfloat16.

Models that were trained in bfloat16 have residual streams and MLP products beyond float16's 65,504: in plain float16
they become infinity, then NaN, and every answer "!!!!" (token 0). Here the residual streams are float32, and rows that
could overflow are divided by a power of two, which is exact, before a matrix product and multiplied afterwards.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from vidqa.models.family import FamilyRuntime

_LIMIT = 32_752.0  # half of float16's maximum: room for rounding and for the power of two
_MAX_SCALE = 2.0**24  # its inverse is float16's minimum; beyond, values become inf and the engine raises NotFinite


def patch_for_fp16(decoder: Any, tower: Any, family: FamilyRuntime, largest: Callable[[Any], float]) -> None:
    """Replace the norms and the projections into the residual streams of a loaded model in float16.

    `largest` returns a linear layer's largest absolute weight.
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
    """A norm from a float32 residual stream to float16. Its output is at most sqrt(width) · its weight."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: Tensor) -> Tensor:
        norm: Any = self.norm
        states = states.float()
        if isinstance(norm, nn.LayerNorm):  # needs one dtype for input and parameters
            weight, bias = norm.weight.float(), norm.bias.float()
            return nn.functional.layer_norm(states, norm.normalized_shape, weight, bias, norm.eps).half()
        normed: Tensor = norm(states)
        return normed.half()


class ScaledLinear(nn.Module):
    """A projection from (rows, inputs) in float16 or float32 to float32 that multiplies in float16.

    No sum, whole or partial, exceeds |row|·|column of weights| (Cauchy-Schwarz), so each row is divided by the power of
    two that brings this bound below float16's maximum: by 1 for nearly all rows.
    """

    def __init__(self, linear: Any, largest: float) -> None:
        super().__init__()
        self.linear, self.bias = linear, linear.bias
        linear.bias = None  # added after the scaling is undone
        self._limit = _LIMIT / (largest * math.sqrt(linear.in_features))

    def forward(self, states: Tensor) -> Tensor:
        scale = self.scale(states)
        return self.undo(self.linear((states * scale.reciprocal().to(states.dtype)).half()), scale)

    def scale(self, states: Tensor) -> Tensor:
        """Return the divisor of each row: (rows, 1) powers of two in float32."""
        sizes = vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        return power_of_two(sizes, self._limit).clamp(max=_MAX_SCALE)

    def undo(self, product: Tensor, scale: Tensor) -> Tensor:
        """Return the float32 result of rows that were divided by `scale`, with the bias."""
        out = product.float().mul_(scale)
        return out if self.bias is None else out.add_(self.bias)


class ScaledMLP(nn.Module):
    """A gated MLP that multiplies in float16 without overflow and returns float32."""

    def __init__(self, mlp: Any, down_proj: ScaledLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.act_fn
        self.down_proj = down_proj

    def forward(self, states: Tensor) -> Tensor:
        wide = self.act_fn(self.gate_proj(states))
        other = self.up_proj(states)
        first = power_of_two(_largest(wide) * _largest(other), _LIMIT)
        wide = wide * first.reciprocal().half()
        wide = wide * other
        del other
        second = self.down_proj.scale(wide)
        wide.mul_(second.reciprocal().half())
        return self.down_proj.undo(self.down_proj.linear(wide), first * second)


class ToHalf(nn.Module):
    """Converts to float16. Values beyond its range become inf, then NaN logits; the engine raises NotFinite."""

    def forward(self, states: Tensor) -> Tensor:
        return states.half()


def power_of_two(sizes: Tensor, limit: float) -> Tensor:
    """Return the smallest powers of two, at least 1, that bring float32 sizes to the limit or below."""
    ratio = (sizes / limit).clamp(min=0.5)
    mantissa, _ = torch.frexp(ratio)
    return ratio / mantissa  # m · 2^e / m, with m from 0.5 to 1: exactly 2^e


@torch.no_grad()
def largest_weight(linear: Any) -> float:
    """Return the largest absolute weight of a linear layer, or an upper bound if it is packed."""
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
    """Return the largest absolute value of each row, in float32."""
    largest: Tensor = vector_norm(states, ord=math.inf, dim=-1, keepdim=True)
    return largest.float()
