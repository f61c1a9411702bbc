"""What a family changes in the demo model: its configuration, patches, prompt, vision tower and processors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidqa.models.families.qwen2_vl import RELEASED
from vidqa.models.families.qwen2_vl import runtime as qwen2_vl
from vidqa.models.families.qwen2_vl.spec import IMAGE_MEAN, IMAGE_STD
from vidqa.models.families.qwen3_vl import RELEASED as RELEASED_3
from vidqa.models.families.qwen3_vl import runtime as qwen3_vl

HIDDEN, VISION_WIDTH, HEAD_DIM = 192, 128, 32
SPEC, SPEC_3 = RELEASED["Qwen/Qwen2-VL-2B-Instruct"], RELEASED_3["Qwen/Qwen3-VL-2B-Instruct"]  # for patches
_LANGUAGE = {
    "hidden_size": HIDDEN, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip

# (height, width, weight): mostly what the default plan gives real clips, 9 to 24 tokens of a slice.
_SIZES = (
    (3, 3, 12), (3, 4, 10), (4, 3, 5), (4, 4, 14), (4, 5, 16), (5, 4, 6), (3, 5, 8), (3, 6, 14), (6, 3, 4), (4, 6, 10),
    (6, 4, 4), (3, 7, 2), (3, 8, 2), (5, 5, 2), (8, 3, 1), (8, 8, 0.3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """A family of demo models.

    `token_pixels` is a token's side; `layout` returns a prompt's pieces between the text before and after a video:
    strings, and numbers of slices. `encode` returns embeddings (slices, tokens, hidden), and further ones that
    the decoder's first layers add. `timed` families read the times of frames.
    """

    name: str
    architecture: str
    token_pixels: int
    mean: Sequence[float]
    std: Sequence[float]
    timed: bool
    video_processor: str
    build: Callable[[Any], Any]
    patches: Callable[[Tensor], Tensor]
    layout: Callable[[Sequence[float]], list[str | int]]
    encode: Callable[[Any, Tensor, int, int], tuple[Tensor, list[Tensor]]]

    @property
    def sizes(self) -> tuple[tuple[int, int, float], ...]:
        """Heights and widths in pixels, and how often they are drawn."""
        return tuple((rows * self.token_pixels, columns * self.token_pixels, often) for rows, columns, often in _SIZES)


def _special(tokenizer: Any) -> dict[str, Any]:
    token = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": True,
    }  # fmt: skip


def _language(tokenizer: Any, rope: dict[str, Any]) -> dict[str, Any]:
    token = tokenizer.convert_tokens_to_ids
    return _LANGUAGE | {
        "vocab_size": len(tokenizer), "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} | rope,
        "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }  # fmt: skip


def _qwen2_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 3, "embed_dim": VISION_WIDTH, "num_heads": 4, "hidden_size": HIDDEN, "mlp_ratio": 4}
    text = _language(tokenizer, {"mrope_section": [4, 6, 6]})
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **_special(tokenizer))
    return Qwen2VLForConditionalGeneration(config)


def _qwen3_vl(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 3, "hidden_size": VISION_WIDTH, "num_heads": 4, "intermediate_size": 4 * VISION_WIDTH,
        "out_hidden_size": HIDDEN, "patch_size": 16, "num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = _language(tokenizer, {"mrope_section": [6, 5, 5], "mrope_interleaved": True}) | {"head_dim": HEAD_DIM}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_special(tokenizer))
    return Qwen3VLForConditionalGeneration(config)


def _qwen3_encode(tower: Any, patches: Tensor, rows: int, columns: int) -> tuple[Tensor, list[Tensor]]:
    """Encode all slices; the DeepStack features lie beside the embeddings."""
    seen, *further = torch.split(qwen3_vl.encode(tower, patches, rows, columns), HIDDEN, dim=-1)
    return seen, [features.flatten(0, 1) for features in further]


def _qwen2_layout(slice_seconds: Sequence[float]) -> list[str | int]:
    return ["<|vision_start|>", len(slice_seconds), "<|vision_end|>"]


def _qwen3_layout(slice_seconds: Sequence[float]) -> list[str | int]:
    pieces: list[str | int] = []
    for seconds in slice_seconds:
        pieces += [f"<{seconds:.1f} seconds><|vision_start|>", 1, "<|vision_end|>"]
    return pieces


RECIPES = {
    "qwen2_vl": Recipe(
        "qwen2_vl", "Qwen2-VL", 28, IMAGE_MEAN, IMAGE_STD, False, "Qwen2VLVideoProcessor", _qwen2_vl,
        lambda pixels: qwen2_vl.to_patches(pixels, SPEC), _qwen2_layout,
        lambda tower, patches, rows, columns: (qwen2_vl.encode(tower, patches, rows, columns), []),
    ),
    "qwen3_vl": Recipe(
        "qwen3_vl", "Qwen3-VL", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True, "Qwen3VLVideoProcessor", _qwen3_vl,
        lambda pixels: qwen3_vl.to_patches(pixels, SPEC_3), _qwen3_layout, _qwen3_encode,
    ),
}  # fmt: skip
