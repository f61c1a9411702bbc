"""Rules for config.json and the processor files that model families share. No torch.

Keys without a rule (`auto_map`, `torch_dtype`) are dropped: transformers' configuration gets checked values only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from vidqa.models.spec import ModelSpec
from vidqa.types import PixelBounds

ACTIVATIONS = ("silu", "quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# Qwen2's, and GPT-2's, which is part of ByteLevel. Both take time proportional to the text.
TOKENIZER_PATTERNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
VISION_THETA = 10_000.0  # of the towers' rotary embeddings, fixed in every release
_TEXT: dict[str, Rule] = {
    "vocab_size": Integer(2, MAX_VOCABULARY),
    "hidden_size": Integer(2, 2**17),
    "intermediate_size": Integer(1, 2**20),
    "num_hidden_layers": Integer(1, 1024),
    "num_attention_heads": Integer(1, 1024),
    "num_key_value_heads": Integer(1, 1024, None),
    "max_position_embeddings": Integer(1, 2**24),
    "hidden_act": OneOf(ACTIVATIONS, "silu"),
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
    "spatial_merge_size": Integer(1, 16, 2),
    "temporal_patch_size": Integer(1, 16, 2),
    "in_channels": Integer(3, 3, 3),
    "in_chans": Integer(3, 3, 3),
}
_PATCH = Integer(1, 256)
_NONE: Mapping[str, Rule] = {}
_TOKENS = {
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
}  # fmt: skip


def check_language_model(
    config: Values, theta: float, rules: Mapping[str, Rule] = _NONE, rope_rules: Mapping[str, Rule] = _NONE
) -> dict[str, Any]:
    """Return the checked values of the language model, of `tie_word_embeddings` and of the special tokens.

    Hub checkpoints may have the language model's values at the top level, saved ones have them in `text_config`; the
    result has them in `text_config`. `theta` is the family's default base; `rules` are its own for the language model,
    `rope_rules` those for the rotary embedding. Raise ModelError.
    """
    nested = config.values.get("text_config") is not None
    text = config.inner("text_config") if nested else config
    checked = _check_text(text, theta, rules, rope_rules)
    vocabulary = checked["vocab_size"]
    return {
        "model_type": config.values["model_type"],
        "text_config": checked,
        "tie_word_embeddings": config.take("tie_word_embeddings", Boolean(False))
        or text.take("tie_word_embeddings", Boolean(False)),
        **{key: config.take(key, Integer(0, vocabulary - 1, default)) for key, default in _TOKENS.items()},
    }


def _check_text(
    text: Values, theta: float, rules: Mapping[str, Rule], rope_rules: Mapping[str, Rule]
) -> dict[str, Any]:
    checked = text.checked(_TEXT | dict(rules))
    text.checked(_FULL_ATTENTION)
    hidden, heads = checked["hidden_size"], checked["num_attention_heads"]
    kv_heads = checked["num_key_value_heads"] = checked["num_key_value_heads"] or heads
    if "head_dim" not in checked and hidden % heads:
        text.refuse("num_attention_heads", heads, f"must divide hidden_size, {hidden}")
    if heads % kv_heads:
        text.refuse("num_key_value_heads", kv_heads, f"must divide num_attention_heads, {heads}")
    vocabulary = checked["vocab_size"]
    tokens = {key: text.take(key, Integer(0, vocabulary - 1, None)) for key in ("bos_token_id", "pad_token_id")}
    stops = list(token_ids(text, "eos_token_id", vocabulary))
    head_dim = checked.get("head_dim", hidden // heads)
    return checked | tokens | {"eos_token_id": stops, "rope_parameters": _rope(text, head_dim, theta, rope_rules)}


def _rope(text: Values, head_dim: int, default_theta: float, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return M-RoPE's base and its numbers of frequencies for time, row and column, together half of head_dim."""
    key = "rope_scaling" if text.values.get("rope_scaling") else "rope_parameters"
    rope = text.inner(key)
    checked, own = rope.checked(_ROPE), rope.checked(rules)
    sections = checked["mrope_section"]
    if 2 * sum(sections) != head_dim:
        rope.refuse("mrope_section", list(sections), f"must add up to {head_dim / 2:g}, half of a head")
    theta = checked["rope_theta"] or text.take("rope_theta", Number(1.0, 1e15, default_theta))
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": list(sections), **own}


def check_tower(config: Values, rules: Mapping[str, Rule], width: str, patch: int) -> tuple[Values, dict[str, Any]]:
    """Return the section of the vision tower and its checked values; raise ModelError.

    `rules` are the family's own, `width` the key of the tower's width, `patch` the default size of a patch.
    """
    vision = config.inner("vision_config")
    checked = vision.checked(_TOWER | dict(rules))
    key = "patch_size" if vision.values.get("patch_size") is not None else "spatial_patch_size"
    checked["patch_size"] = patch if vision.values.get(key) is None else vision.take(key, _PATCH)
    heads = checked["num_heads"]
    if checked[width] % (4 * heads):  # half of a head rotates with the row, half with the column, in pairs
        vision.refuse("num_heads", heads, f"must divide the tower's width, {checked[width]}, by a multiple of 4")
    vision.inner("rope_parameters", optional=True).take("rope_theta", Number(VISION_THETA, VISION_THETA, None))
    return vision, {name: value for name, value in checked.items() if name != "in_chans"}


def check_out_width(vision: Values, checked: dict[str, Any], key: str, hidden: int) -> None:
    """Set the width of the tower's embeddings, if it is absent; raise ModelError if it is not the language model's."""
    checked[key] = checked[key] or hidden
    if checked[key] != hidden:
        vision.refuse(key, checked[key], f"must be the language model's, {hidden}")


_OWN, _SHARED, _IMAGE = "video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json"
_PIXELS = Integer(1, 2**31, None)
_SIZE: dict[str, Rule] = dict.fromkeys(("shortest_edge", "longest_edge", "min_pixels", "max_pixels"), _PIXELS)
_CHANNELS = ListOf(Number(-1e6, 1e6), 3, 3, None)
_CONTEXT_SHARE = 0.9  # of the longest prompt, for a video (qwen-vl-utils 0.0.14)


def reference_bounds(token_pixels: int) -> PixelBounds:
    """Return qwen-vl-utils 0.0.14's bounds (vision_process.py) for tokens of so many pixels."""
    return PixelBounds(
        min_pixels=128 * token_pixels,
        max_pixels=768 * token_pixels,
        total_pixels=int(128_000 * token_pixels * _CONTEXT_SHARE),
        min_frames=4,
        max_frames=768,
        fps=2.0,
        source="qwen-vl-utils",
    )


def read_frame_bounds(folder: Path, reference: PixelBounds, token_pixels: int) -> PixelBounds:
    """Return the bounds of a checkpoint's *video* processor where they are those of a frame; raise ModelError.

    Without them they are the reference's. The image processor's bounds are never used: they allow 1,196 tokens per
    slice at 720p, the reference 720.
    """
    processor = video_processor(folder)
    if processor is None:
        return reference
    rates, (low, high) = _frame_rates(processor, reference), pixel_limits(processor)
    if low is None or high is None:
        return reference
    tokens = processor.take("max_video_tokens", Integer(1, 2**24, 128_000))
    return replace(
        rates, min_pixels=low, max_pixels=high, total_pixels=int(tokens * token_pixels * _CONTEXT_SHARE),
        source="checkpoint",
    )  # fmt: skip


def read_video_bounds(folder: Path, reference: PixelBounds, token_pixels: int) -> PixelBounds:
    """Return the bounds of a checkpoint's video processor where they are those of all frames; raise ModelError.

    A slice has the pixels of one of its two frames, so that a video's slices have half of all frames' pixels. A frame
    has at most `max_video_tokens`, as in qwen-vl-utils (transformers calls this cap_pixels_per_frame).
    """
    processor = video_processor(folder)
    if processor is None:
        return reference
    rates, (low, high) = _frame_rates(processor, reference), pixel_limits(processor)
    if low is None or high is None:
        return reference
    total = high // 2
    frame = min(processor.take("max_video_tokens", Integer(1, 2**24, 768)) * token_pixels, total)
    least = min(max(-(-low // 2), token_pixels), frame)  # of the shortest video, which has one slice
    return replace(rates, min_pixels=least, max_pixels=frame, total_pixels=total, source="checkpoint")


def _frame_rates(processor: Values, reference: PixelBounds) -> PixelBounds:
    """Return the reference's bounds with the processor's own numbers of frames and rate."""
    own = processor.checked(
        {
            "min_frames": Integer(1, 2**20, reference.min_frames),
            "max_frames": Integer(1, 2**20, reference.max_frames),
            "fps": Number(0.001, 1000.0, reference.fps),
        }
    )
    if own["min_frames"] > own["max_frames"]:
        processor.refuse("min_frames", own["min_frames"], f"must not be above max_frames, {own['max_frames']}")
    return replace(reference, **own)


def pixel_limits(processor: Values) -> tuple[int | None, int | None]:
    """Return the least and most pixels that a processor names; None for what it does not name."""
    own = processor.checked({"min_pixels": _PIXELS, "max_pixels": _PIXELS})
    size = processor.inner("size", optional=True).checked(_SIZE)
    low: int | None = own["min_pixels"] or size["shortest_edge"] or size["min_pixels"]
    high: int | None = own["max_pixels"] or size["longest_edge"] or size["max_pixels"]
    if low is not None and high is not None and low > high:
        processor.refuse("min_pixels or size", low, f"must not be above max_pixels, {high}")
    return low, high


def video_processor(folder: Path) -> Values | None:
    """Return the video processor's section of the processor's file, else its own file, None if there is neither.

    This is the order of transformers (5.24, `get_video_processor_dict`), which saves the section.
    """
    return next(iter(_stored(folder, "video_processor", _OWN)), None)


def _stored(folder: Path, section: str, own: str) -> list[Values]:
    """Return what a folder has of a processor: its section of the processor's file, then its own file."""
    shared, found = folder / _SHARED, []
    if shared.exists():
        values = Values(shared, "", read_object(shared))
        found += [values.inner(section)] if values.values.get(section) is not None else []
    if (folder / own).exists():
        found.append(Values(folder / own, "", read_object(folder / own)))
    return found


def check_processor(folder: Path, spec: ModelSpec, mean: Sequence[float], deviation: Sequence[float]) -> None:
    """Raise ModelError if a processor's file contradicts config.json, or has other channel statistics.

    vidqa cuts patches as config.json says and normalises as the family does, so a contradiction would change answers.
    """
    vision = spec.vision
    sizes = {
        "patch_size": (vision.patch, "patch_size"),
        "merge_size": (vision.merge, "spatial_merge_size"),
        "temporal_patch_size": (vision.temporal_patch, "temporal_patch_size"),
    }
    for processor in (*_stored(folder, "image_processor", _IMAGE), *_stored(folder, "video_processor", _OWN)):
        _check_sizes(processor, sizes)
        for key, expected in (("image_mean", mean), ("image_std", deviation)):
            found = processor.take(key, _CHANNELS)
            if found and not all(math.isclose(*pair, abs_tol=1e-4) for pair in zip(found, expected, strict=True)):
                processor.refuse(key, list(found), f"must be {list(expected)}, which the model was trained with")


def _check_sizes(processor: Values, sizes: Mapping[str, tuple[int, str]]) -> None:
    for key, (expected, name) in sizes.items():
        found = processor.take(key, Integer(1, 256, expected))
        if found != expected:
            processor.refuse(key, found, f"must be {expected}, config.json's vision_config.{name}")


def hf_language_values(spec: ModelSpec, rope: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """Return what transformers' configurations of all families share, for random weights; no token ends an answer.

    `rope` are the rotary embedding's parameters, `others` further values of the language model.
    """
    token = spec.video_token
    return {
        "text_config": {
            "vocab_size": spec.vocabulary, "hidden_size": spec.hidden, "intermediate_size": spec.intermediate,
            "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads, "max_position_embeddings": spec.context_tokens,
            "rope_parameters": {"rope_type": "default", **rope},
            "tie_word_embeddings": spec.tied, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None, **others,
        },
        "tie_word_embeddings": spec.tied, "image_token_id": token - 1, "video_token_id": token,
        "vision_start_token_id": token + 1, "vision_end_token_id": token + 2,
    }  # fmt: skip
