"""Bytes of a model's weights, tensor by tensor, for every precision and placement. Arithmetic only."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

from vidqa.devices.device import BLOCK, rounded
from vidqa.models.checkpoint import part_of, tensor_shapes
from vidqa.models.spec import ModelSpec
from vidqa.types import ELEMENT_BYTES, Placement

QUANTIZED = ("int8", "nf4", "nf4-dq", "fp8", "awq", "gptq")  # the last two only as a checkpoint stores them
_NF4_BLOCK = 64  # weights that share one absmax (bitsandbytes' default)
_NESTED_BLOCK = 256  # absmaxes that share one scale when they are quantized in turn


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """Parameters of one shape: the part of the model they belong to, rows and columns, and how many there are.

    Vectors have one column. Quantization leaves vectors and convolutions (`matrix` is False) in 16-bit.
    """

    part: str
    rows: int
    columns: int
    matrix: bool
    times: int

    @property
    def values(self) -> int:
        """Number of values in all of them."""
        return self.rows * self.columns * self.times


@cache
def weight_tensors(spec: ModelSpec) -> tuple[WeightTensor, ...]:
    """Return every parameter of a checkpoint. Parts: embedding, layers, lm_head, vision."""
    counts = Counter((part_of(name), shape, _is_linear(name, shape)) for name, shape in tensor_shapes(spec))
    return tuple(
        WeightTensor(part, shape[0], math.prod(shape[1:]), linear, times)
        for (part, shape, linear), times in counts.items()
    )


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a linear layer's matrix, which alone is quantized: not a table of embeddings."""
    return len(shape) == 2 and "embed" not in name


@cache
def parameters(spec: ModelSpec, *parts: str) -> int:
    """Return the number of parameters of a checkpoint, or of the named parts."""
    return sum(tensor.values for tensor in weight_tensors(spec) if not parts or tensor.part in parts)


def weight_bytes(tensor: WeightTensor, precision: str) -> int:
    """Return the bytes of a tensor in a precision, rounded as it is allocated; vectors stay in 16-bit.

    int8: one byte a weight and a float32 scale a row. nf4: half a byte, a float32 absmax per 64
    weights and a table of 16 floats. nf4-dq: the absmaxes are bytes, with a float32 per 256 of
    them, a table of 256 floats and an offset (Dettmers et al. 2023, section 3). fp8: a byte.
    """
    count = tensor.rows * tensor.columns
    if not tensor.matrix and precision in QUANTIZED:
        precision = "bf16"
    if precision in ELEMENT_BYTES:
        return tensor.times * rounded(count * ELEMENT_BYTES[precision])
    if precision in ("int8", "fp8"):
        return tensor.times * (rounded(count) + rounded(4 * tensor.rows))
    blocks = -(-count // _NF4_BLOCK)
    packed = rounded(-(-count // 2)) + rounded(16 * 4)
    if precision == "nf4":
        return tensor.times * (packed + rounded(4 * blocks))
    nested = rounded(blocks) + rounded(4 * -(-blocks // _NESTED_BLOCK)) + rounded(256 * 4) + rounded(4)
    return tensor.times * (packed + nested)


def part_precision(part: str, weights: str, dtype: str, placement: Placement) -> str:
    """Return the precision of a part: quantization applies to the layers, and to what the placement adds."""
    if weights not in QUANTIZED:
        return weights
    quantized = {"layers": True, "vision": placement.vision_quantized, "lm_head": placement.lm_head_quantized}
    return weights if quantized.get(part, False) else dtype


@cache
def part_bytes(spec: ModelSpec, part: str, weights: str, dtype: str, placement: Placement) -> int:
    """Return the bytes of one part of the model, on device or host. The patch matrix is a convolution: never quantized.

    For a checkpoint that is stored quantized, these are the bytes of its files, whatever the placement.
    """
    if spec.stored is not None:
        return spec.stored.part_bytes(part, ELEMENT_BYTES[dtype]) + _BUFFERS.get(part, 0)
    precision = part_precision(part, weights, dtype, placement)
    total = 0
    for tensor in weight_tensors(spec):
        if tensor.part == part:
            whole = not tensor.matrix and tensor.columns > 1
            total += weight_bytes(tensor, dtype if whole and precision in QUANTIZED else precision)
    return total + _BUFFERS.get(part, 0)


# Rotary frequencies: two small tables for the language model, and the vision tower's.
_BUFFERS = {"layers": 2 * BLOCK, "vision": 2 * BLOCK}


@cache
def staging_bytes(spec: ModelSpec, weights: str, dtype: str, placement: Placement) -> int:
    """Return the bytes of the largest quantized matrix in the compute precision, which is quantized on the device.

    transformers 5 loads one tensor at a time then (core_model_loading.py, has_on_the_fly_quantization);
    bitsandbytes makes another float16 copy for int8 (nn/modules.py, Int8Params).
    """
    quantized = [part for part in ("layers", "vision", "lm_head")
                 if part_precision(part, weights, dtype, placement) in QUANTIZED]  # fmt: skip
    if not quantized or spec.stored is not None:
        return 0
    matrices = (tensor.rows * tensor.columns for tensor in weight_tensors(spec) if tensor.part in quantized)
    return max(matrices) * (ELEMENT_BYTES[dtype] + (2 if weights == "int8" else 0))
