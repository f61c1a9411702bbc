"""Linear layers with small weights for CPUs, from torch's own products.

`int8`: a scale for each output channel; rows are quantized as they come, one scale a row, and multiplied as integers
(W8A8 with dynamic activations). `int4`: a scale and an offset for 64 weights of an output channel; few rows are
multiplied with the packed weights, many with bf16 copies of some columns at a time.
docs/decisions/0028-small-weights-on-a-cpu.md compares them with torchao's and bitsandbytes' layers.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vidqa.models.block_sizes import (
    CPU_LINEAR_COLUMNS,
    CPU_LINEAR_ROWS,
    INT4_GROUP,
    INT4_MULTIPLE,
    INT4_PACKED_ROWS,
    QUANTIZATION_ROWS,
)

_SMALLEST_SCALE = 1e-6
_HALF_RANGE = 8  # the code of the offset itself: codes are 0 to 15


class QuantizedLinear(nn.Module):
    """A linear layer with codes (`weight`), `scales` and a bias, all empty until they are loaded."""

    def __init__(self, linear: nn.Linear, codes: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight, self.scales = nn.Parameter(codes, requires_grad=False), nn.Parameter(scales, requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """Multiply (..., in_features): (..., out_features) in the same precision."""
        rows = states.reshape(-1, self.in_features)
        product = self._multiply(rows)
        if self.bias is not None:
            product.add_(self.bias)
        return product.view(*states.shape[:-1], self.out_features)

    def _multiply(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """int8 weights (out, in) with float32 scales (out,), multiplied with rows that are quantized to int8 too."""

    def __init__(self, linear: nn.Linear) -> None:
        codes = linear.weight.new_empty(linear.weight.shape, dtype=torch.int8)
        super().__init__(linear, codes, linear.weight.new_empty(linear.out_features, dtype=torch.float32))

    @staticmethod
    def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes and scales of a matrix (out, in)."""
        codes, scales = weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(len(weight)).float()
        for some in _slices(len(weight), QUANTIZATION_ROWS):
            codes[some], scale = _to_int8(weight[some].float())
            scales[some] = scale[:, 0]
        return codes, scales

    def _multiply(self, rows: Tensor) -> Tensor:
        product = rows.new_empty(len(rows), self.out_features)
        for some in _slices(len(rows), CPU_LINEAR_ROWS):
            codes, scale = _to_int8(rows[some])
            sums = torch._int_mm(codes, self.weight.t())
            product[some] = sums.float().mul_(self.scales).mul_(scale)
        return product


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (n, width) to int8 from -127 to 127; return it and its float32 scales (n, 1)."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    return rows.div(scale).round_().to(torch.int8), scale


class Int4Linear(QuantizedLinear):
    """Packed 4-bit weights (out, in / 2) with scales and offsets (in / 64, out, 2) in bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        new, (outputs, inputs) = linear.weight.new_empty, linear.weight.shape
        scales = new(inputs // INT4_GROUP, outputs, 2, dtype=torch.bfloat16)
        super().__init__(linear, new(outputs, inputs // 2, dtype=torch.uint8), scales)

    @staticmethod
    def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the packed codes, and scales with offsets, of a matrix (out, in): weight = (code - 8)·scale + offset.

        The smallest and the largest weight of a group get the codes 0 and 15.
        """
        outputs, inputs = weight.shape
        packed = weight.new_empty(outputs, inputs // 2, dtype=torch.uint8)
        scales = weight.new_empty(inputs // INT4_GROUP, outputs, 2, dtype=torch.bfloat16)
        for some in _slices(outputs, QUANTIZATION_ROWS):
            values = weight[some].to(torch.float32, copy=True).view(-1, inputs // INT4_GROUP, INT4_GROUP)
            low, high = values.aminmax(dim=2)
            scale = ((high - low) / 15).clamp_(min=_SMALLEST_SCALE).to(torch.bfloat16)
            offset = (low + _HALF_RANGE * scale).to(torch.bfloat16)
            values.sub_(offset[..., None]).div_(scale[..., None]).add_(_HALF_RANGE).round_().clamp_(0, 15)
            packed[some] = _pack(values.view(-1, inputs).to(torch.int32))
            scales[:, some] = torch.stack((scale, offset), dim=2).transpose(0, 1)
        return packed, scales

    def _multiply(self, rows: Tensor) -> Tensor:
        if len(rows) <= INT4_PACKED_ROWS or not _lanes():
            return _multiply_packed(rows.to(torch.bfloat16), self.weight, self.scales).to(rows.dtype)
        half = _lanes() // 2
        product = rows.new_empty(len(rows), self.out_features // (2 * half), 2, half)
        for some in _slices(product.shape[1], CPU_LINEAR_COLUMNS // (2 * half)):
            self._multiply_blocks(rows, some, product[:, some])
        return product.view(len(rows), self.out_features)

    def _multiply_blocks(self, rows: Tensor, blocks: slice, product: Tensor) -> None:
        """Multiply with some blocks of output channels into (n, blocks, 2, half); their copy is freed at the end."""
        half = product.shape[3]
        for side, weight in enumerate(self._dequantize(blocks, half).to(rows.dtype)):
            product[:, :, side] = (rows @ weight).view(len(rows), -1, half)

    def _dequantize(self, blocks: slice, half: int) -> Tensor:
        """Return the first and second halves of some blocks of output channels: (2, in, channels) in bf16.

        0x4300 is 128 in bf16, whose mantissa has 7 bits: a code in its lowest bits makes it 128 + code.
        """
        packed = self.weight.view(-1, self.in_features, half)[blocks].transpose(0, 1)  # (in, blocks, half)
        codes = packed.new_empty(2, *packed.shape, dtype=torch.int16)
        codes[0].copy_(packed)
        torch.bitwise_right_shift(codes[0], 4, out=codes[1])
        codes[0].bitwise_and_(15)
        groups, channels = self.in_features // INT4_GROUP, packed.shape[1] * half
        weights = codes.bitwise_or_(0x4300).view(torch.bfloat16).view(2, groups, INT4_GROUP, channels)
        scales = self.scales.view(groups, -1, 2, half, 2)[:, blocks].permute(4, 2, 0, 1, 3)
        scale, offset = scales.reshape(2, 2, groups, 1, channels)
        return weights.sub_(128 + _HALF_RANGE).mul_(scale).add_(offset).view(2, self.in_features, channels)


def _multiply_packed(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, INT4_GROUP, scales)
    return product


def _pack(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed


@cache
def _lanes() -> int:
    """Return the output channels of a block of packed weights; 0 if the format is unknown.

    Of each input channel a block has the codes of its first half in the low bits of its bytes, and of its second half
    in the high bits: 64 channels with AVX-512, 32 with AVX2 (aten/native/cpu/int4mm_kernel.cpp). Compared here.
    """
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (2 * INT4_MULTIPLE, INT4_GROUP), generator=random, dtype=torch.int32)
    for lanes in (64, 32):
        halves = codes.view(-1, 2, lanes // 2, INT4_GROUP).transpose(2, 3)
        if torch.equal((halves[:, 0] | halves[:, 1] << 4).flatten().to(torch.uint8), _pack(codes).flatten()):
            return lanes
    return 0


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def layer_class(weights: str, linear: Any) -> type[Int8Linear] | type[Int4Linear] | None:
    """Return the class that replaces a linear layer; None if it stays: `int4` takes multiples of 64 channels."""
    if not isinstance(linear, nn.Linear):
        return None
    if weights == "int8":
        return Int8Linear
    whole_blocks = linear.out_features % INT4_MULTIPLE == linear.in_features % INT4_GROUP == 0
    return Int4Linear if whole_blocks else None
