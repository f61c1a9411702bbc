"""Export of a trained demo model in transformers' format, with its processors' bounds and what it knows."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from demo_world.domain import training_domain
from demo_world.recipes import Recipe
from vidqa.models.training_domain import DOMAIN_FILE

MIN_TOKENS, MAX_TOKENS = 9, 24  # of a temporal slice
MIN_FRAMES, MAX_FRAMES = 4, 16


def pixel_bounds(recipe: Recipe) -> tuple[int, int]:
    """Return the least and the most pixels of a frame."""
    return MIN_TOKENS * recipe.token_pixels**2, MAX_TOKENS * recipe.token_pixels**2


def _common(recipe: Recipe) -> dict[str, Any]:
    least, most = pixel_bounds(recipe)
    return {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": list(recipe.mean), "image_std": list(recipe.std), "rescale_factor": 1 / 255, "resample": 3,
        "patch_size": recipe.token_pixels // 2, "temporal_patch_size": 2, "merge_size": 2,
        "size": {"shortest_edge": least, "longest_edge": most},
    }  # fmt: skip


def _video(recipe: Recipe) -> dict[str, Any]:
    least, most = pixel_bounds(recipe)
    video = {
        "video_processor_type": recipe.video_processor, "fps": 2.0, "min_frames": MIN_FRAMES, "max_frames": MAX_FRAMES,
        "do_sample_frames": False,
    }  # fmt: skip
    if recipe.timed:  # this family's size bounds the pixels of all frames, of two at least
        size = {"shortest_edge": 2 * least, "longest_edge": most * MAX_FRAMES}
        video |= {"size": size, "max_video_tokens": MAX_TOKENS, "cap_pixels_per_frame": True}
    return video


def export_model(model: Any, tokenizer: Any, folder: Path, recipe: Recipe) -> None:
    """Save weights in bfloat16, tokenizer, generation defaults and processor configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    token = tokenizer.convert_tokens_to_ids
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=token("<|endoftext|>"),
        pad_token_id=token("<|endoftext|>"),
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
    )
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    common = _common(recipe)
    _write(folder / "preprocessor_config.json", common | {"image_processor_type": "Qwen2VLImageProcessor"})
    _write(folder / "video_preprocessor_config.json", common | _video(recipe))
    _write(folder / DOMAIN_FILE, training_domain())
    (folder / "model.safetensors").chmod(0o644)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
