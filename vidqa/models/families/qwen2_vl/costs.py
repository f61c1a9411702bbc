"""Tensors, activation memory and operations of Qwen2-VL's vision tower, and published scores. No torch.

Names and shapes follow transformers' Qwen2VLForConditionalGeneration.
"""

import math
import re
from collections.abc import Iterator
from functools import cache

from vidqa.models.family import ScoreRow, Shape
from vidqa.models.spec import ModelSpec
from vidqa.types import ELEMENT_BYTES, Flops, RunConfig

VISION_MLP_ROWS = 2048  # rows per tile of the vision MLP (runtime.py)
_FLOAT32_BYTES = 4
# transformers/conversion_mapping.py, Qwen2VLModel and Qwen2VLForConditionalGeneration.
_RENAMED = (
    (re.compile(r"^(visual|language_model)\."), r"model.\1."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)

_HF_MODULE = "transformers.models.qwen2_vl.modeling_qwen2_vl"
_RUNTIME = "vidqa.models.families.qwen2_vl.runtime"
ALLOCATION_CODE = {
    "frames and patches": (
        "vidqa.models.families.qwen2_vl.image_processor", "transformers.models.qwen2_vl.video_processing_qwen2_vl",
    ),
    "rotary embedding": (
        f"{_RUNTIME}:vision_rotary", f"{_HF_MODULE}:apply_rotary_pos_emb",
        f"{_HF_MODULE}:apply_rotary_pos_emb_vision", f"{_HF_MODULE}:rotate_half",
    ),
    "queries, keys and values": (f"{_RUNTIME}:_attend_within_slices",),
    "hidden states": (f"{_RUNTIME}:encode",),
}  # fmt: skip

MODEL_SCORES = (
    ScoreRow(2.2e9, 55.6, "Qwen2-VL (2409.12191), 2B, Video-MME without subtitles"),
    ScoreRow(8.3e9, 63.3, "the same, 7B"),
    ScoreRow(73.4e9, 71.2, "the same, 72B"),
)
# Differences to 16-bit, mean of MMMU, DocVQA, MMBench and MathVista of Qwen's own GPTQ models (Qwen2-VL README, January
# 2025). There is no official row of NF4 and of round-to-nearest int4: they use the GPTQ-Int4 ones.
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


def canonical_name(name: str) -> str:
    """Return a stored tensor's name as transformers' current class has it."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def vision_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of the vision tower."""
    tower, hidden = spec.vision, spec.hidden
    width, merged = tower.embed_dim, tower.embed_dim * tower.merge**2
    yield "patch_embed.proj.weight", (width, 3, tower.temporal_patch, tower.patch, tower.patch)
    for number in range(tower.depth):
        for name, shape in _block(spec):
            yield f"blocks.{number}.{name}", shape
    yield from _norm("merger.ln_q", spec)
    yield from _linear("merger.mlp.0", merged, merged)
    yield from _linear("merger.mlp.2", hidden, merged)


def _block(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    width, wide = spec.vision.embed_dim, spec.vision.mlp_hidden
    yield from _norm("norm1", spec)
    yield from _norm("norm2", spec)
    yield from _linear("attn.qkv", 3 * width, width)
    yield from _linear("attn.proj", width, width)
    if spec.vision.gated:
        yield from _linear("mlp.gate_proj", wide, width)
        yield from _linear("mlp.up_proj", wide, width)
        yield from _linear("mlp.down_proj", width, wide)
    else:
        yield from _linear("mlp.fc1", wide, width)
        yield from _linear("mlp.fc2", width, wide)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (spec.vision.embed_dim,)
    if not spec.vision.gated:  # LayerNorm; Qwen2.5-VL's RMSNorm has no bias
        yield f"{name}.bias", (spec.vision.embed_dim,)


def vision_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the peak bytes of a group of slices in the vision tower.

    R rows of width E, b bytes per value, tiles of T rows, M values inside the MLP:

    - Attention, while the keys are rotated: hidden, qkv (3), the rotated queries and keys, and two float32 halves:
      b·6·R·E + 4·R·E. In float32, when they are mixed: hidden, qkv, both, and the result with its log-sum-exps.
    - MLP, in the last tile: hidden, the tiles before, the tile's norm and three wide tensors (fc1, 1.702·fc1 and its
      sigmoid): b·(2·R·E + 3·T·M).
    - Merger: hidden, norm and two of the merged width: b·4·R·E.

    The rotary table adds 2·4 bytes per patch of a slice and half of head_dim. In float16, hidden and the tiles before
    are float32.
    """
    vision, element = spec.vision, ELEMENT_BYTES[run_config.dtype]
    residual = _FLOAT32_BYTES if run_config.dtype == "fp16" else element
    patches = _patches(spec, run_config)
    rows = patches * min(run_config.vision_chunk, spec.slices(run_config.frames))
    tile = min(rows, VISION_MLP_ROWS)
    attention = (residual + element * 5 + _FLOAT32_BYTES) * rows * vision.embed_dim
    mixed = (residual + element * 6) * rows * vision.embed_dim + _FLOAT32_BYTES * rows * vision.heads
    wide = 4 if vision.gated else 3
    mlp = element * tile * (vision.embed_dim + wide * vision.mlp_hidden)
    mlp += residual * (2 * rows - tile) * vision.embed_dim
    merger = element * 4 * rows * vision.embed_dim
    rotary = _FLOAT32_BYTES * patches * (vision.embed_dim // vision.heads)
    return max(attention, mixed, mlp, merger) + rotary


def vision_flops(spec: ModelSpec, run_config: RunConfig) -> Flops:
    """Return 2 per weight and patch, and 4 · patches² · width per slice and block of attention, or its windows."""
    patches, vision = _patches(spec, run_config), spec.vision
    whole = len(vision.full_attention) if vision.window else vision.depth
    in_windows = min((vision.window // vision.patch) ** 2, patches) * (vision.depth - whole)
    attention = 4 * patches * vision.embed_dim * (patches * whole + in_windows)
    slices = spec.slices(run_config.frames)
    return Flops(slices * 2 * _parameters(spec) * patches, slices * attention)


def _patches(spec: ModelSpec, run_config: RunConfig) -> int:
    return run_config.height // spec.vision.patch * (run_config.width // spec.vision.patch)


@cache
def _parameters(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for _, shape in vision_shapes(spec))
