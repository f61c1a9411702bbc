"""Qwen3-VL's prompt layout, positions, vision tower and transformers classes: implements `FamilyRuntime`."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidqa.models.decoder_layers import Rotary
from vidqa.models.families.qwen3_vl.spec import IMAGE_MEAN, IMAGE_STD
from vidqa.models.family import Segment, TextSegment, VisionGrid, VisionSegment
from vidqa.models.family_config import hf_language_values
from vidqa.models.fp16 import Fp32ResidualNorm, ToHalf
from vidqa.models.mrope import grid_positions, interleaved_components, loaded_rotary, made_rotary
from vidqa.models.spec import ModelSpec
from vidqa.models.vision_tower import (
    attend_within_slices,
    axial_rotary,
    cut_patches,
    embed_patches,
    merge_order,
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
_START, _END = "<|vision_start|>", "<|vision_end|>"
_THETA = 5e6  # of the released language models


def layout(
    head: Sequence[int],
    tail: Sequence[int],
    slice_times: Sequence[float],
    tokenizer: Any,
    subtitles: Sequence[Cue] = (),
) -> tuple[Segment, ...]:
    """Return a prompt's segments: each slice between its own brackets, and its time in seconds before it.

    A subtitle stands with its own time before the first slice that is later than its start.

    The time is that of the frames, where transformers divides a frame's number by the header's rate. The brackets that
    the chat template puts around the video are replaced, as in training; transformers from 5.10 on keeps them
    (docs/decisions/0031).
    """
    start, end = tokenizer.convert_tokens_to_ids([_START, _END])
    if tuple(head[-1:]) == (start,) and tuple(tail[:1]) == (end,):
        head, tail = head[:-1], tail[1:]
    texts = _in_time_order(slice_times, subtitles)
    before, first = _joined(head, texts[0], tokenizer)
    ids = [first, *tokenizer(texts[1:], add_special_tokens=False)["input_ids"]] if texts[1:] else [first]
    segments: list[Segment] = []
    for text, these in zip(texts, ids, strict=True):
        before = (*before, *these)
        if not text.endswith("\n"):  # a slice's time
            segments += [TextSegment((*before, start)), VisionSegment(1)]
            before = (end,)
    return (*segments, TextSegment((*before, *tail)))


def _in_time_order(slice_times: Sequence[float], subtitles: Sequence[Cue]) -> list[str]:
    """Return the times of slices and, as lines, the subtitles: each before the first slice after its start."""
    waiting, texts = deque(subtitles), list[str]()
    for seconds in slice_times:
        while waiting and waiting[0].start_seconds < seconds:
            texts.append(_line(waiting.popleft()))
        texts.append(_time(seconds))
    return [*texts, *map(_line, waiting)]


def _line(cue: Cue) -> str:
    return f"{_time(cue.start_seconds)}Subtitle: {cue.text}\n"


def _time(seconds: float) -> str:
    return f"<{seconds:.1f} seconds>"


def _joined(head: Sequence[int], time: str, tokenizer: Any) -> tuple[tuple[int, ...], list[int]]:
    """Return ids up to the last special token, and the rest with the first time: its tokens may join the text's."""
    special = set(tokenizer.get_added_vocab().values())
    place = next((place for place in range(len(head), 0, -1) if head[place - 1] in special), 0)
    text = tokenizer.decode(list(head[place:]), clean_up_tokenization_spaces=False)
    ids: list[int] = tokenizer(text + time, add_special_tokens=False)["input_ids"]
    return tuple(head[:place]), ids


def vision_positions(spec: ModelSpec, start: int, grid: VisionGrid, first_slice: int = 0) -> Tensor:
    """Return M-RoPE positions (3, slices·rows·columns) from `start`; a segment is one slice, at time 0."""
    return grid_positions(torch.arange(first_slice, first_slice + grid.slices), start, grid.rows, grid.columns)


def position_after(spec: ModelSpec, start: int, grid: VisionGrid) -> int:
    """Return the position of the next text: one past the largest component."""
    return start + max(grid.slices, grid.rows, grid.columns)


def to_patches(frames: Tensor, spec: ModelSpec) -> Tensor:
    """Cut (n, 3, height, width) uint8 frames into patches (slices, patches, values) in float32."""
    return cut_patches(frames, spec, IMAGE_MEAN, IMAGE_STD)


def interpolated_positions(table: Tensor, rows: int, columns: int, merge: int) -> Tensor:
    """Return learned positions (patches, width) in float32 of a slice, in merge order.

    `table` (side², width) is a square grid, stretched over the slice so that the corners meet, and interpolated
    linearly between its four nearest places.
    """
    side = round(table.shape[0] ** 0.5)
    order = merge_order(rows, columns, merge, table.device)
    down, across = _places(rows, side, table.device), _places(columns, side, table.device)
    total = torch.zeros(len(order), table.shape[1], device=table.device)
    for row, row_share in down:
        for column, column_share in across:
            index = (row[:, None] * side + column).flatten()[order]
            total += table[index] * (row_share[:, None] * column_share).flatten()[order][:, None]
    return total


def _places(count: int, side: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the two places of the grid around each of `count` rows or columns, and their shares."""
    exact = torch.arange(count, device=device).float() * (side - 1) / max(count - 1, 1)
    low = exact.floor()
    return (low.long(), 1 - (exact - low)), ((low.long() + 1).clamp(max=side - 1), exact - low)


def encode(
    tower: Any, patches: Tensor, rows: int, columns: int, check_cancel: Callable[[], None] = lambda: None
) -> Tensor:
    """Encode patches (slices, rows·columns, values): (slices, rows·columns / merge², embedding_width).

    The hidden width's first values are the embedding, then come the features of the DeepStack blocks. rows and columns
    count patches. `check_cancel` is called before each block; what it raises ends the encoding.
    """
    merge, blocks = tower.spatial_merge_size, tuple(tower.deepstack_visual_indexes)
    tokens = patches.shape[1] // merge**2
    shape = (patches.shape[0], tokens, 1 + len(blocks), tower.config.out_hidden_size)
    features = torch.empty(shape, dtype=patches.dtype, device=patches.device)
    hidden = embed_patches(tower.patch_embed.proj, patches)
    del patches
    hidden += interpolated_positions(tower.pos_embed.weight, rows, columns, merge).to(hidden.dtype)
    slices, count, width = hidden.shape
    rotary = axial_rotary(rows, columns, width // tower.blocks[0].attn.num_heads, merge, hidden.device)
    for number, block in enumerate(tower.blocks):
        check_cancel()
        hidden = hidden + attend_within_slices(block, hidden, *rotary)
        hidden = mlp_by_tiles(block, hidden.flatten(0, 1)).view(slices, count, -1)
        if number in blocks:
            place = blocks.index(number)
            merger = tower.deepstack_merger_list[place]
            features[:, :, 1 + place] = merger(hidden.flatten(0, 1)).view(slices, tokens, -1)
    features[:, :, 0] = tower.merger(hidden.flatten(0, 1)).view(slices, tokens, -1)
    return features.flatten(2)


def hf_classes() -> tuple[type, type]:
    """Import and return transformers' configuration and model class."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return Qwen3VLConfig, Qwen3VLForConditionalGeneration


def hf_video_inputs(frames: Tensor, spec: ModelSpec, seconds_per_slice: float, **options: Any) -> dict[str, Tensor]:
    """Run transformers' own video processor on frames (n, 3, height, width) that have their final size."""
    from transformers import Qwen3VLVideoProcessor

    vision = spec.vision
    processor: Any = Qwen3VLVideoProcessor(
        do_resize=False, cap_pixels_per_frame=True, patch_size=vision.patch,
        temporal_patch_size=vision.temporal_patch, merge_size=vision.merge,
    )  # fmt: skip
    return dict(processor(videos=[frames], return_tensors="pt", do_sample_frames=False, **options))


def decoder_layer(spec: ModelSpec) -> nn.Module:
    """Make one decoder layer of a spec, its weights uninitialised."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

    return Qwen3VLTextDecoderLayer(hf_config(spec).text_config, 0).eval()


def rotary(language_model: Any) -> Rotary:
    """Return the rotary embedding of a loaded language model."""
    sections = language_model.config.rope_parameters["mrope_section"]
    return loaded_rotary(language_model, interleaved_components(sections))


def random_rotary(spec: ModelSpec, device: Any) -> Rotary:
    """Return the rotary embedding for a layer of `decoder_layer`."""
    return made_rotary(spec, _THETA, interleaved_components(mrope_sections(spec.head_dim)), device)


def mrope_sections(head_dim: int) -> list[int]:
    """Return the numbers of frequencies for time, row and column: 24, 20, 20 in the released models."""
    row = 5 * head_dim // 32
    return [head_dim // 2 - 2 * row, row, row]


def patch_vision_for_fp16(tower: Any, scaled: Callable[[Any], Any]) -> None:
    """Keep the vision tower finite in float16; `scaled` wraps a linear layer."""
    for block in tower.blocks:
        block.norm1, block.norm2 = Fp32ResidualNorm(block.norm1), Fp32ResidualNorm(block.norm2)
        block.attn.proj, block.mlp.linear_fc2 = scaled(block.attn.proj), scaled(block.mlp.linear_fc2)
    for merger in (tower.merger, *tower.deepstack_merger_list):
        merger.norm = Fp32ResidualNorm(merger.norm)
        merger.linear_fc1 = scaled(merger.linear_fc1)
        merger.linear_fc2 = nn.Sequential(scaled(merger.linear_fc2), ToHalf())


def hf_config(spec: ModelSpec) -> Any:
    """Return transformers' Qwen3VLConfig of a spec, for random weights; no token ends an answer."""
    from transformers import Qwen3VLConfig

    vision = spec.vision
    rope = {"rope_theta": _THETA, "mrope_section": mrope_sections(spec.head_dim), "mrope_interleaved": True}
    return Qwen3VLConfig(
        vision_config={
            "depth": vision.depth, "hidden_size": vision.embed_dim, "num_heads": vision.heads,
            "intermediate_size": vision.mlp_hidden, "out_hidden_size": spec.hidden, "patch_size": vision.patch,
            "temporal_patch_size": vision.temporal_patch, "spatial_merge_size": vision.merge,
            "num_position_embeddings": vision.position_rows, "deepstack_visual_indexes": list(vision.deepstack_blocks),
        },
        **hf_language_values(spec, rope, head_dim=spec.head_dim),
    )  # fmt: skip
