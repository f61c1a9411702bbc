"""The values of config.json that vidqa and transformers build a model from, and what each must be.

`check_config` returns nothing but checked values, in transformers' names: keys without a rule (`auto_map`,
`torch_dtype`, `transformers_weights`) are dropped. Knows rules; knows no torch and no weights.
"""

from typing import Any

from vidqa.errors import ModelError
from vidqa.models.json_rules import Boolean, Integer, ListOf, Number, OneOf, Rule, Values, shown

SUPPORTED_TYPES = ("qwen2_vl",)
PLANNED_TYPES = ("qwen2_vl", "qwen2_5_vl")
MOST_VOCABULARY = 2**22
_ACTIVATIONS = ("silu", "quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_VISION_THETA = 10_000.0  # fixed in every release, and in models/families/qwen2_vl/model.py

# Defaults are those of transformers' Qwen2VLConfig and Qwen2_5_VLConfig.
_TEXT: dict[str, Rule] = {
    "vocab_size": Integer(2, MOST_VOCABULARY),
    "hidden_size": Integer(2, 2**17),
    "intermediate_size": Integer(1, 2**20),
    "num_hidden_layers": Integer(1, 1024),
    "num_attention_heads": Integer(1, 1024),
    "num_key_value_heads": Integer(1, 1024, None),
    "max_position_embeddings": Integer(1, 2**24),
    "hidden_act": OneOf(_ACTIVATIONS, "silu"),
    "rms_norm_eps": Number(1e-12, 1.0, 1e-5),
}
# vidqa's own loop over the layers attends to everything.
_FULL_ATTENTION: dict[str, Rule] = {
    "use_sliding_window": Boolean(False, only=False),
    "layer_types": ListOf(OneOf(("full_attention",)), 1, 1024, None),
}
_ROPE: dict[str, Rule] = {
    "rope_type": OneOf(("default", "mrope"), "default"),  # others scale attention, which vidqa's loop does not
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
    """The checked values of a config.json, as Qwen2VLConfig takes them; raises ModelError for anything else.

    Hub checkpoints keep the language model's values beside the others, saved ones in `text_config`: here they
    are in `text_config` always.
    """
    model_type = config.values.get("model_type")
    if model_type not in PLANNED_TYPES:
        raise ModelError(
            f"{config.path}: model_type is {shown(model_type)}; vidqa runs {' and '.join(SUPPORTED_TYPES)}.",
            "Choose for example --model Qwen/Qwen2-VL-2B-Instruct.",
        )
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


def token_ids(values: Values, key: str, vocabulary: int) -> tuple[int, ...]:
    """The token or tokens that a key names, none where it is absent; raises ModelError."""
    ids: tuple[int, ...] = values.take(key, ListOf(Integer(0, vocabulary - 1), 0, 256, (), single=True))
    return ids


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
    """M-RoPE's base and how many frequencies turn with time, row and column: half a head's values together."""
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
    if width % (4 * heads):  # half of a head turns with the row, half with the column, by pairs
        vision.refuse("num_heads", heads, f"must divide the tower's width, {width}, by a multiple of 4")
    if model_type == "qwen2_vl":
        checked["hidden_size"] = checked["hidden_size"] or hidden
        if checked["hidden_size"] != hidden:
            vision.refuse("hidden_size", checked["hidden_size"], f"must be the language model's, {hidden}")
    vision.inner("rope_parameters", optional=True).take("rope_theta", Number(_VISION_THETA, _VISION_THETA, None))
    return {key: value for key, value in checked.items() if key != "in_chans"}
