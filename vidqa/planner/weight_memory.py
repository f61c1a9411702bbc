"""Bytes of a model's weights, tensor by tensor, for every precision and placement. Arithmetic only."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

from vidqa.devices.device import BLOCK, rounded
from vidqa.models.block_sizes import INT4_GROUP, INT4_MULTIPLE, QUANTIZATION_ROWS
from vidqa.models.checkpoint import part_of, tensor_shapes
from vidqa.models.spec import ModelSpec
from vidqa.types import CPU_WEIGHTS, ELEMENT_BYTES, Placement, RunConfig

QUANTIZED = ("int8", "int4", "nf4", "nf4-dq", "fp8", "awq", "gptq")  # the last two only as a checkpoint stores them
_NF4_BLOCK = 64  # weights that share one absmax (bitsandbytes' default)
_NESTED_BLOCK = 256  # absmaxes that share one scale when they are quantized in turn


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """Parameters of one shape: the part of the model they belong to, rows and columns, and how many there are.

    Vectors have one column. Quantization leaves vectors and convolutions (`matrix` is False) whole.
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


def active_parameters(spec: ModelSpec) -> int:
    """Return the parameters of the layers that a token goes through: all but the experts it is not routed to."""
    return parameters(spec, "layers") - _idle_parameters(spec)


def _idle_parameters(spec: ModelSpec) -> int:
    """Return 3 matrices of hidden · width in each layer, for the width of the experts that a token does not take.

    A token takes `num_experts_per_tok` of a layer's `num_experts` MLPs, each `moe_intermediate_size` wide
    (config.json). Of the language model of 30B-A3B 3.35 of 30.5 billion parameters are left; its card on the hub says
    3.3 of 30.5.
    """
    idle = spec.experts * spec.expert_width - spec.intermediate if spec.experts else 0
    return 3 * spec.hidden * idle * spec.layers


def weight_bytes(tensor: WeightTensor, precision: str) -> int:
    """Return the bytes of a tensor in a precision, rounded as it is allocated.

    int8: one byte a weight and a float32 scale a row. nf4: half a byte, a float32 absmax per 64
    weights and a table of 16 floats. nf4-dq: the absmaxes are bytes, with a float32 per 256 of
    them, a table of 256 floats and an offset (Dettmers et al. 2023, section 3). fp8: a byte. int4:
    half a byte, and a scale and an offset in bf16 for 64 weights of a row (models/cpu_linear.py).
    """
    count = tensor.rows * tensor.columns
    if precision in ELEMENT_BYTES:
        return tensor.times * rounded(count * ELEMENT_BYTES[precision])
    if precision in ("int8", "fp8"):
        return tensor.times * (rounded(count) + rounded(4 * tensor.rows))
    if precision == "int4":
        return tensor.times * (rounded(count // 2) + rounded(4 * count // INT4_GROUP))
    blocks = -(-count // _NF4_BLOCK)
    packed = rounded(-(-count // 2)) + rounded(16 * 4)
    if precision == "nf4":
        return tensor.times * (packed + rounded(4 * blocks))
    nested = rounded(blocks) + rounded(4 * -(-blocks // _NESTED_BLOCK)) + rounded(256 * 4) + rounded(4)
    return tensor.times * (packed + nested)


def _stays_whole(tensor: WeightTensor, precision: str) -> bool:
    """Return whether quantization leaves a tensor in the compute precision."""
    divided = precision != "int4" or not (tensor.rows % INT4_MULTIPLE or tensor.columns % INT4_GROUP)
    return not (tensor.matrix and divided)


def runs_on_cpu_layers(spec: ModelSpec, run_config: RunConfig) -> bool:
    """Return whether the weights run by models/cpu_linear.py instead of bitsandbytes."""
    return run_config.device == "cpu" and run_config.weights in CPU_WEIGHTS and spec.stored is None


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
            whole = precision in QUANTIZED and _stays_whole(tensor, precision)
            total += weight_bytes(tensor, dtype if whole else precision)
    return total + _BUFFERS.get(part, 0)


def active_layer_bytes(spec: ModelSpec, weights: str, dtype: str, placement: Placement) -> int:
    """Return the bytes of the layers that a decode step reads: of a layer's experts only those of its token.

    Experts are tensors of three dimensions, which quantization while loading leaves in the compute precision.
    """
    total, idle = part_bytes(spec, "layers", weights, dtype, placement), _idle_parameters(spec)
    if spec.stored is not None:
        return total * active_parameters(spec) // parameters(spec, "layers")
    return total - idle * ELEMENT_BYTES[dtype if weights in QUANTIZED else weights]


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
    matrices = [tensor for tensor in weight_tensors(spec) if tensor.part in quantized]
    largest = max(tensor.rows * tensor.columns for tensor in matrices)
    if weights == "int4":  # some rows in float32, and their codes in int32
        return largest * ELEMENT_BYTES[dtype] + 8 * QUANTIZATION_ROWS * max(tensor.columns for tensor in matrices)
    return largest * (ELEMENT_BYTES[dtype] + (2 if weights == "int8" else 0))
