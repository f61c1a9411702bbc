"""Qwen2-VL's prompt layout, positions, vision tower and transformers classes: implements `FamilyRuntime`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidqa.models.decoder_layers import Rotary
from vidqa.models.families.qwen2_vl.spec import IMAGE_MEAN, IMAGE_STD
from vidqa.models.family import Segment, TextSegment, VisionGrid, VisionSegment
from vidqa.models.family_config import hf_language_values
from vidqa.models.fp16 import Fp32ResidualNorm, ToHalf
from vidqa.models.mrope import consecutive_components, grid_positions, loaded_rotary, made_rotary, mrope_sections
from vidqa.models.spec import ModelSpec
from vidqa.models.subtitle_prompt import block_after_video
from vidqa.models.vision_tower import (
    attend_within_slices,
    axial_rotary,
    cut_patches,
    embed_patches,
    mlp_by_tiles,
    resize_frame,
)
from vidqa.utils.cues import Cue

__all__ = [
    "LANGUAGE_MODEL", "VISION_TOWER", "decoder_layer", "encode", "hf_classes", "hf_config", "hf_video_inputs", "layout",
    "mrope_sections", "patch_vision_for_fp16", "position_after", "random_rotary", "resize_frame", "rotary",
    "to_patches", "vision_positions",
]  # fmt: skip

LANGUAGE_MODEL, VISION_TOWER = "model.language_model", "model.visual"


def layout(
    head: Sequence[int],
    tail: Sequence[int],
    slice_times: Sequence[float],
    tokenizer: Any,
    subtitles: Sequence[Cue] = (),
) -> tuple[Segment, ...]:
    """Return a prompt's segments: all slices in one, without text about their times, then subtitles with theirs."""
    after = block_after_video(tail, subtitles, tokenizer) if subtitles else tuple(tail)
    return TextSegment(tuple(head)), VisionSegment(len(slice_times)), TextSegment(after)


def vision_positions(spec: ModelSpec, start: int, grid: VisionGrid, first_slice: int = 0) -> Tensor:
    """Return M-RoPE positions (3, slices·rows·columns): slice, row and column from `start`.

    `first_slice` is the index of the group's first slice.
    """
    return grid_positions(torch.arange(first_slice, first_slice + grid.slices), start, grid.rows, grid.columns)


def position_after(spec: ModelSpec, start: int, grid: VisionGrid) -> int:
    """Return the position of the next text: one past the largest component (Qwen2-VL, section 2.1: max over T, H, W).

    The released checkpoints were trained with this rule. transformers 5.17-5.23 advances by max(H, W) alone, so the two
    differ if a video has more slices than rows and columns.
    """
    return start + max(grid.slices, grid.rows, grid.columns)


def to_patches(frames: Tensor, spec: ModelSpec) -> Tensor:
    """Cut (n, 3, height, width) uint8 frames into patches (slices, patches, values) in float32."""
    return cut_patches(frames, spec, IMAGE_MEAN, IMAGE_STD)


def encode(
    tower: Any, patches: Tensor, rows: int, columns: int, check_cancel: Callable[[], None] = lambda: None
) -> Tensor:
    """Encode patches (slices, rows·columns, values): (slices, rows·columns / merge², hidden).

    rows and columns count patches. `check_cancel` is called before each block; what it raises ends the encoding. All
    slices of a group are one batched call, where transformers loops over them; the result equals `tower(...)`, since
    attention does not cross slices.
    """
    hidden = embed_patches(tower.patch_embed.proj, patches)
    del patches
    slices, count, _ = hidden.shape
    head_dim = hidden.shape[-1] // tower.blocks[0].attn.num_heads
    rotary = axial_rotary(rows, columns, head_dim, tower.spatial_merge_size, hidden.device)
    for block in tower.blocks:
        check_cancel()
        hidden = hidden + attend_within_slices(block, hidden, *rotary)
        hidden = mlp_by_tiles(block, hidden.flatten(0, 1)).view(slices, count, -1)
    merged: Tensor = tower.merger(hidden.flatten(0, 1))
    return merged.view(slices, -1, merged.shape[-1])


def hf_classes() -> tuple[type, type]:
    """Import and return transformers' configuration and model class."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    return Qwen2VLConfig, Qwen2VLForConditionalGeneration


def hf_video_inputs(frames: Tensor, spec: ModelSpec, seconds_per_slice: float, **options: Any) -> dict[str, Tensor]:
    """Run transformers' own video processor on frames (n, 3, height, width) that have their final size."""
    from transformers import Qwen2VLVideoProcessor

    vision = spec.vision
    processor: Any = Qwen2VLVideoProcessor(
        do_resize=False, cap_pixels_per_frame=True, patch_size=vision.patch,
        temporal_patch_size=vision.temporal_patch, merge_size=vision.merge,
    )  # fmt: skip
    return dict(processor(videos=[frames], return_tensors="pt", do_sample_frames=False, **options))


def decoder_layer(spec: ModelSpec) -> nn.Module:
    """Make one decoder layer of a spec, its weights uninitialised."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

    return Qwen2VLDecoderLayer(hf_config(spec).text_config, 0).eval()


def rotary(language_model: Any) -> Rotary:
    """Return the rotary embedding of a loaded language model."""
    sections = language_model.config.rope_parameters["mrope_section"]
    return loaded_rotary(language_model, consecutive_components(sections))


def random_rotary(spec: ModelSpec, device: Any) -> Rotary:
    """Return the rotary embedding for a layer of `decoder_layer`."""
    return made_rotary(spec, 1e6, consecutive_components(mrope_sections(spec.head_dim)), device)


def patch_vision_for_fp16(tower: Any, scaled: Callable[[Any], Any]) -> None:
    """Keep the vision tower finite in float16; `scaled` wraps a linear layer."""
    for block in tower.blocks:
        block.norm1, block.norm2 = Fp32ResidualNorm(block.norm1), Fp32ResidualNorm(block.norm2)
        block.attn.proj, block.mlp.fc2 = scaled(block.attn.proj), scaled(block.mlp.fc2)
    merger = tower.merger
    merger.ln_q = Fp32ResidualNorm(merger.ln_q)
    merger.mlp[0] = scaled(merger.mlp[0])
    merger.mlp[2] = nn.Sequential(scaled(merger.mlp[2]), ToHalf())


def hf_config(spec: ModelSpec) -> Any:
    """Return transformers' Qwen2VLConfig of a spec, for random weights; no token ends an answer."""
    from transformers import Qwen2VLConfig

    vision = spec.vision
    rope = {"rope_theta": 1e6, "mrope_section": mrope_sections(spec.head_dim)}
    return Qwen2VLConfig(
        vision_config={
            "depth": vision.depth, "embed_dim": vision.embed_dim, "num_heads": vision.heads,
            "hidden_size": spec.hidden, "mlp_ratio": vision.mlp_hidden // vision.embed_dim,
        },
        **hf_language_values(spec, rope),
    )  # fmt: skip
