"""Tensors, memory and operations that the vision towers of model families share. No torch.

R rows (patches) of width E, b bytes per value, tiles of T rows, M values inside the MLP. In float16 the residual
streams are float32 (`models/fp16.py`).
"""

import math
import re
from collections.abc import Iterable, Iterator

from vidqa.models.block_sizes import VISION_MLP_ROWS
from vidqa.models.family import ScoreRow, Shape
from vidqa.models.spec import ModelSpec
from vidqa.types import ELEMENT_BYTES, RunConfig

FLOAT32_BYTES = 4
# transformers/conversion_mapping.py: checkpoints of before transformers 4.52 have the language model at the top.
_RENAMED = (
    (re.compile(r"^(visual|language_model)\."), r"model.\1."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
# Differences to 16-bit in points, mean of MMMU, DocVQA, MMBench and MathVista of Qwen's own GPTQ models (Qwen2-VL
# README, January 2025); later families have no such row for both precisions and use these. There is no official row of
# NF4 and of round-to-nearest int4: they use the GPTQ-Int4 ones.
_INT4_SCORES = (
    ScoreRow(2.2e9, -1.93, "GPTQ-Int4 2B"),
    ScoreRow(8.3e9, -0.12, "Int4 7B"),
    ScoreRow(73.4e9, -0.70, "Int4 72B"),
)
PRECISION_SCORES = {
    "int8": (
        ScoreRow(2.2e9, -0.07, "GPTQ-Int8 2B"),
        ScoreRow(8.3e9, 0.0, "Int8 7B"),
        ScoreRow(73.4e9, -0.51, "Int8 72B"),
    ),
    "nf4": _INT4_SCORES,
    "int4": _INT4_SCORES,
}


def current_name(name: str) -> str:
    """Return a tensor's name of an older checkpoint as transformers' current classes have it."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def linear_shapes(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Shape]]:
    """Yield weight and bias of a linear layer."""
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def layer_norm_shapes(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    """Yield weight and bias of a LayerNorm."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def count_values(shapes: Iterable[tuple[str, Shape]]) -> int:
    """Return the number of values in all tensors."""
    return sum(math.prod(shape) for _, shape in shapes)


def patches_in_slice(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the patches of one temporal slice."""
    return run_config.height // spec.vision.patch * (run_config.width // spec.vision.patch)


def rows_in_group(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return R, the patches of the slices that are encoded together."""
    slices = min(run_config.vision_chunk, spec.slices(run_config.frames))
    return patches_in_slice(spec, run_config) * slices


def residual_bytes(run_config: RunConfig) -> int:
    """Return the bytes of a value of the residual stream."""
    return FLOAT32_BYTES if run_config.dtype == "fp16" else ELEMENT_BYTES[run_config.dtype]


def attention_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the peak of attention over whole slices, while the keys are rotated or when they are mixed.

    Hidden, qkv (3), the rotated queries and keys, and two float32 halves: b·6·R·E + 4·R·E. In float32 mixing is larger:
    hidden, qkv, both, and the result with its log-sum-exps, b·7·R·E + 4·R·heads.
    """
    rows, vision, element = rows_in_group(spec, run_config), spec.vision, ELEMENT_BYTES[run_config.dtype]
    rotated = (residual_bytes(run_config) + element * 5 + FLOAT32_BYTES) * rows * vision.embed_dim
    mixed = (residual_bytes(run_config) + element * 6) * rows * vision.embed_dim + FLOAT32_BYTES * rows * vision.heads
    return max(rotated, mixed)


def mlp_bytes(spec: ModelSpec, run_config: RunConfig, wide: int) -> int:
    """Return the peak of the MLP in the last tile.

    Hidden, the tiles before, the tile's norm and `wide` tensors of M values: b·(2·R·E + wide·T·M). In float16 the
    second product's scaled input and its result are beside the input: b·T·(2·M + E).
    """
    rows, width = rows_in_group(spec, run_config), spec.vision.embed_dim
    tile, inside = min(rows, VISION_MLP_ROWS), wide * spec.vision.mlp_hidden
    if run_config.dtype == "fp16":
        inside = max(inside, 2 * spec.vision.mlp_hidden + width)
    within_tile = ELEMENT_BYTES[run_config.dtype] * tile * (width + inside)
    return within_tile + residual_bytes(run_config) * (2 * rows - tile) * width


def merger_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the peak of the merger: hidden, norm and two tensors of the merged width, b·4·R·E."""
    return ELEMENT_BYTES[run_config.dtype] * 4 * rows_in_group(spec, run_config) * spec.vision.embed_dim


def rotary_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of cosine and sine: 2·4 per patch of a slice and half of a head."""
    return FLOAT32_BYTES * patches_in_slice(spec, run_config) * (spec.vision.embed_dim // spec.vision.heads)
