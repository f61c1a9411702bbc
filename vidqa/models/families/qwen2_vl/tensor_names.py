"""The tensors that a Qwen2-VL needs, by name and shape, and whether a checkpoint's files have them.

Names and shapes follow transformers' Qwen2VLForConditionalGeneration. Knows no torch.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from vidqa.errors import ModelError
from vidqa.models.families.qwen2_vl.spec import ModelSpec
from vidqa.models.weight_files import StoredTensor, stored_tensors

Shape = tuple[int, ...]
_FLOATS = ("F64", "F32", "F16", "BF16")
_NF4 = ".quant_state.bitsandbytes__nf4"
# transformers/conversion_mapping.py, Qwen2VLModel and Qwen2VLForConditionalGeneration.
_RENAMED = (
    (re.compile(r"^(visual|language_model)\."), r"model.\1."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)


def check_tensors(folder: Path, spec: ModelSpec) -> None:
    """Raise ModelError that names the first tensor which is missing, or has another shape than config.json says."""
    if spec.stored is not None and spec.stored.method == "bitsandbytes" and not spec.stored.quantized:
        raise ModelError(
            f"{folder / 'config.json'}: quantization_config says bitsandbytes, and no tensor is quantized.",
            "Take quantization_config away, or fetch the model again with `vidqa pull`.",
        )
    stored = {_canonical(tensor.name): tensor for tensor in stored_tensors(folder)}
    for name, shape in needed_tensors(spec):
        if spec.stored is None:
            _check_plain(folder, name, shape, stored.get(name))
        else:
            _check_quantized(folder, name, shape, stored)


def _check_plain(folder: Path, name: str, shape: Shape, found: StoredTensor | None) -> None:
    if found is None:
        raise ModelError(
            f"The model in {folder} has no tensor {name}, {list(shape)}, which config.json calls for.",
            "Fetch the model again with `vidqa pull`.",
        )
    if found.shape != shape or found.dtype not in _FLOATS:
        raise ModelError(
            f"{found.path}: {found.name} is {found.dtype} {list(found.shape)}; config.json calls for "
            f"{list(shape)} in {', '.join(_FLOATS[1:])} or {_FLOATS[0]}.",
            "Fetch the model again with `vidqa pull`.",
        )


def _check_quantized(folder: Path, name: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> None:
    """A matrix may be there as bitsandbytes' 4-bit or 8-bit codes, or as AWQ's and GPTQ's `qweight`."""
    found, scaled = stored.get(name), name.removesuffix(".weight")
    if found is None and f"{scaled}.qweight" in stored:
        return
    plain = StoredTensor(name, "F32", shape, 0, folder)
    packed = found is not None and (
        (found.dtype == "I8" and f"{scaled}.SCB" in stored and found.shape == shape)
        or (name + _NF4 in stored and 2 * found.stored_bytes in (plain.values, plain.values + 1))
    )
    if not packed:
        _check_plain(folder, name, shape, found)


def _canonical(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def needed_tensors(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor that the model cannot do without."""
    hidden = spec.hidden
    yield "model.language_model.embed_tokens.weight", (spec.vocabulary, hidden)
    for layer in range(spec.layers):
        yield from _prefixed(f"model.language_model.layers.{layer}.", _layer(spec))
    yield "model.language_model.norm.weight", (hidden,)
    if not spec.tied:
        yield "lm_head.weight", (spec.vocabulary, hidden)
    yield from _prefixed("model.visual.", _tower(spec))


def _prefixed(prefix: str, tensors: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    return ((prefix + name, shape) for name, shape in tensors.items())


def _layer(spec: ModelSpec) -> dict[str, Shape]:
    hidden, wide, kv = spec.hidden, spec.intermediate, spec.kv_heads * spec.head_dim
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **_linear("self_attn.q_proj", hidden, hidden),
        **_linear("self_attn.k_proj", kv, hidden),
        **_linear("self_attn.v_proj", kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }


def _tower(spec: ModelSpec) -> dict[str, Shape]:
    tower = spec.vision
    width, merged = tower.embed_dim, tower.embed_dim * tower.merge**2
    block = {
        **_norm("norm1", width),
        **_norm("norm2", width),
        **_linear("attn.qkv", 3 * width, width),
        **_linear("attn.proj", width, width),
        **_linear("mlp.fc1", tower.mlp_hidden, width),
        **_linear("mlp.fc2", width, tower.mlp_hidden),
    }
    blocks = {f"blocks.{number}.{name}": shape for number in range(tower.depth) for name, shape in block.items()}
    return {
        "patch_embed.proj.weight": (width, 3, tower.temporal_patch, tower.patch, tower.patch),
        **blocks,
        **_norm("merger.ln_q", width),
        **_linear("merger.mlp.0", merged, merged),
        **_linear("merger.mlp.2", spec.hidden, merged),
    }


def _linear(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
