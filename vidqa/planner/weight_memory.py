"""Bytes of a model's weights, tensor by tensor, for every precision and placement.

A checkpoint is a list of matrices and vectors that follows from its numbers; a precision
says what one of them takes. Arithmetic only: no file, no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vidqa.devices.device import BLOCK, rounded
from vidqa.types import Placement

if TYPE_CHECKING:
    from vidqa.models.families.qwen2_vl.spec import ModelSpec

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
QUANTIZED = ("int8", "nf4", "nf4-dq", "fp8", "awq", "gptq")  # the last two only as a checkpoint stores them
PRECISIONS = (*ELEMENT_BYTES, *QUANTIZED)
_NF4_BLOCK = 64  # weights that share one absmax (bitsandbytes' default)
_NESTED_BLOCK = 256  # absmaxes that share one scale when they are quantized in turn


@dataclass(frozen=True, slots=True)
class Tensor:
    """One parameter: which part of the model it belongs to, its shape, and how often it occurs."""

    part: str
    rows: int
    columns: int
    times: int

    @property
    def values(self) -> int:
        """Numbers in all of them."""
        return self.rows * self.columns * self.times


def tensors(spec: "ModelSpec") -> Iterator[Tensor]:
    """Every parameter of a checkpoint. Parts: embedding, layers, lm_head, vision; vectors have one column."""
    hidden, wide, kv = spec.hidden, spec.intermediate, spec.kv_heads * spec.head_dim
    yield Tensor("embedding", spec.vocabulary, hidden, 1)
    if not spec.tied:
        yield Tensor("lm_head", spec.vocabulary, hidden, 1)
    for rows, columns in ((hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)):  # q, k, v, o
        yield Tensor("layers", rows, columns, spec.layers)
    for rows, columns in ((wide, hidden), (wide, hidden), (hidden, wide)):  # gate, up, down
        yield Tensor("layers", rows, columns, spec.layers)
    for length in (hidden, kv, kv, hidden, hidden):  # biases of q, k, v; two norms
        yield Tensor("layers", length, 1, spec.layers)
    yield Tensor("layers", hidden, 1, 1)  # the last norm
    yield from _vision_tensors(spec)


def _vision_tensors(spec: "ModelSpec") -> Iterator[Tensor]:
    vision = spec.vision
    yield Tensor("vision", vision.embed_dim, vision.patch_values, 1)
    for name, (inputs, outputs) in vision.matrices(spec.hidden).items():
        times = 1 if name.startswith("merger") else vision.depth
        yield Tensor("vision", outputs, inputs, times)
        yield Tensor("vision", outputs, 1, times)
    norm_vectors = 1 if vision.gated else 2  # RMSNorm has no bias
    yield Tensor("vision", vision.embed_dim, 1, norm_vectors * (2 * vision.depth + 1))


@cache
def parameters(spec: "ModelSpec", *parts: str) -> int:
    """Number of parameters of a checkpoint, or of the named parts."""
    return sum(tensor.values for tensor in tensors(spec) if not parts or tensor.part in parts)


def tensor_bytes(tensor: Tensor, precision: str) -> int:
    """Bytes of a parameter in a precision, rounded as it is allocated; vectors stay in 16-bit.

    int8: one byte a weight and a float32 scale a row. nf4: half a byte, a float32 absmax per 64
    weights and a table of 16 floats. nf4-dq: the absmaxes are bytes, with a float32 per 256 of
    them, a table of 256 floats and an offset (Dettmers et al. 2023, section 3). fp8: a byte.
    """
    count = tensor.rows * tensor.columns
    if tensor.columns == 1 and precision in QUANTIZED:
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
    """The precision of a part: quantization takes the layers, and what the placement adds."""
    if weights not in QUANTIZED:
        return weights
    quantized = {"layers": True, "vision": placement.vision_quantized, "lm_head": placement.lm_head_quantized}
    return weights if quantized.get(part, False) else dtype


@cache
def part_bytes(spec: "ModelSpec", part: str, weights: str, dtype: str, placement: Placement) -> int:
    """Bytes of one part of the model, wherever it lies. The patch matrix is a convolution: never quantized.

    A checkpoint that is stored quantized has its own bytes, whatever the placement.
    """
    if spec.stored is not None:
        return spec.stored.part_bytes(part, ELEMENT_BYTES[dtype]) + _BUFFERS.get(part, 0)
    precision = part_precision(part, weights, dtype, placement)
    total = 0
    for tensor in tensors(spec):
        if tensor.part == part:
            whole = part == "vision" and tensor.columns == spec.vision.patch_values
            total += tensor_bytes(tensor, dtype if whole and precision in QUANTIZED else precision)
    return total + _BUFFERS.get(part, 0)


# Rotary frequencies: two small tables for the language model, and the vision tower's.
_BUFFERS = {"layers": 2 * BLOCK, "vision": 2 * BLOCK}


@cache
def staging_bytes(spec: "ModelSpec", weights: str, dtype: str, placement: Placement) -> int:
    """The largest quantized matrix in the compute precision, which waits on the device while it is quantized.

    transformers 5 loads one tensor at a time then (core_model_loading.py, has_on_the_fly_quantization);
    bitsandbytes makes a float16 copy more for int8 (nn/modules.py, Int8Params).
    """
    quantized = [part for part in ("layers", "vision", "lm_head")
                 if part_precision(part, weights, dtype, placement) in QUANTIZED]  # fmt: skip
    if not quantized or spec.stored is not None:
        return 0
    matrices = (tensor.rows * tensor.columns for tensor in tensors(spec) if tensor.part in quantized)
    return max(matrices) * (ELEMENT_BYTES[dtype] + (2 if weights == "int8" else 0))
