"""Qwen2.5-VL's prompt layout, positions, vision tower and transformers classes: implements `FamilyRuntime`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vidqa.models.decoder_layers import Rotary, rotate
from vidqa.models.families.qwen2_5_vl.spec import IMAGE_MEAN, IMAGE_STD
from vidqa.models.family import Segment, TextSegment, VisionGrid, VisionSegment
from vidqa.models.family_config import hf_language_values
from vidqa.models.fp16 import Fp32ResidualNorm, ScaledMLP, ToHalf
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
    "patch_vision_for_fp16", "position_after", "random_rotary", "resize_frame", "rotary", "to_patches",
    "vision_positions",
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
    """Return M-RoPE positions (3, slices·rows·columns): time, row and column from `start`.

    The time counts from the segment's first slice, whatever part of the segment this is.
    """
    return grid_positions(_times(spec, grid, first_slice), start, grid.rows, grid.columns)


def _times(spec: ModelSpec, grid: VisionGrid, first_slice: int) -> Tensor:
    """Return floor(slice · tokens_per_second · seconds per slice) of each slice, in float32 as transformers does.

    Slices that are not even have the positions of their own times.
    """
    if grid.slice_seconds:
        return torch.tensor(uneven_times(spec, grid.slice_seconds)[first_slice : first_slice + grid.slices])
    return (torch.arange(first_slice, first_slice + grid.slices) * float(_interval(spec, grid))).long()


def uneven_times(spec: ModelSpec, slice_seconds: Sequence[float]) -> list[int]:
    """Return floor(seconds since the first slice · tokens_per_second) of each slice, at least 1 more than before.

    Two slices at one position would be one moment to the model.
    """
    times: list[int] = []
    for seconds in slice_seconds:
        exact = int((seconds - slice_seconds[0]) * spec.vision.tokens_per_second)
        times.append(max(exact, times[-1] + 1) if times else 0)
    return times


def _interval(spec: ModelSpec, grid: VisionGrid) -> numpy.float32:
    """Return the positions in time from one slice to the next, before they are rounded down."""
    return numpy.float32(spec.vision.tokens_per_second) * numpy.float32(grid.seconds_per_slice)


def position_after(spec: ModelSpec, start: int, grid: VisionGrid) -> int:
    """Return the position of the next text: one past the largest component.

    The released checkpoints were trained with this rule. transformers 5.17-5.23 advances by max(H, W) alone, so the two
    differ if the last slice's time exceeds rows and columns.
    """
    last = int(numpy.float32(grid.slices - 1) * _interval(spec, grid))
    if grid.slice_seconds:
        last = uneven_times(spec, grid.slice_seconds)[grid.slices - 1]
    return start + max(last + 1, grid.rows, grid.columns)


def to_patches(frames: Tensor, spec: ModelSpec) -> Tensor:
    """Cut (n, 3, height, width) uint8 frames into patches (slices, patches, values) in float32."""
    return cut_patches(frames, spec, IMAGE_MEAN, IMAGE_STD)


@dataclass(frozen=True, slots=True)
class Windows:
    """`count` windows of `tokens` tokens each, which follow each other from token `start` on."""

    start: int
    count: int
    tokens: int


def window_order(rows: int, columns: int, side: int) -> tuple[Tensor, tuple[Windows, ...]]:
    """Return the order (tokens,) of a slice's tokens window by window, and the windows, those of one size together.

    Windows have `side`² tokens; those at the lower and right edges are smaller. Attention does not depend on the order
    of windows, nor on that of the tokens in one.
    """
    grid = torch.arange(rows * columns).view(rows, columns)
    down, across = rows // side * side, columns // side * side  # whole windows
    order, windows, start = list[Tensor](), list[Windows](), 0
    for part in (grid[:down, :across], grid[:down, across:], grid[down:, :across], grid[down:, across:]):
        if not part.numel():
            continue
        tall, wide = min(side, part.shape[0]), min(side, part.shape[1])
        cut = part.reshape(part.shape[0] // tall, tall, part.shape[1] // wide, wide).transpose(1, 2)
        order.append(cut.reshape(-1))
        windows.append(Windows(start, part.numel() // (tall * wide), tall * wide))
        start += part.numel()
    return torch.cat(order), tuple(windows)


def encode(
    tower: Any, patches: Tensor, rows: int, columns: int, check_cancel: Callable[[], None] = lambda: None
) -> Tensor:
    """Encode patches (slices, rows·columns, values): (slices, rows·columns / merge², hidden).

    rows and columns count patches. `check_cancel` is called before each block; what it raises ends the encoding. The
    result equals `tower(...)`; patches go through the blocks window by window, and return to their order at the end.
    """
    merge = tower.spatial_merge_size
    side = tower.window_size // merge // tower.patch_size
    order, windows = window_order(rows // merge, columns // merge, side)
    order = order.to(patches.device)
    hidden = embed_patches(tower.patch_embed.proj, patches)
    del patches
    slices, count, width = hidden.shape
    hidden = hidden.view(slices, -1, merge**2, width)[:, order].view(slices, count, width)
    cosine, sine = (
        table.view(len(order), merge**2, -1)[order].flatten(0, 1)
        for table in axial_rotary(rows, columns, width // tower.blocks[0].attn.num_heads, merge, hidden.device)
    )
    for number, block in enumerate(tower.blocks):
        check_cancel()
        if number in tower.fullatt_block_indexes:
            hidden = hidden + attend_within_slices(block, hidden, cosine, sine)
        else:
            hidden = attend_within_windows(block, hidden, cosine, sine, windows, merge**2)
        hidden = mlp_by_tiles(block, hidden.flatten(0, 1)).view(slices, count, -1)
    merged: Tensor = tower.merger(hidden.flatten(0, 1))
    return merged.view(slices, len(order), -1)[:, order.argsort()]


def attend_within_windows(
    block: Any, hidden: Tensor, cosine: Tensor, sine: Tensor, windows: Sequence[Windows], merged: int
) -> Tensor:
    """Add the attention of one block, within windows, to (slices, patches, width); `merged` is patches per token."""
    parts = []
    for one in windows:
        patches = one.tokens * merged
        span = slice(one.start * merged, one.start * merged + one.count * patches)
        table = (cosine[span].view(one.count, 1, patches, -1), sine[span].view(one.count, 1, patches, -1))
        parts.append(hidden[:, span] + _attend(block, hidden[:, span], table, one.count))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend(block: Any, hidden: Tensor, rotary_table: tuple[Tensor, Tensor], windows: int) -> Tensor:
    """Run the attention of one block over (slices, windows·patches, width), within equal windows."""
    slices, count, width = hidden.shape
    attention = block.attn
    qkv = attention.qkv(block.norm1(hidden)).view(slices, windows, count // windows, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each (slices, windows, heads, patches, head_dim)
    mixed = scaled_dot_product_attention(  # nothing keeps the rotated ones beyond it
        rotate(query, *rotary_table).flatten(0, 1), rotate(key, *rotary_table).flatten(0, 1), value.flatten(0, 1)
    )
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(slices, count, width))
    return out


def hf_classes() -> tuple[type, type]:
    """Import and return transformers' configuration and model class."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration


def hf_video_inputs(frames: Tensor, spec: ModelSpec, seconds_per_slice: float, **options: Any) -> dict[str, Tensor]:
    """Run transformers' own video processor on frames (n, 3, height, width) that have their final size."""
    from transformers import Qwen2VLVideoProcessor

    vision = spec.vision
    processor: Any = Qwen2VLVideoProcessor(
        do_resize=False, cap_pixels_per_frame=True, patch_size=vision.patch,
        temporal_patch_size=vision.temporal_patch, merge_size=vision.merge,
    )  # fmt: skip
    made = processor(videos=[frames], return_tensors="pt", do_sample_frames=False, **options)
    return dict(made) | {"second_per_grid_ts": torch.tensor([seconds_per_slice])}


def decoder_layer(spec: ModelSpec) -> nn.Module:
    """Make one decoder layer of a spec, its weights uninitialised."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer

    return Qwen2_5_VLDecoderLayer(hf_config(spec).text_config, 0).eval()


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
        block.attn.proj = scaled(block.attn.proj)
        block.mlp = ScaledMLP(block.mlp, scaled(block.mlp.down_proj))
    merger = tower.merger
    merger.ln_q = Fp32ResidualNorm(merger.ln_q)
    merger.mlp[0] = scaled(merger.mlp[0])
    merger.mlp[2] = nn.Sequential(scaled(merger.mlp[2]), ToHalf())


def hf_config(spec: ModelSpec) -> Any:
    """Return transformers' Qwen2_5_VLConfig of a spec, for random weights; no token ends an answer."""
    from transformers import Qwen2_5_VLConfig

    vision = spec.vision
    rope = {"rope_theta": 1e6, "mrope_section": mrope_sections(spec.head_dim)}
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": vision.depth, "hidden_size": vision.embed_dim, "num_heads": vision.heads,
            "intermediate_size": vision.mlp_hidden, "out_hidden_size": spec.hidden, "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_attention), "tokens_per_second": vision.tokens_per_second,
        },
        **hf_language_values(spec, rope),
    )  # fmt: skip
