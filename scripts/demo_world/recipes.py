"""What a family changes in the demo model: its configuration, patches, prompt, vision tower and processors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from vidqa.models.families.qwen2_vl import RELEASED
from vidqa.models.families.qwen2_vl.runtime import encode, to_patches

HIDDEN, VISION_WIDTH, HEAD_DIM = 192, 128, 32
SPEC = RELEASED["Qwen/Qwen2-VL-2B-Instruct"]  # its patches and positions are the demo model's
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
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


def _qwen3_patches(pixels: Tensor) -> Tensor:
    """Cut (n, 3, height, width) uint8 into (slices, patches, 1536), normalised to -1 to 1, tokens' patches together."""
    count, channels, height, width = pixels.shape
    rows, columns = height // 16, width // 16
    scaled = pixels.float().div_(127.5).sub_(1.0)
    cut = scaled.view(count // 2, 2, channels, rows // 2, 2, 16, columns // 2, 2, 16).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(count // 2, rows * columns, -1)


def _qwen3_encode(tower: Any, patches: Tensor, rows: int, columns: int) -> tuple[Tensor, list[Tensor]]:
    """Encode all slices in one batched call; transformers loops over them."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    grid = torch.tensor([[1, rows, columns]], device=patches.device)
    merge = tower.spatial_merge_size
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=tower.num_grid_per_side, align_corners=True, spatial_merge_size=merge
    )
    projection = tower.patch_embed.proj
    hidden = linear(patches, projection.weight.flatten(1), projection.bias)
    hidden = hidden + (tower.pos_embed(indices) * weights[:, :, None]).sum(1)
    cosine, sine = tower.rotary_pos_emb(hidden, get_vision_position_ids(grid, merge))
    slices, further = len(hidden), []
    for number, block in enumerate(tower.blocks):
        hidden = hidden + _attention(block.attn, block.norm1(hidden), cosine, sine)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in tower.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(number)]
            further.append(merger(hidden.flatten(0, 1)))
    return tower.merger(hidden.flatten(0, 1)).view(slices, -1, HIDDEN), further


def _attention(attention: Any, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    slices, count, width = states.shape
    parts = attention.qkv(states).view(slices, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)

    def turned(part: Tensor) -> Tensor:
        first, second = part.chunk(2, dim=-1)
        return part * cosine + torch.cat((-second, first), dim=-1) * sine

    mixed = scaled_dot_product_attention(turned(query), turned(key), value)
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(slices, count, width))
    return out


def _qwen2_layout(slice_seconds: Sequence[float]) -> list[str | int]:
    return ["<|vision_start|>", len(slice_seconds), "<|vision_end|>"]


def _qwen3_layout(slice_seconds: Sequence[float]) -> list[str | int]:
    pieces: list[str | int] = []
    for seconds in slice_seconds:
        pieces += [f"<{seconds:.1f} seconds><|vision_start|>", 1, "<|vision_end|>"]
    return pieces


RECIPES = {
    "qwen2_vl": Recipe(
        "qwen2_vl", 28, _CLIP_MEAN, _CLIP_STD, False, "Qwen2VLVideoProcessor", _qwen2_vl,
        lambda pixels: to_patches(pixels, SPEC), _qwen2_layout,
        lambda tower, patches, rows, columns: (encode(tower, patches, rows, columns), []),
    ),
    "qwen3_vl": Recipe(
        "qwen3_vl", 32, [0.5] * 3, [0.5] * 3, True, "Qwen3VLVideoProcessor", _qwen3_vl, _qwen3_patches, _qwen3_layout,
        _qwen3_encode,
    ),
}  # fmt: skip
