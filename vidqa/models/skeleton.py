"""A spec's shapes as transformers knows them: for modules of random or no weights. Knows no checkpoint."""

from typing import Any

from vidqa.models.specs import ModelSpec

_MROPE_SECTIONS = {128: [16, 24, 24], 32: [4, 6, 6]}  # of half a head's width: time, row, column


def config_of(spec: ModelSpec) -> Any:
    """transformers' Qwen2VLConfig of a spec."""
    from transformers import Qwen2VLConfig

    vision = spec.vision
    return Qwen2VLConfig(
        text_config={
            "vocab_size": spec.vocabulary, "hidden_size": spec.hidden, "intermediate_size": spec.intermediate,
            "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads, "max_position_embeddings": spec.context_tokens,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": _MROPE_SECTIONS[spec.head_dim],
            },
            "tie_word_embeddings": spec.tied, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
        },
        vision_config={
            "depth": vision.depth, "embed_dim": vision.embed_dim, "num_heads": vision.heads,
            "hidden_size": spec.hidden, "mlp_ratio": vision.mlp_hidden // vision.embed_dim,
        },
        tie_word_embeddings=spec.tied, video_token_id=spec.video_token,
    )  # fmt: skip
