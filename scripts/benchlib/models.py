"""Random-weight Qwen2-VL models for benchmarks: in memory on a device, or as a checkpoint folder."""

import functools
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, Qwen2VLForConditionalGeneration

from vidqa.devices.torch_device import default_dtype
from vidqa.engine.fused_decoder_selection import fuse
from vidqa.engine.prompt import PromptTokens
from vidqa.models.chat_template import ChatTemplate
from vidqa.models.config_validation import Values
from vidqa.models.families.qwen2_vl import RELEASED, check_config, spec_of
from vidqa.models.families.qwen2_vl.runtime import hf_config
from vidqa.models.hub import demo_folder
from vidqa.models.loader import DTYPES, Loaded, weights_bytes
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.models.vlm import VisionLanguageModel
from vidqa.types import Placement

FULL = {"2b": RELEASED["Qwen/Qwen2-VL-2B-Instruct"], "7b": RELEASED["Qwen/Qwen2-VL-7B-Instruct"]}
_WHOLE = Placement()
_VIDEO_TOKEN = 1001  # of the reduced models, whose vocabulary is small
_SPECIAL_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_TOKENIZER_FILES = ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def reduced(name: str, layers: int, width: int) -> ModelSpec:
    """Return the head layout of `2b` or `7b` with reduced width and depth, a small vocabulary and vision tower."""
    full = FULL[name]
    return replace(
        full, layers=layers, hidden=width, intermediate=4 * width, head_dim=width // full.heads, vocabulary=16384,
        video_token=_VIDEO_TOKEN, tied=False, vision=VisionSpec(layers, 320, 4, 14, 2, 2, 1280),
    )  # fmt: skip


def build(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, weights: str = "native", placement: Placement = _WHOLE
) -> Any:
    """Return a random model, created on the device one matrix after the other, without host copies or files.

    `weights` are `native`, or `int8`, `nf4` and `nf4-dq` by bitsandbytes in the parts that a loader would quantize
    (vidqa/models/loader.py); the placement is a plan's. The same numbers each time.
    """
    torch.manual_seed(0)
    with torch.device(device), default_dtype(dtype), _parameters_on_meta():
        model: Any = Qwen2VLForConditionalGeneration(hf_config(spec))
    model.set_attn_implementation("sdpa")  # what transformers' side runs by; vidqa's never calls it
    for path in [path for path, _ in model.named_modules()]:  # no list of modules: it would keep what is replaced
        module = model.get_submodule(path)
        if path == "lm_head" and spec.tied:
            module.weight = model.get_input_embeddings().weight
            continue
        host = placement.embedding_on_host and isinstance(module, nn.Embedding)
        for name, empty in list(module.named_parameters(recurse=False)):
            setattr(module, name, _random(empty, name, torch.device("cpu") if host else device, dtype))
        if weights not in ("native", *DTYPES) and isinstance(module, nn.Linear) and _quantized(path, spec, placement):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _small(module, weights, dtype))
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Create modules with parameters on the meta device, but with real buffers, which are computed."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _random(like: Tensor, name: str, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """Initialise as transformers does: small random matrices, norms of ones."""
    fresh = torch.empty(like.shape, device=device, dtype=dtype)
    fresh = fresh.fill_(1) if like.dim() == 1 and name == "weight" else fresh.normal_(0, 0.02)
    return nn.Parameter(fresh, requires_grad=False)


def _quantized(path: str, spec: ModelSpec, placement: Placement) -> bool:
    if path == "lm_head":
        return placement.lm_head_quantized and not spec.tied
    return placement.vision_quantized or not path.startswith("model.visual.")


def _small(linear: nn.Linear, weights: str, dtype: torch.dtype) -> Any:
    """Return bitsandbytes' layer with the same weight, quantized on its device."""
    import bitsandbytes

    bnb: Any = bitsandbytes.nn
    shape, device = (linear.in_features, linear.out_features, linear.bias is not None), linear.weight.device
    if weights == "int8":
        small = bnb.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
        small.weight = bnb.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False).to(device)
    else:
        nested = weights == "nf4-dq"
        small = bnb.Linear4bit(*shape, dtype, nested, "nf4", device="meta")
        packed = bnb.Params4bit(
            linear.weight.data, requires_grad=False, compress_statistics=nested, quant_type="nf4", module=small
        )
        small.weight = packed.to(device)
    small.bias = linear.bias
    return small


def copy_of(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a copy of the model, rounded to a precision."""
    with torch.device(device), default_dtype(dtype):
        other: Any = Qwen2VLForConditionalGeneration(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def load(
    model: Any, device: torch.device, dtype: torch.dtype, weights: str = "", placement: Placement = _WHOLE
) -> Loaded:
    """Return a model as the engine's loader does, with the demo model's tokenizer and no stop token."""
    spec = spec_of(check_config(Values("the benchmark's model", "", model.config.to_dict())))
    adapter = fuse(VisionLanguageModel(model, spec, device, dtype, weights_bytes(model)), sys.maxsize)
    template = ChatTemplate("", "the benchmark's model", {})  # prompts are token ids here
    return Loaded(adapter, _tokenizer(), frozenset(), weights or short_name(dtype), placement, template)


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_folder(), local_files_only=True)


def some_prompt() -> PromptTokens:
    """Return ids before and after a video that every vocabulary has."""
    return PromptTokens((5, 6, 7, 8, 3), (4, 9, 10, 11, 12, 13, 14, 15))


def short_name(dtype: torch.dtype) -> str:
    """Return the planner's name of a precision."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def write_random_model(spec: ModelSpec, folder: Path) -> None:
    """Write a checkpoint with random weights and the demo model's tokenizer, one shard per tensor."""
    from safetensors.torch import save_file

    demo = json.loads((demo_folder() / "config.json").read_text())
    config = hf_config(spec)
    for name in _SPECIAL_TOKENS:
        setattr(config, name, demo[name])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, name, demo["text_config"][name])
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    for name in _TOKENIZER_FILES:  # no processor's: the demo model's are those of another family
        shutil.copy(demo_folder() / name, folder)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
    index: dict[str, str] = {}
    for number, (name, parameter) in enumerate(model.state_dict().items()):
        if spec.tied and name == "lm_head.weight":
            continue
        shard = f"part-{number:04}.safetensors"
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        save_file({name: weight}, folder / shard, metadata={"format": "pt"})
        index[name] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
