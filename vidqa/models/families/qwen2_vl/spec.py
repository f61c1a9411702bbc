"""Qwen2-VL's config.json and video processor: rules for their values, specs and pixel bounds. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidqa.models.config_validation import Integer, OneOf, Rule, Values
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

TITLE = "Qwen2-VL"
RUNNABLE_TYPES = PLANNED_TYPES = ("qwen2_vl",)
# CLIP's channel statistics (Radford et al. 2021), which the processor uses.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
_TOKEN_PIXELS = 28 * 28
REFERENCE_BOUNDS = reference_bounds(_TOKEN_PIXELS)

# Defaults are those of transformers' Qwen2VLConfig.
_THETA = 1e6
_VISION: dict[str, Rule] = {
    "depth": Integer(1, 1024, 32),
    "embed_dim": Integer(4, 2**16, 1280),
    "num_heads": Integer(1, 1024, 16),
    "mlp_ratio": Integer(1, 64, 4),
    "hidden_act": OneOf(ACTIVATIONS, "quick_gelu"),
    "hidden_size": Integer(2, 2**17, None),
}


def check_config(config: Values) -> dict[str, Any]:
    """Return the checked values of a config.json as Qwen2VLConfig takes them; raise ModelError for others."""
    checked = check_language_model(config, _THETA)
    vision, tower = check_tower(config, _VISION, width="embed_dim", patch=14)
    check_out_width(vision, tower, "hidden_size", checked["text_config"]["hidden_size"])
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
            embed_dim=vision["embed_dim"],
            heads=vision["num_heads"],
            patch=vision["patch_size"],
            temporal_patch=vision["temporal_patch_size"],
            merge=vision["spatial_merge_size"],
            mlp_hidden=vision["embed_dim"] * vision["mlp_ratio"],
        ),
        stop_tokens=tuple(text["eos_token_id"]),
    )


def read_bounds(folder: Path, spec: ModelSpec) -> PixelBounds:
    """Return the bounds of a checkpoint's video processor, else qwen-vl-utils'; raise ModelError."""
    check_processor(folder, spec, IMAGE_MEAN, IMAGE_STD)
    return read_frame_bounds(folder, REFERENCE_BOUNDS, _TOKEN_PIXELS)


_TOWER = VisionSpec(depth=32, embed_dim=1280, heads=16, patch=14, temporal_patch=2, merge=2, mlp_hidden=5120)


def _released(layers: int, hidden: int, wide: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> ModelSpec:
    return ModelSpec("qwen2_vl", layers, hidden, wide, heads, kv_heads, 128, vocabulary, 32768, 151656, tied, _TOWER)


# config.json of the released checkpoints.
RELEASED = {
    "Qwen/Qwen2-VL-2B-Instruct": _released(28, 1536, 8960, 12, 2, 151_936, True),
    "Qwen/Qwen2-VL-7B-Instruct": _released(28, 3584, 18944, 28, 4, 152_064, False),
    "Qwen/Qwen2-VL-72B-Instruct": _released(80, 8192, 29568, 64, 8, 152_064, False),
}
SHORT_NAMES = {name.split("-")[2].lower(): name for name in RELEASED}  # 2b, 7b, 72b
