"""The families that are compared with transformers: tiny models with the released head layouts, and their videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vidqa.models.families import qwen2_5_vl, qwen2_vl, qwen3_vl
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.types import Plan

VOCABULARY, VIDEO_TOKEN = 768, 767
START, END = 763, 764  # <|vision_start|>, <|vision_end|>
Video = tuple[Sequence[float], tuple[int, int]]  # times of frames, (height, width)
Inputs = dict[str, Any]


def at_rate(count: int, rate: float) -> tuple[float, ...]:
    """Times of frames."""
    return tuple(index / rate for index in range(count))


@dataclass(frozen=True)
class FamilyCase:
    """A family, tiny specs by the releases that have their head layouts, and how transformers takes its videos.

    `complete` adds to what transformers' processor makes of a text and frames what only the plan knows; `overflowing`
    ends the names of two projections into the vision tower's residual stream.
    """

    module: ModuleType
    specs: Mapping[str, ModelSpec]
    processor: Callable[[Any], Any]
    videos: Mapping[str, Video]
    complete: Callable[[Inputs, Plan], Inputs]
    overflowing: tuple[str, str]

    def __str__(self) -> str:
        return str(self.module.TITLE)


def _spec(model_type: str, layers: int, heads: tuple[int, int], tower: VisionSpec, **fields: Any) -> ModelSpec:
    hidden = fields.pop("hidden", 16 * heads[0])
    return ModelSpec(
        model_type, layers, hidden, 128, *heads, 16, VOCABULARY, 32768, VIDEO_TOKEN, False, tower, **fields
    )


def _without_outer_brackets(inputs: Inputs, plan: Plan) -> Inputs:
    """Drop the chat template's brackets around the whole video, as in training; transformers keeps them from 5.10."""
    ids = inputs["input_ids"][0].tolist()
    outer = (ids.index(START), len(ids) - 1 - ids[::-1].index(END))
    assert ids[outer[1] - 1] == END and ids[outer[0] + 1] != VIDEO_TOKEN
    stay = torch.tensor([place for place in range(len(ids)) if place not in outer])
    return inputs | {name: inputs[name][:, stay] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}


def _with_distance(inputs: Inputs, plan: Plan) -> Inputs:
    """Set the plan's own distance between slices, which transformers divides from the header's rate."""
    return inputs | {"second_per_grid_ts": torch.tensor([2 * plan.interval_seconds])}


_TOWER_2 = VisionSpec(depth=2, embed_dim=64, heads=4, patch=14, temporal_patch=2, merge=2, mlp_hidden=128)
_TOWER_2_5 = VisionSpec(
    depth=3, embed_dim=64, heads=4, patch=14, temporal_patch=2, merge=2, mlp_hidden=92, window=112,
    full_attention=(1,), tokens_per_second=2,
)  # fmt: skip
_TOWER_3 = VisionSpec(
    depth=4, embed_dim=64, heads=4, patch=16, temporal_patch=2, merge=2, mlp_hidden=92, position_rows=36,
    deepstack_blocks=(0, 1, 3),
)  # fmt: skip
_NORMS = {"hidden": 128, "attention_bias": False, "qk_norm": True, "deepstack": 3, "slice_text_tokens": 19}

QWEN2_VL = FamilyCase(
    qwen2_vl,
    {name: _spec("qwen2_vl", 2, heads, _TOWER_2) for name, heads in (("2B", (12, 2)), ("7B", (28, 4)))},
    lambda tokenizer: Qwen2VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    ),
    {
        "two frames": (at_rate(2, 2), (56, 84)),
        "wide": (at_rate(6, 2), (84, 224)),
        "odd frames and rate": (at_rate(5, 1.7), (140, 112)),
    },
    lambda inputs, plan: inputs,
    ("blocks.1.attn.proj.weight", "blocks.1.mlp.fc2.weight"),
)
QWEN2_5_VL = FamilyCase(
    qwen2_5_vl,
    {name: _spec("qwen2_5_vl", 2, heads, _TOWER_2_5) for name, heads in (("3B", (16, 2)), ("7B", (28, 4)))},
    lambda tokenizer: Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    ),
    {  # windows have 4 tokens a side
        "two frames": (at_rate(2, 2), (56, 84)),
        "windows cut at both edges": (at_rate(6, 2), (140, 252)),
        "whole windows": (at_rate(6, 2), (112, 224)),
        "odd frames and rate": (at_rate(5, 1.7), (140, 112)),
    },
    _with_distance,
    ("blocks.1.attn.proj.weight", "blocks.1.mlp.down_proj.weight"),
)
QWEN3_VL = FamilyCase(
    qwen3_vl,
    {name: _spec("qwen3_vl", 4, heads, _TOWER_3, **_NORMS) for name, heads in (("2B", (16, 8)), ("8B", (32, 8)))},
    lambda tokenizer: Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16), tokenizer,
        Qwen3VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True),
    ),
    {
        "two frames": (at_rate(2, 2), (64, 96)),
        "wide": (at_rate(6, 2), (96, 256)),
        "one token high": (at_rate(4, 25), (32, 320)),
        "odd frames and rate": (at_rate(5, 29.97), (160, 128)),
    },
    _without_outer_brackets,
    ("blocks.1.attn.proj.weight", "blocks.1.mlp.linear_fc2.weight"),
)  # fmt: skip
CASES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)
