"""Qwen3-VL's config.json and video processor: rules for their values, specs and pixel bounds. No torch.

Models with experts (30B-A3B) can be planned, but not run.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidqa.models.config_validation import Boolean, Integer, ListOf, Number, OneOf, Rule, Values
from vidqa.models.family_config import (
    ACTIVATIONS,
    TOKENIZER_PATTERNS,
    check_language_model,
    check_out_width,
    check_processor,
    check_tower,
    read_video_bounds,
    reference_bounds,
)
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.types import PixelBounds

__all__ = [
    "IMAGE_MEAN", "IMAGE_STD", "PLANNED_TYPES", "REFERENCE_BOUNDS", "RELEASED", "RUNNABLE_TYPES", "SHORT_NAMES",
    "TITLE", "TOKENIZER_PATTERNS", "check_config", "read_bounds", "spec_of",
]  # fmt: skip

TITLE = "Qwen3-VL"
RUNNABLE_TYPES = ("qwen3_vl",)
_WITH_EXPERTS = "qwen3_vl_moe"
PLANNED_TYPES = (*RUNNABLE_TYPES, _WITH_EXPERTS)
IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)
_TOKEN_PIXELS = 32 * 32
REFERENCE_BOUNDS = reference_bounds(_TOKEN_PIXELS)
# Before each slice: <12345.6 seconds> and the tokens that begin and end its pictures. Tokenizers of this size have a
# token for " seconds"; each digit is one. Others make at most one token a byte.
_LARGE_VOCABULARY = 150_000
_TIME_TOKENS, _TIME_BYTES, _BRACKETS = 10, len("<12345.6 seconds>"), 2

# Defaults are those of transformers' Qwen3VLConfig.
_THETA = 5e5
_TEXT: dict[str, Rule] = {
    "head_dim": Integer(2, 2**12, 128),
    "attention_bias": Boolean(False, only=False),
    "rms_norm_eps": Number(1e-12, 1.0, 1e-6),
}
_EXPERTS: dict[str, Rule] = {
    "num_experts": Integer(1, 4096),
    "num_experts_per_tok": Integer(1, 4096),
    "moe_intermediate_size": Integer(1, 2**20),
    "decoder_sparse_step": Integer(1, 1, 1),  # every layer has experts
    "mlp_only_layers": ListOf(Integer(0, 1023), 0, 0, ()),
}
_ROPE: dict[str, Rule] = {"mrope_interleaved": Boolean(True, only=True)}
_VISION: dict[str, Rule] = {
    "depth": Integer(1, 1024, 27),
    "hidden_size": Integer(4, 2**16, 1152),
    "num_heads": Integer(1, 1024, 16),
    "intermediate_size": Integer(1, 2**20, 4304),
    "hidden_act": OneOf(ACTIVATIONS, "gelu_pytorch_tanh"),
    "out_hidden_size": Integer(2, 2**17, None),
    "num_position_embeddings": Integer(1, 2**24, 2304),
    "deepstack_visual_indexes": ListOf(Integer(0, 1023), 0, 64, (8, 16, 24)),
}


def check_config(config: Values) -> dict[str, Any]:
    """Return the checked values of a config.json as Qwen3VLConfig takes them; raise ModelError for others."""
    experts = _EXPERTS if config.values["model_type"] == _WITH_EXPERTS else {}
    checked = check_language_model(config, _THETA, _TEXT | experts, _ROPE)
    text = checked["text_config"]
    taken, there = text.get("num_experts_per_tok", 0), text.get("num_experts", 0)
    if taken > there:
        section = config.inner("text_config") if config.values.get("text_config") is not None else config
        section.refuse("num_experts_per_tok", taken, f"must not be above num_experts, {there}")
    vision, tower = check_tower(config, _VISION, width="hidden_size", patch=16)
    check_out_width(vision, tower, "out_hidden_size", text["hidden_size"])
    _check_blocks(vision, tower, text["num_hidden_layers"])
    return checked | {"vision_config": tower}


def _check_blocks(vision: Values, tower: Mapping[str, Any], layers: int) -> None:
    """Raise ModelError for an impossible grid of positions, or blocks whose features cannot go into the layers."""
    positions, blocks = tower["num_position_embeddings"], tower["deepstack_visual_indexes"]
    if math.isqrt(positions) ** 2 != positions:
        vision.refuse("num_position_embeddings", positions, "must be a square number")
    ascending = list(blocks) == sorted(set(blocks)) and max(blocks, default=-1) < tower["depth"]
    if not ascending or len(blocks) > layers:
        must = f"must be at most {layers} ascending numbers below depth, {tower['depth']}"
        vision.refuse("deepstack_visual_indexes", list(blocks), must)


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """Return checked values of config.json as a spec."""
    text, vision = config["text_config"], config["vision_config"]
    experts, each = text.get("num_experts", 0), text.get("moe_intermediate_size", 0)
    return ModelSpec(
        model_type=config["model_type"],
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=each * text["num_experts_per_tok"] if experts else text["intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
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
            position_rows=vision["num_position_embeddings"],
            deepstack_blocks=vision["deepstack_visual_indexes"],
        ),
        stop_tokens=tuple(text["eos_token_id"]),
        attention_bias=False,
        qk_norm=True,
        deepstack=len(vision["deepstack_visual_indexes"]),
        slice_text_tokens=_slice_text_tokens(text["vocab_size"]),
        experts=experts,
        expert_width=each,
    )


def _slice_text_tokens(vocabulary: int) -> int:
    """Return the most text tokens of a slice, for times up to 27 hours."""
    return _BRACKETS + (_TIME_TOKENS if vocabulary >= _LARGE_VOCABULARY else _TIME_BYTES)


def read_bounds(folder: Path, spec: ModelSpec) -> PixelBounds:
    """Return the bounds of a checkpoint's video processor, which are those of all frames; raise ModelError."""
    check_processor(folder, spec, IMAGE_MEAN, IMAGE_STD)
    return read_video_bounds(folder, REFERENCE_BOUNDS, _TOKEN_PIXELS)


# config.json of the released checkpoints. 2B and 4B have the smaller tower.
_SMALL = VisionSpec(
    depth=24, embed_dim=1024, heads=16, patch=16, temporal_patch=2, merge=2, mlp_hidden=4096, position_rows=2304,
    deepstack_blocks=(5, 11, 17),
)  # fmt: skip
_LARGE = replace(_SMALL, depth=27, embed_dim=1152, mlp_hidden=4304, deepstack_blocks=(8, 16, 24))
_8B = ModelSpec(
    "qwen3_vl", layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8, head_dim=128, vocabulary=151_936,
    context_tokens=262_144, video_token=151656, tied=False, vision=_LARGE, attention_bias=False, qk_norm=True,
    deepstack=3, slice_text_tokens=_BRACKETS + _TIME_TOKENS,
)  # fmt: skip
RELEASED = {
    "Qwen/Qwen3-VL-2B-Instruct": replace(
        _8B, layers=28, hidden=2048, intermediate=6144, heads=16, tied=True, vision=_SMALL
    ),
    "Qwen/Qwen3-VL-4B-Instruct": replace(_8B, hidden=2560, intermediate=9728, tied=True, vision=_SMALL),
    "Qwen/Qwen3-VL-8B-Instruct": _8B,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": replace(  # 8 of 128 experts
        _8B, model_type=_WITH_EXPERTS, layers=48, hidden=2048, intermediate=8 * 768, kv_heads=4, experts=128,
        expert_width=768,
    ),
}  # fmt: skip
SHORT_NAMES = {
    "3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
    "3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "3-vl-30b": "Qwen/Qwen3-VL-30B-A3B-Instruct",
}
