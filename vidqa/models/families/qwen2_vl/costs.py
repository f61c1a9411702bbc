"""Tensors, activation memory and operations of Qwen2-VL's vision tower, and published scores. No torch.

Names and shapes follow transformers' Qwen2VLForConditionalGeneration.
"""

from collections.abc import Iterator
from functools import cache

from vidqa.models.family import ScoreRow, Shape
from vidqa.models.spec import ModelSpec
from vidqa.models.tower_costs import (
    PRECISION_SCORES,
    attention_bytes,
    count_values,
    current_name,
    layer_norm_shapes,
    linear_shapes,
    merger_bytes,
    mlp_bytes,
    patches_in_slice,
    rotary_bytes,
)
from vidqa.types import Flops, RunConfig

__all__ = [
    "ALLOCATION_CODE", "FOCUS_DEPTH", "MODEL_SCORES", "PRECISION_SCORES", "canonical_name", "vision_bytes",
    "vision_flops", "vision_shapes",
]  # fmt: skip

# LLaVA-Video-7B, whose language model is Qwen2-7B too: layer 19 of 28 (FlexSelect, 2506.00993, figure 1).
FOCUS_DEPTH = 19 / 28
canonical_name = current_name
_HF_MODULE = "transformers.models.qwen2_vl.modeling_qwen2_vl"
ALLOCATION_CODE = {
    "frames and patches": ("transformers.models.qwen2_vl.video_processing_qwen2_vl",),
    "rotary embedding": (
        f"{_HF_MODULE}:apply_rotary_pos_emb", f"{_HF_MODULE}:apply_rotary_pos_emb_vision", f"{_HF_MODULE}:rotate_half",
    ),
    "hidden states": ("vidqa.models.families.qwen2_vl.runtime:encode",),
}  # fmt: skip
MODEL_SCORES = (
    ScoreRow(2.2e9, 55.6, "Qwen2-VL (2409.12191), 2B, Video-MME without subtitles"),
    ScoreRow(8.3e9, 63.3, "Qwen2-VL (2409.12191), 7B, Video-MME without subtitles"),
    ScoreRow(73.4e9, 71.2, "Qwen2-VL (2409.12191), 72B, Video-MME without subtitles"),
)


def vision_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of the vision tower."""
    tower, hidden = spec.vision, spec.hidden
    width, merged = tower.embed_dim, tower.embed_dim * tower.merge**2
    yield "patch_embed.proj.weight", (width, 3, tower.temporal_patch, tower.patch, tower.patch)
    for number in range(tower.depth):
        for name, shape in _block(spec):
            yield f"blocks.{number}.{name}", shape
    yield from layer_norm_shapes("merger.ln_q", width)
    yield from linear_shapes("merger.mlp.0", merged, merged)
    yield from linear_shapes("merger.mlp.2", hidden, merged)


def _block(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    width, wide = spec.vision.embed_dim, spec.vision.mlp_hidden
    yield from layer_norm_shapes("norm1", width)
    yield from layer_norm_shapes("norm2", width)
    yield from linear_shapes("attn.qkv", 3 * width, width)
    yield from linear_shapes("attn.proj", width, width)
    yield from linear_shapes("mlp.fc1", wide, width)
    yield from linear_shapes("mlp.fc2", width, wide)


def vision_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the peak bytes of a group of slices in the vision tower.

    Attention, MLP (fc1, 1.702·fc1 and its sigmoid) or merger, and the rotary table.
    """
    mlp = mlp_bytes(spec, run_config, wide=3)
    largest = max(attention_bytes(spec, run_config), mlp, merger_bytes(spec, run_config))
    return largest + rotary_bytes(spec, run_config)


def vision_flops(spec: ModelSpec, run_config: RunConfig) -> Flops:
    """Return 2 per weight and patch, and 4 · patches² · width per slice and block of attention."""
    patches, slices = patches_in_slice(spec, run_config), spec.slices(run_config.frames)
    attention = 4 * patches * patches * spec.vision.embed_dim * spec.vision.depth
    return Flops(slices * 2 * _parameters(spec) * patches, slices * attention)


@cache
def _parameters(spec: ModelSpec) -> int:
    return count_values(vision_shapes(spec))
