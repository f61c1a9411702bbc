"""A checkpoint folder to a model on a device. Safetensors only, no code from the checkpoint.

Knows transformers' loading; decides nothing about memory.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidqa.errors import ModelError, UsageError
from vidqa.models.attention import register
from vidqa.models.qwen2_vl import Qwen2VL
from vidqa.models.specs import read_spec


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, its tokenizer, and the token ids that end an answer."""

    model: Qwen2VL
    tokenizer: Any
    stop_ids: frozenset[int]


def choose_device(choice: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` names; raises UsageError if absent."""
    if choice == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(choice)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"The device {choice!r} cannot be used: {str(error).splitlines()[0]}.", "Use --device auto or cpu."
        ) from error
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """The precision to compute in: bf16 where the device has it, fp16 on older GPUs, fp32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Loaded:
    """Load weights and tokenizer from a local folder; raises ModelError when they are incomplete."""
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    spec = read_spec(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"The model in {folder} cannot be loaded: {_first_line(error)}", "Fetch it again with `vidqa pull`."
        ) from error
    model.eval()
    model.set_attn_implementation({"text_config": register(), "vision_config": "sdpa"})
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _chat_template(folder)
    weights_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    adapter = Qwen2VL(model=model, spec=spec, device=device, dtype=dtype, weights_bytes=weights_bytes)
    return Loaded(adapter, tokenizer, _stop_ids(model, tokenizer))


def _chat_template(folder: Path) -> str:
    """Older checkpoints keep the template with the processor, in chat_template.json."""
    path = folder / "chat_template.json"
    if not path.exists():
        raise ModelError(f"The model in {folder} has no chat template.", "Use a Qwen2-VL *instruct* checkpoint.")
    return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"])


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
