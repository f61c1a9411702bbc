"""A checkpoint folder's config.json and tensors: read as numbers, and checked before anything is computed with them.

No torch and no transformers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError
from vidqa.models.family import ModelFamily, Shape, families, family_of, find_family, runnable_types
from vidqa.models.json_rules import Values, read_object, shown
from vidqa.models.quantized_checkpoint import check_quantization, read_stored
from vidqa.models.spec import ModelSpec
from vidqa.models.weight_files import StoredTensor, stored_tensors
from vidqa.types import PixelBounds

LANGUAGE_PREFIX, VISION_PREFIX = "model.language_model.", "model.visual."
_FLOATS = ("F64", "F32", "F16", "BF16")
_NF4 = ".quant_state.bitsandbytes__nf4"


def read_spec(folder: Path) -> ModelSpec:
    """Read config.json of a checkpoint folder; raise ModelError for what cannot be planned."""
    config = read_config(folder)
    return replace(_family(config).spec_of(config), stored=read_stored(folder, config.get("quantization_config")))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checked values of config.json as transformers' configuration takes them; raise ModelError."""
    path = folder / "config.json"
    values = Values(path, "", read_object(path))
    config, quantization = _checked(values), check_quantization(values)
    return config if quantization is None else config | {"quantization_config": quantization}


def parse_spec(config: Mapping[str, Any], name: str) -> ModelSpec:
    """Return a checkpoint's config as numbers; raise ModelError for other models and for values that cannot be."""
    checked = _checked(Values(name, "", config))
    return _family(checked).spec_of(checked)


def read_bounds(folder: Path, spec: ModelSpec) -> PixelBounds:
    """Return pixel and frame bounds of a checkpoint's *video* processor, else the family's own; raise ModelError."""
    return family_of(spec).read_bounds(folder)


def check_supported(spec: ModelSpec, name: str) -> None:
    """Raise ModelError for what can be planned and not run, or not without a library that is missing."""
    if spec.stored is not None:
        spec.stored.check_installed(name)
    if spec.model_type not in runnable_types():
        raise ModelError(
            f"{name} is a {spec.model_type!r} checkpoint: it can be planned, but vidqa runs "
            f"{' and '.join(runnable_types())} so far.",
            f"Choose for example --model {suggested_model()}.",
        )


def suggested_model() -> str:
    """Return the smallest released checkpoint that runs, for messages."""
    first = families()[0]
    return next(iter(first.SHORT_NAMES.values()))


def _checked(values: Values) -> dict[str, Any]:
    model_type = values.values.get("model_type")
    family = find_family(model_type)
    if family is None:
        raise ModelError(
            f"{values.path}: model_type is {shown(model_type)}; vidqa runs {' and '.join(runnable_types())}.",
            f"Choose for example --model {suggested_model()}.",
        )
    return family.check_config(values)


def _family(config: Mapping[str, Any]) -> ModelFamily:
    family = find_family(config["model_type"])
    assert family is not None
    return family


def check_tensors(folder: Path, spec: ModelSpec) -> None:
    """Raise ModelError that names the first tensor which is missing, or has another shape than config.json says."""
    if spec.stored is not None and spec.stored.method == "bitsandbytes" and not spec.stored.quantized:
        raise ModelError(
            f"{folder / 'config.json'}: quantization_config says bitsandbytes, and no tensor is quantized.",
            "Take quantization_config away, or fetch the model again with `vidqa pull`.",
        )
    canonical = family_of(spec).canonical_name
    stored = {canonical(tensor.name): tensor for tensor in stored_tensors(folder)}
    for name, shape in tensor_shapes(spec):
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


def tensor_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of a checkpoint."""
    hidden = spec.hidden
    yield f"{LANGUAGE_PREFIX}embed_tokens.weight", (spec.vocabulary, hidden)
    for layer in range(spec.layers):
        for name, shape in _layer_shapes(spec).items():
            yield f"{LANGUAGE_PREFIX}layers.{layer}.{name}", shape
    yield f"{LANGUAGE_PREFIX}norm.weight", (hidden,)
    if not spec.tied:
        yield "lm_head.weight", (spec.vocabulary, hidden)
    for name, shape in family_of(spec).vision_shapes(spec):
        yield VISION_PREFIX + name, shape


def _layer_shapes(spec: ModelSpec) -> dict[str, Shape]:
    hidden, wide, queries, kv = spec.hidden, spec.intermediate, spec.query_width, spec.kv_heads * spec.head_dim
    shapes: dict[str, Shape] = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    for name, width in (("q_proj", queries), ("k_proj", kv), ("v_proj", kv)):
        shapes[f"self_attn.{name}.weight"] = (width, hidden)
        if spec.attention_bias:
            shapes[f"self_attn.{name}.bias"] = (width,)
    if spec.qk_norm:
        shapes |= {f"self_attn.{name}.weight": (spec.head_dim,) for name in ("q_norm", "k_norm")}
    return shapes | {
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
