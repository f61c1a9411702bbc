"""Export of a trained demo model in transformers' format, with its processors' bounds."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

MIN_PIXELS = 84 * 84  # 9 tokens per temporal slice
MAX_PIXELS = 224 * 84  # 24 tokens per temporal slice
MIN_FRAMES, MAX_FRAMES = 4, 16
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
_COMMON = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "rescale_factor": 1 / 255, "resample": 3,
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
}  # fmt: skip


def export_model(model: Any, tokenizer: Any, folder: Path) -> None:
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
    _write(folder / "preprocessor_config.json", _COMMON | {"image_processor_type": "Qwen2VLImageProcessor"})
    video = {
        "video_processor_type": "Qwen2VLVideoProcessor", "fps": 2.0, "min_frames": MIN_FRAMES, "max_frames": MAX_FRAMES,
        "do_sample_frames": False,
    }  # fmt: skip
    _write(folder / "video_preprocessor_config.json", _COMMON | video)
    (folder / "model.safetensors").chmod(0o644)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
