"""Tensors, activation memory and operations of Qwen2.5-VL's vision tower, and published scores. No torch.

Names and shapes follow transformers' Qwen2_5_VLForConditionalGeneration.
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

# LLaVA-Video-7B, whose language model is Qwen2-7B: layer 19 of 28 (FlexSelect, 2506.00993, figure 1).
FOCUS_DEPTH = 19 / 28
canonical_name = current_name
_HF_MODULE = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
_RUNTIME = "vidqa.models.families.qwen2_5_vl.runtime"
ALLOCATION_CODE = {
    "frames and patches": ("transformers.models.qwen2_vl.video_processing_qwen2_vl",),
    "rotary embedding": (
        f"{_HF_MODULE}:apply_rotary_pos_emb", f"{_HF_MODULE}:apply_rotary_pos_emb_vision", f"{_HF_MODULE}:rotate_half",
    ),
    "queries, keys and values": (f"{_RUNTIME}:attend_within_windows",),
    "hidden states": (f"{_RUNTIME}:encode",),
}  # fmt: skip
MODEL_SCORES = (
    ScoreRow(3.75e9, 61.5, "Qwen2.5-VL (2502.13923), 3B, Video-MME without subtitles"),
    ScoreRow(8.29e9, 65.1, "Qwen2.5-VL (2502.13923), 7B, Video-MME without subtitles"),
    ScoreRow(73.4e9, 73.3, "Qwen2.5-VL (2502.13923), 72B, Video-MME without subtitles"),
)


def vision_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of the vision tower."""
    tower, hidden = spec.vision, spec.hidden
    width, merged = tower.embed_dim, tower.embed_dim * tower.merge**2
    yield "patch_embed.proj.weight", (width, 3, tower.temporal_patch, tower.patch, tower.patch)
    for number in range(tower.depth):
        for name, shape in _block(spec):
            yield f"blocks.{number}.{name}", shape
    yield "merger.ln_q.weight", (width,)
    yield from linear_shapes("merger.mlp.0", merged, merged)
    yield from linear_shapes("merger.mlp.2", hidden, merged)


def _block(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    width, wide = spec.vision.embed_dim, spec.vision.mlp_hidden
    yield "norm1.weight", (width,)
    yield "norm2.weight", (width,)
    yield from linear_shapes("attn.qkv", 3 * width, width)
    yield from linear_shapes("attn.proj", width, width)
    yield from linear_shapes("mlp.gate_proj", wide, width)
    yield from linear_shapes("mlp.up_proj", wide, width)
    yield from linear_shapes("mlp.down_proj", width, wide)


def vision_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the peak bytes of a group of slices in the vision tower.

    Attention over whole slices (windows take less), MLP (gate, up and their product) or merger, and the rotary table,
    twice while it is brought into the order of windows.
    """
    mlp = mlp_bytes(spec, run_config, wide=3)
    largest = max(attention_bytes(spec, run_config), mlp, merger_bytes(spec, run_config))
    return largest + rotary_bytes(spec, run_config)


def vision_flops(spec: ModelSpec, run_config: RunConfig) -> Flops:
    """Return 2 per weight and patch, and 4 · patches² · width per slice and block of attention, or its windows."""
    patches, vision = patches_in_slice(spec, run_config), spec.vision
    whole = sum(block < vision.depth for block in vision.full_attention)
    in_windows = min((vision.window // vision.patch) ** 2, patches) * (vision.depth - whole)
    attention = 4 * patches * vision.embed_dim * (patches * whole + in_windows)
    slices = spec.slices(run_config.frames)
    return Flops(slices * 2 * _parameters(spec) * patches, slices * attention)


@cache
def _parameters(spec: ModelSpec) -> int:
    return count_values(vision_shapes(spec))
