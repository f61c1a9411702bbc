"""Tiny random Qwen2-VL models with the real head layouts, and transformers' own models of the same weights."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from vidqa.engine.kv_cache import KVCache
from vidqa.engine.prefill import Prefill
from vidqa.models.attention.selector import Kernel
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.models.vlm import VisionLanguageModel

VIDEO_TOKEN = 501
HEAD = (5, 6, 7, 502)
TAIL = (503, 9, 10, 11, 12)
HEAD_LAYOUTS = {"2B": (12, 2), "7B": (28, 4)}


@dataclass(frozen=True)
class Pair:
    """The same weights twice: transformers' model and vidqa's adapter."""

    oracle: Qwen2VLForConditionalGeneration
    ours: VisionLanguageModel


def _config(heads: int, kv_heads: int) -> Qwen2VLConfig:
    hidden = heads * 16
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 512, "hidden_size": hidden, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
        },
        vision_config={"depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": hidden, "mlp_ratio": 2},
        image_token_id=500, video_token_id=VIDEO_TOKEN, vision_start_token_id=502, vision_end_token_id=503,
    )  # fmt: skip


@cache
def pair(layout: str) -> Pair:
    """A deterministic pair with the head layout of `2B` or `7B`."""
    heads, kv_heads = HEAD_LAYOUTS[layout]
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(Qwen2VLForConditionalGeneration(_config(heads, kv_heads)).eval())
    oracle, model = models
    with torch.no_grad():  # default initialisation is near zero: the logits would all be alike
        for one, other in zip(oracle.parameters(), model.parameters(), strict=True):
            if one.dim() > 1:
                one.mul_(3)
            other.copy_(one)
    tower = VisionSpec(2, 64, 4, 14, 2, 2, 128)
    spec = ModelSpec(
        "qwen2_vl", 2, heads * 16, 96, heads, kv_heads, 16, 512, 32768, VIDEO_TOKEN, tied=False, vision=tower
    )  # fmt: skip
    return Pair(oracle, VisionLanguageModel(model, spec, torch.device("cpu"), torch.float32, 0))


def prefill_all(
    model: VisionLanguageModel, embeddings: Tensor, positions: Tensor, cache: KVCache, kernel: Kernel, chunk: int
) -> Tensor:
    """Run a whole prompt (n, hidden) at (3, n) positions; the logits (1, vocabulary) after it."""
    prefill = Prefill(model, kernel, chunk)
    for _ in (*prefill.push(cache, embeddings, positions), *prefill.flush(cache)):
        pass
    return prefill.logits(cache)


def random_patches(slices: int, rows: int, columns: int) -> Tensor:
    """Patches (slices, rows·columns, 1176) that look like normalised pixels."""
    return torch.randn(slices, rows * columns, 1176, generator=torch.Generator().manual_seed(slices * rows * columns))


def oracle_inputs(patches: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
    """What transformers' forward and generate take for HEAD, a video and TAIL."""
    slices = patches.shape[0]
    ids = torch.tensor([[*HEAD, *[VIDEO_TOKEN] * (slices * rows * columns // 4), *TAIL]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == VIDEO_TOKEN).int() * 2,
        "pixel_values_videos": patches.flatten(0, 1),
        "video_grid_thw": torch.tensor([[slices, rows, columns]]),
    }
