"""Qwen2-VL's config.json and video processor: rules for their values, specs and pixel bounds. No torch.

Qwen2.5-VL has the same rules; it can be planned, but not run yet. Keys without a rule (`auto_map`, `torch_dtype`) are
dropped: transformers' configuration gets checked values only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidqa.models.config_validation import (
    MAX_VOCABULARY,
    Boolean,
    Integer,
    ListOf,
    Number,
    OneOf,
    Rule,
    Values,
    read_object,
    token_ids,
)
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.types import PixelBounds

TITLE = "Qwen2-VL"
RUNNABLE_TYPES = ("qwen2_vl",)
PLANNED_TYPES = ("qwen2_vl", "qwen2_5_vl")
_ACTIVATIONS = ("silu", "quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
VISION_THETA = 10_000.0  # of the tower's rotary embedding, fixed in every release

# Qwen2's, and GPT-2's, which is part of ByteLevel. Both take time proportional to the text.
TOKENIZER_PATTERNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)

# qwen-vl-utils 0.0.14, vision_process.py: tokens of 28x28 pixels per temporal slice, frames, fps.
_TOKEN_PIXELS = 28 * 28
REFERENCE_BOUNDS = PixelBounds(
    min_pixels=128 * _TOKEN_PIXELS,
    max_pixels=768 * _TOKEN_PIXELS,
    total_pixels=int(128_000 * _TOKEN_PIXELS * 0.9),
    min_frames=4,
    max_frames=768,
    fps=2.0,
    source="qwen-vl-utils",
)

# Defaults are those of transformers' Qwen2VLConfig and Qwen2_5_VLConfig.
_TEXT: dict[str, Rule] = {
    "vocab_size": Integer(2, MAX_VOCABULARY),
    "hidden_size": Integer(2, 2**17),
    "intermediate_size": Integer(1, 2**20),
    "num_hidden_layers": Integer(1, 1024),
    "num_attention_heads": Integer(1, 1024),
    "num_key_value_heads": Integer(1, 1024, None),
    "max_position_embeddings": Integer(1, 2**24),
    "hidden_act": OneOf(_ACTIVATIONS, "silu"),
    "rms_norm_eps": Number(1e-12, 1.0, 1e-5),
}
# vidqa's loop over the layers has full attention only.
_FULL_ATTENTION: dict[str, Rule] = {
    "use_sliding_window": Boolean(False, only=False),
    "layer_types": ListOf(OneOf(("full_attention",)), 1, 1024, None),
}
_ROPE: dict[str, Rule] = {
    "rope_type": OneOf(("default", "mrope"), "default"),  # other types scale attention, which vidqa's loop does not
    "type": OneOf(("default", "mrope"), "default"),
    "rope_theta": Number(1.0, 1e15, None),
    "mrope_section": ListOf(Integer(0, 2**16), 3, 3),
}
_TOWER: dict[str, Rule] = {
    "depth": Integer(1, 1024, 32),
    "num_heads": Integer(1, 1024, 16),
    "spatial_merge_size": Integer(1, 16, 2),
    "temporal_patch_size": Integer(1, 16, 2),
    "in_channels": Integer(3, 3, 3),
    "in_chans": Integer(3, 3, 3),
}
_PATCH = Integer(1, 256)
_VISION: dict[str, dict[str, Rule]] = {
    "qwen2_vl": {
        "embed_dim": Integer(4, 2**16, 1280),
        "mlp_ratio": Integer(1, 64, 4),
        "hidden_act": OneOf(_ACTIVATIONS, "quick_gelu"),
        "hidden_size": Integer(2, 2**17, None),
    },
    "qwen2_5_vl": {
        "hidden_size": Integer(4, 2**16, 1280),
        "intermediate_size": Integer(1, 2**20, 3420),
        "window_size": Integer(1, 2**16, 112),
        "fullatt_block_indexes": ListOf(Integer(0, 1023), 0, 1024, (7, 15, 23, 31)),
    },
}
_TOKENS = {
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
}  # fmt: skip


def check_config(config: Values) -> dict[str, Any]:
    """Return the checked values of a config.json as Qwen2VLConfig takes them; raise ModelError for others.

    Hub checkpoints have the language model's values at the top level, saved ones in `text_config`; the result has them
    in `text_config`.
    """
    model_type = config.values["model_type"]
    nested = config.values.get("text_config") is not None
    text = config.inner("text_config") if nested else config
    checked = _text(text)
    vocabulary = checked["vocab_size"]
    return {
        "model_type": model_type,
        "text_config": checked,
        "vision_config": _vision(config.inner("vision_config"), model_type, checked["hidden_size"]),
        "tie_word_embeddings": config.take("tie_word_embeddings", Boolean(False))
        or text.take("tie_word_embeddings", Boolean(False)),
        **{key: config.take(key, Integer(0, vocabulary - 1, default)) for key, default in _TOKENS.items()},
    }


def _text(text: Values) -> dict[str, Any]:
    checked = text.checked(_TEXT)
    text.checked(_FULL_ATTENTION)
    hidden, heads = checked["hidden_size"], checked["num_attention_heads"]
    kv_heads = checked["num_key_value_heads"] = checked["num_key_value_heads"] or heads
    if hidden % heads:
        text.refuse("num_attention_heads", heads, f"must divide hidden_size, {hidden}")
    if heads % kv_heads:
        text.refuse("num_key_value_heads", kv_heads, f"must divide num_attention_heads, {heads}")
    vocabulary = checked["vocab_size"]
    tokens = {key: text.take(key, Integer(0, vocabulary - 1, None)) for key in ("bos_token_id", "pad_token_id")}
    stops = list(token_ids(text, "eos_token_id", vocabulary))
    return checked | tokens | {"eos_token_id": stops, "rope_parameters": _rope(text, hidden // heads)}


def _rope(text: Values, head_dim: int) -> dict[str, Any]:
    """Return M-RoPE's base and its numbers of frequencies for time, row and column, together half of head_dim."""
    key = "rope_scaling" if text.values.get("rope_scaling") else "rope_parameters"
    rope = text.inner(key)
    checked = rope.checked(_ROPE)
    sections = checked["mrope_section"]
    if 2 * sum(sections) != head_dim:
        rope.refuse("mrope_section", list(sections), f"must add up to {head_dim / 2:g}, half of a head")
    theta = checked["rope_theta"] or text.take("rope_theta", Number(1.0, 1e15, 1e6))
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections)}


def _vision(vision: Values, model_type: str, hidden: int) -> dict[str, Any]:
    checked = vision.checked(_TOWER | _VISION[model_type])
    patch = "patch_size" if vision.values.get("patch_size") is not None else "spatial_patch_size"
    checked["patch_size"] = 14 if vision.values.get(patch) is None else vision.take(patch, _PATCH)
    width, heads = checked.get("embed_dim", checked["hidden_size"]), checked["num_heads"]
    if width % (4 * heads):  # half of a head rotates with the row, half with the column, in pairs
        vision.refuse("num_heads", heads, f"must divide the tower's width, {width}, by a multiple of 4")
    if model_type == "qwen2_vl":
        checked["hidden_size"] = checked["hidden_size"] or hidden
        if checked["hidden_size"] != hidden:
            vision.refuse("hidden_size", checked["hidden_size"], f"must be the language model's, {hidden}")
    vision.inner("rope_parameters", optional=True).take("rope_theta", Number(VISION_THETA, VISION_THETA, None))
    return {key: value for key, value in checked.items() if key != "in_chans"}


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """Return checked values of config.json as a spec."""
    text, vision = config["text_config"], config["vision_config"]
    gated = config["model_type"] == "qwen2_5_vl"
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
            embed_dim=vision["hidden_size"] if gated else vision["embed_dim"],  # Qwen2.5-VL's is the tower's own
            heads=vision["num_heads"],
            patch=vision["patch_size"],
            temporal_patch=vision["temporal_patch_size"],
            merge=vision["spatial_merge_size"],
            mlp_hidden=vision["intermediate_size"] if gated else vision["embed_dim"] * vision["mlp_ratio"],
            gated=gated,
            window=vision.get("window_size", 0),
            full_attention=vision.get("fullatt_block_indexes", ()),
        ),
        stop_tokens=tuple(text["eos_token_id"]),
    )


_PIXELS = Integer(1, 2**31, None)
_PROCESSOR: dict[str, Rule] = {
    "min_pixels": _PIXELS,
    "max_pixels": _PIXELS,
    "max_video_tokens": Integer(1, 2**24, 128_000),
    "min_frames": Integer(1, 2**20, REFERENCE_BOUNDS.min_frames),
    "max_frames": Integer(1, 2**20, REFERENCE_BOUNDS.max_frames),
    "fps": Number(0.001, 1000.0, REFERENCE_BOUNDS.fps),
}
_SIZE: dict[str, Rule] = dict.fromkeys(("shortest_edge", "longest_edge", "min_pixels", "max_pixels"), _PIXELS)


def read_bounds(folder: Path) -> PixelBounds:
    """Return the bounds of a checkpoint's *video* processor, else qwen-vl-utils' video constants; raise ModelError.

    The image processor's bounds are never used: they allow 1,196 tokens per slice at 720p, the reference 720.
    """
    processor = _video_processor(folder)
    if processor is None:
        return REFERENCE_BOUNDS
    own, size = processor.checked(_PROCESSOR), processor.inner("size", optional=True).checked(_SIZE)
    low = own["min_pixels"] or size["shortest_edge"] or size["min_pixels"]
    high = own["max_pixels"] or size["longest_edge"] or size["max_pixels"]
    if low is None or high is None:
        return REFERENCE_BOUNDS
    if low > high:
        processor.refuse("min_pixels or size", low, f"must not be above max_pixels, {high}")
    if own["min_frames"] > own["max_frames"]:
        processor.refuse("min_frames", own["min_frames"], f"must not be above max_frames, {own['max_frames']}")
    return PixelBounds(
        min_pixels=low,
        max_pixels=high,
        total_pixels=int(own["max_video_tokens"] * _TOKEN_PIXELS * 0.9),
        min_frames=own["min_frames"],
        max_frames=own["max_frames"],
        fps=own["fps"],
        source="checkpoint",
    )


def _video_processor(folder: Path) -> Values | None:
    """Return the video processor's own file, else its section of the processor's file, None if there is neither."""
    own, shared = folder / "video_preprocessor_config.json", folder / "processor_config.json"
    if own.exists():
        return Values(own, "", read_object(own))
    if shared.exists():
        return Values(shared, "", read_object(shared)).inner("video_processor", optional=True)
    return None


_RELEASED_TOWER = VisionSpec(depth=32, embed_dim=1280, heads=16, patch=14, temporal_patch=2, merge=2, mlp_hidden=5120)
_GATED_TOWER = VisionSpec(
    depth=32, embed_dim=1280, heads=16, patch=14, temporal_patch=2, merge=2,
    mlp_hidden=3420, gated=True, window=112, full_attention=(7, 15, 23, 31),
)  # fmt: skip


def _qwen2(layers: int, hidden: int, wide: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> ModelSpec:
    return ModelSpec(
        "qwen2_vl", layers, hidden, wide, heads, kv_heads, 128, vocabulary, 32768, 151656, tied, _RELEASED_TOWER
    )


def _qwen25(layers: int, hidden: int, wide: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> ModelSpec:
    return ModelSpec(
        "qwen2_5_vl", layers, hidden, wide, heads, kv_heads, 128, vocabulary, 128_000, 151656, tied, _GATED_TOWER
    )


# config.json of the released checkpoints.
RELEASED = {
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2(28, 1536, 8960, 12, 2, 151_936, True),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2(28, 3584, 18944, 28, 4, 152_064, False),
    "Qwen/Qwen2-VL-72B-Instruct": _qwen2(80, 8192, 29568, 64, 8, 152_064, False),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25(36, 2048, 11008, 16, 2, 151_936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen25(28, 3584, 18944, 28, 4, 152_064, False),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen25(80, 8192, 29568, 64, 8, 152_064, False),
}
SHORT_NAMES = {name.split("-")[2].lower(): name for name in RELEASED if "Qwen2-VL" in name}  # 2b, 7b, 72b
