"""A spec's shapes as transformers knows them: for modules of random or no weights. Knows no checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vidqa.models.families.qwen2_vl.spec import ModelSpec


def mrope_sections(head_dim: int) -> list[int]:
    """How many frequencies turn with time, row and column: 16, 24, 24 of 64 in the released models."""
    time, row = head_dim // 8, 3 * head_dim // 16
    return [time, row, head_dim // 2 - time - row]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new parameters in a precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def config_of(spec: ModelSpec) -> Any:
    """transformers' Qwen2VLConfig of a spec; no token ends an answer."""
    from transformers import Qwen2VLConfig

    token, vision = spec.video_token, spec.vision
    return Qwen2VLConfig(
        text_config={
            "vocab_size": spec.vocabulary, "hidden_size": spec.hidden, "intermediate_size": spec.intermediate,
            "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads, "max_position_embeddings": spec.context_tokens,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": mrope_sections(spec.head_dim),
            },
            "tie_word_embeddings": spec.tied, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
        },
        vision_config={
            "depth": vision.depth, "embed_dim": vision.embed_dim, "num_heads": vision.heads,
            "hidden_size": spec.hidden, "mlp_ratio": vision.mlp_hidden // vision.embed_dim,
        },
        tie_word_embeddings=spec.tied, image_token_id=token - 1, video_token_id=token,
        vision_start_token_id=token + 1, vision_end_token_id=token + 2,
    )  # fmt: skip
