"""Tensors, activation memory and operations of Qwen3-VL's vision tower, and published scores. No torch.

Names and shapes follow transformers' Qwen3VLForConditionalGeneration.
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
    rows_in_group,
)
from vidqa.types import ELEMENT_BYTES, Flops, RunConfig

__all__ = [
    "ALLOCATION_CODE", "FOCUS_DEPTH", "MODEL_SCORES", "PRECISION_SCORES", "canonical_name", "vision_bytes",
    "vision_flops", "vision_shapes",
]  # fmt: skip

# Not published for Qwen3-VL: that of LLaVA-Video-7B, layer 19 of 28 (FlexSelect, 2506.00993, figure 1).
FOCUS_DEPTH = 19 / 28
canonical_name = current_name
_HF_MODULE = "transformers.models.qwen3_vl.modeling_qwen3_vl"
_RUNTIME = "vidqa.models.families.qwen3_vl.runtime"
ALLOCATION_CODE = {
    "frames and patches": ("transformers.models.qwen3_vl.video_processing_qwen3_vl",),
    "rotary embedding": (
        f"{_HF_MODULE}:apply_rotary_pos_emb", f"{_HF_MODULE}:apply_rotary_pos_emb_vision", f"{_HF_MODULE}:rotate_half",
        f"{_RUNTIME}:interpolated_positions",
    ),
    "hidden states": (f"{_RUNTIME}:encode",),
}  # fmt: skip
MODEL_SCORES = (
    ScoreRow(2.13e9, 61.9, "2B Instruct, Video-MME without subtitles, quoted in a comparison of models"),
    ScoreRow(8.77e9, 71.4, "Qwen3-VL (2511.21631), 8B Instruct, Video-MME without subtitles"),
)


def vision_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of the vision tower."""
    tower = spec.vision
    width, merged = tower.embed_dim, tower.embed_dim * tower.merge**2
    yield "patch_embed.proj.weight", (width, 3, tower.temporal_patch, tower.patch, tower.patch)
    yield "patch_embed.proj.bias", (width,)
    yield "pos_embed.weight", (tower.position_rows, width)
    for number in range(tower.depth):
        for name, shape in _block(spec):
            yield f"blocks.{number}.{name}", shape
    yield from _merger("merger", spec, normalised=width)
    for number in range(spec.deepstack):
        yield from _merger(f"deepstack_merger_list.{number}", spec, normalised=merged)


def _block(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    width, wide = spec.vision.embed_dim, spec.vision.mlp_hidden
    yield from layer_norm_shapes("norm1", width)
    yield from layer_norm_shapes("norm2", width)
    yield from linear_shapes("attn.qkv", 3 * width, width)
    yield from linear_shapes("attn.proj", width, width)
    yield from linear_shapes("mlp.linear_fc1", wide, width)
    yield from linear_shapes("mlp.linear_fc2", width, wide)


def _merger(name: str, spec: ModelSpec, normalised: int) -> Iterator[tuple[str, Shape]]:
    merged = spec.vision.embed_dim * spec.vision.merge**2
    yield from layer_norm_shapes(f"{name}.norm", normalised)
    yield from linear_shapes(f"{name}.linear_fc1", merged, merged)
    yield from linear_shapes(f"{name}.linear_fc2", spec.hidden, merged)


def vision_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the peak bytes of a group of slices in the vision tower.

    Attention, MLP (fc1 and its activation), or a merger with its result (R/merge² rows of the hidden width). Beside
    them the embeddings, 1 + `deepstack` results wide, and the rotary table.
    """
    result = ELEMENT_BYTES[run_config.dtype] * rows_in_group(spec, run_config) // spec.vision.merge**2 * spec.hidden
    mlp = mlp_bytes(spec, run_config, wide=2)
    largest = max(attention_bytes(spec, run_config), mlp, merger_bytes(spec, run_config) + result)
    return largest + (1 + spec.deepstack) * result + rotary_bytes(spec, run_config)


def vision_flops(spec: ModelSpec, run_config: RunConfig) -> Flops:
    """Return 2 per weight and patch (mergers: token), and 4 · patches² · width per slice and block of attention."""
    patches, slices, tower = patches_in_slice(spec, run_config), spec.slices(run_config.frames), spec.vision
    in_blocks, in_mergers = _parameters(spec)
    products = 2 * patches * (in_blocks + in_mergers / tower.merge**2)
    return Flops(slices * products, slices * 4 * patches * patches * tower.embed_dim * tower.depth)


@cache
def _parameters(spec: ModelSpec) -> tuple[int, int]:
    """Return the weights that multiply patches, and those that multiply tokens."""
    shapes = [one for one in vision_shapes(spec) if not one[0].startswith("pos_embed")]
    mergers = count_values(one for one in shapes if "merger" in one[0])
    return count_values(shapes) - mergers, mergers
