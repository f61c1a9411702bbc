"""Qwen2.5-VL's config.json and video processor: rules for their values, specs and pixel bounds. No torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidqa.models.config_validation import Integer, ListOf, OneOf, Rule, Values
from vidqa.models.family_config import (
    ACTIVATIONS,
    TOKENIZER_PATTERNS,
    check_language_model,
    check_out_width,
    check_processor,
    check_tower,
    read_frame_bounds,
    reference_bounds,
)
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.types import PixelBounds

__all__ = [
    "IMAGE_MEAN", "IMAGE_STD", "PLANNED_TYPES", "REFERENCE_BOUNDS", "RELEASED", "RUNNABLE_TYPES", "SHORT_NAMES",
    "TITLE", "TOKENIZER_PATTERNS", "check_config", "read_bounds", "spec_of",
]  # fmt: skip

TITLE = "Qwen2.5-VL"
RUNNABLE_TYPES = PLANNED_TYPES = ("qwen2_5_vl",)
# CLIP's channel statistics (Radford et al. 2021), which the processor uses.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
_TOKEN_PIXELS = 28 * 28
REFERENCE_BOUNDS = reference_bounds(_TOKEN_PIXELS)

# Defaults are those of transformers' Qwen2_5_VLConfig; of the tower's width and tokens_per_second those of the
# released models where they differ (1280 instead of 3584).
_THETA = 1e6
_VISION: dict[str, Rule] = {
    "depth": Integer(1, 1024, 32),
    "hidden_size": Integer(4, 2**16, 1280),
    "num_heads": Integer(1, 1024, 16),
    "intermediate_size": Integer(1, 2**20, 3420),
    "hidden_act": OneOf(ACTIVATIONS, "silu"),
    "out_hidden_size": Integer(2, 2**17, None),
    "window_size": Integer(1, 2**16, 112),
    "fullatt_block_indexes": ListOf(Integer(0, 1023), 0, 1024, (7, 15, 23, 31)),
    "tokens_per_second": Integer(1, 1000, 4),
}


def check_config(config: Values) -> dict[str, Any]:
    """Return the checked values of a config.json as Qwen2_5_VLConfig takes them; raise ModelError for others."""
    checked = check_language_model(config, _THETA)
    vision, tower = check_tower(config, _VISION, width="hidden_size", patch=14)
    check_out_width(vision, tower, "out_hidden_size", checked["text_config"]["hidden_size"])
    token = tower["patch_size"] * tower["spatial_merge_size"]
    if tower["window_size"] < token:
        vision.refuse("window_size", tower["window_size"], f"must be at least a token's side, {token} pixels")
    return checked | {"vision_config": tower}


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """Return checked values of config.json as a spec."""
    text, vision = config["text_config"], config["vision_config"]
    return ModelSpec(
        model_type=config["model_type"],
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["hidden_size"] // text["num_attention_heads"],
        vocabulary=text["vocab_size"],
        context_tokens=text["max_position_embeddings"],
        video_token=config["video_token_id"],
        tied=config["tie_word_embeddings"],
        vision=VisionSpec(
            depth=vision["depth"],
            embed_dim=vision["hidden_size"],
            heads=vision["num_heads"],
            patch=vision["patch_size"],
            temporal_patch=vision["temporal_patch_size"],
            merge=vision["spatial_merge_size"],
            mlp_hidden=vision["intermediate_size"],
            window=vision["window_size"],
            full_attention=vision["fullatt_block_indexes"],
            tokens_per_second=vision["tokens_per_second"],
        ),
        stop_tokens=tuple(text["eos_token_id"]),
    )


def read_bounds(folder: Path, spec: ModelSpec) -> PixelBounds:
    """Return the bounds of a checkpoint's video processor, else qwen-vl-utils'; raise ModelError."""
    check_processor(folder, spec, IMAGE_MEAN, IMAGE_STD)
    return read_frame_bounds(folder, REFERENCE_BOUNDS, _TOKEN_PIXELS)


_TOWER = VisionSpec(
    depth=32, embed_dim=1280, heads=16, patch=14, temporal_patch=2, merge=2, mlp_hidden=3420, window=112,
    full_attention=(7, 15, 23, 31), tokens_per_second=2,
)  # fmt: skip
# config.json of the released checkpoints: layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, context.
RELEASED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ModelSpec(
        "qwen2_5_vl", 36, 2048, 11008, 16, 2, 128, 151_936, 128_000, video_token=151656, tied=True, vision=_TOWER
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": ModelSpec(
        "qwen2_5_vl", 28, 3584, 18944, 28, 4, 128, 152_064, 128_000, video_token=151656, tied=False, vision=_TOWER
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": ModelSpec(
        "qwen2_5_vl", 80, 8192, 29568, 64, 8, 128, 152_064, 128_000, video_token=151656, tied=False,
        vision=replace(_TOWER, mlp_hidden=3456),
    ),
}  # fmt: skip
SHORT_NAMES = {"2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct", "2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct"}
