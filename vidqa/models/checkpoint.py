"""A checkpoint folder's config.json and stored tensors, checked before other libraries read them. No torch."""

import importlib.util
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidqa.devices.device import rounded
from vidqa.errors import ModelError
from vidqa.models.config_validation import (
    Boolean,
    Integer,
    ListOf,
    Number,
    OneOf,
    Rule,
    Text,
    Values,
    quoted,
    read_object,
)
from vidqa.models.family import ModelFamily, Shape, families, family_of, find_family, runnable_types
from vidqa.models.spec import ModelSpec, StoredWeights
from vidqa.models.weight_files import StoredTensor, stored_tensors

_LANGUAGE_PREFIX, _VISION_PREFIX = "model.language_model.", "model.visual."
_FETCH_AGAIN = "Fetch the model again with `vidqa pull`."
_FLOATS = {"F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}  # and their names in a plan
_NF4 = ".quant_state.bitsandbytes__nf4"
# The libraries that transformers' quantizers need: quantizers/quantizer_{bnb_4bit,awq,gptq}.py.
_LIBRARIES = {"bitsandbytes": ("bitsandbytes",), "awq": ("gptqmodel",), "gptq": ("optimum", "gptqmodel")}
_UNQUANTIZED = "use the unquantized checkpoint with --weights int8 or nf4."
_PARTS = ("embedding", "layers", "lm_head", "vision")
_ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # others: 1
_PACKED = ("U8", "I8", "I32", "I16")
_ONLY_READ = (".weight_format", _NF4)  # read while loading, not on the device afterwards
_DTYPES = ("float32", "float16", "bfloat16")
_NAMES = ListOf(Text(256), 0, 4096, None)
_GROUPS: dict[str, Rule] = {"bits": Integer(2, 8, 4), "group_size": Integer(-1, 2**16, 128)}
# Keys of transformers' BitsAndBytesConfig, AwqConfig and GPTQConfig that say how the files are to be read.
_QUANTIZATION: dict[str, dict[str, Rule]] = {
    "bitsandbytes": {
        "load_in_4bit": Boolean(False), "load_in_8bit": Boolean(False),
        "llm_int8_threshold": Number(0.0, 1e6, 6.0), "llm_int8_skip_modules": _NAMES,
        "llm_int8_enable_fp32_cpu_offload": Boolean(False), "llm_int8_has_fp16_weight": Boolean(False, only=False),
        "bnb_4bit_compute_dtype": OneOf(_DTYPES, None), "bnb_4bit_quant_type": Text(16, "fp4"),
        "bnb_4bit_use_double_quant": Boolean(False), "bnb_4bit_quant_storage": OneOf((*_DTYPES, "uint8"), None),
    },
    "awq": _GROUPS | {
        "zero_point": Boolean(True), "version": Text(16, None), "format": Text(16, "gemm"),
        "modules_to_not_convert": _NAMES,
    },
    "gptq": _GROUPS | {
        "desc_act": Boolean(False), "sym": Boolean(True), "true_sequential": Boolean(True),
        "static_groups": Boolean(False), "damp_percent": Number(0.0, 1.0, 0.1),
        "checkpoint_format": Text(16, None), "format": Text(16, "gptq"),
        "modules_in_block_to_quantize": ListOf(_NAMES, 0, 64, None), "block_name_to_quantize": Text(256, None),
    },
}  # fmt: skip


def read_spec(folder: Path) -> ModelSpec:
    """Read config.json of a checkpoint folder; raise ModelError if the model cannot be planned."""
    config = read_config(folder)
    spec = _family(config, folder / "config.json").spec_of(config)
    return replace(spec, stored=_read_stored(folder, config.get("quantization_config")))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checked values of config.json as transformers' configuration takes them; raise ModelError."""
    path = folder / "config.json"
    values = Values(path, "", read_object(path))
    config, quantization = _family(values.values, path).check_config(values), _check_quantization(values)
    return config if quantization is None else config | {"quantization_config": quantization}


def _family(config: Mapping[str, Any], path: Path) -> ModelFamily:
    family = find_family(config.get("model_type"))
    if family is None:
        raise ModelError(
            f"{path}: model_type is {quoted(config.get('model_type'))}; vidqa runs {_families_that_run()}.",
            f"Choose for example --model {suggested_model()}.",
        )
    return family


def _families_that_run() -> str:
    """Return the families with their model types, for messages."""
    names = [f"{one.TITLE} ({', '.join(one.RUNNABLE_TYPES)})" for one in families() if one.RUNNABLE_TYPES]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def suggested_model() -> str:
    """Return the smallest released checkpoint that runs, for messages."""
    return min((name for family in families() for name in family.SHORT_NAMES.values()), key=download_bytes)


def download_bytes(name: str) -> int:
    """Return the bytes of a released checkpoint's weights, which are in 16-bit."""
    spec = next(family.RELEASED[name] for family in families() if name in family.RELEASED)
    return 2 * sum(math.prod(shape) for _, shape in tensor_shapes(spec))


def check_supported(spec: ModelSpec, name: str) -> None:
    """Raise ModelError for a type that can be planned and not run, or if a library that the weights need is missing."""
    if spec.stored is not None:
        method = spec.stored.method
        absent = [library for library in _LIBRARIES[method] if importlib.util.find_spec(library) is None]
        if absent:
            raise ModelError(
                f"{name} is stored quantized by {method}, which needs {' and '.join(absent)}: not installed here.",
                f"Install what is missing with `pip install {' '.join(absent)}`, or {_UNQUANTIZED}",
            )
    if spec.model_type not in runnable_types():
        kind = f"a {spec.model_type!r} checkpoint{', with experts in its layers' if spec.experts else ''}"
        raise ModelError(
            f"{name} is {kind}: it can be planned and not run. vidqa runs {_families_that_run()}.",
            f"Choose for example --model {suggested_model()}.",
        )


def _check_quantization(config: Values) -> dict[str, Any] | None:
    """Return the checked `quantization_config` of a config.json, None if there is none.

    Raise ModelError for methods that vidqa does not load and for impossible values.
    """
    nested = not config.values.get("quantization_config") and config.values.get("text_config") is not None
    section = config.inner("text_config") if nested else config
    if not section.values.get("quantization_config"):
        return None
    values = section.inner("quantization_config")
    method = str(values.values.get("quant_method") or "bitsandbytes").lower()
    if method not in _LIBRARIES:
        raise ModelError(
            f"{config.path}: the weights are quantized by {quoted(method)}; "
            f"vidqa loads {', '.join(_LIBRARIES)} checkpoints.",
            _UNQUANTIZED.capitalize(),
        )
    checked = values.checked(_QUANTIZATION[method]) | {"quant_method": method}
    if method == "bitsandbytes" and checked["load_in_4bit"] == checked["load_in_8bit"]:
        values.refuse("load_in_4bit", checked["load_in_4bit"], "must be true, or load_in_8bit, and not both")
    if checked.get("load_in_4bit") and checked["bnb_4bit_quant_type"] != "nf4":
        raise ModelError(
            f"{config.path}: the weights are stored in bitsandbytes' {checked['bnb_4bit_quant_type']}; "
            "vidqa plans nf4 and int8.",
            _UNQUANTIZED.capitalize(),
        )
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in checked.items() if value is not None
    }


def _read_stored(folder: Path, quantization: Mapping[str, Any] | None) -> StoredWeights | None:
    """Return the method of a checked `quantization_config` and the bytes in the files' headers, None if there is none.

    Headers give the type and shape of every tensor, so bytes are exact for every method and every skipped module.
    """
    if quantization is None:
        return None
    sizes, packed = Counter[tuple[str, int]](), set[str]()
    for tensor in stored_tensors(folder):
        part = part_of(tensor.name)
        for element_bytes in (2, 4):
            sizes[part, element_bytes] += _loaded_bytes(tensor, element_bytes)
        if tensor.dtype in _PACKED and math.prod(tensor.shape) > 1:
            packed.add(part)
    table = tuple((part, sizes[part, 2], sizes[part, 4]) for part in _PARTS if sizes[part, 2])
    return StoredWeights(quantization["quant_method"], _precision(quantization), table, tuple(sorted(packed)))


def _precision(quantization: Mapping[str, Any]) -> str:
    """Return the precision as a plan names it."""
    if (method := str(quantization["quant_method"])) != "bitsandbytes":
        return method
    if quantization["load_in_8bit"]:
        return "int8"
    return "nf4-dq" if quantization["bnb_4bit_use_double_quant"] else "nf4"


def part_of(name: str) -> str:
    """Return the part of the model that a tensor belongs to: vision, embedding, lm_head or layers."""
    if "visual." in name:
        return "vision"
    if "embed_tokens." in name:
        return "embedding"
    return "lm_head" if name.startswith("lm_head.") else "layers"


def _loaded_bytes(tensor: StoredTensor, element_bytes: int) -> int:
    """Return bytes on the device: of unquantized tensors in the compute precision, of all others as stored."""
    if tensor.name.endswith(_ONLY_READ):
        return 0
    plain = tensor.dtype in ("F32", "F16", "BF16") and tensor.name.endswith((".weight", ".bias"))
    size = math.prod(tensor.shape) * (element_bytes if plain else _ELEMENT_BYTES.get(tensor.dtype, 1))
    return rounded(size)


def check_tensors(folder: Path, spec: ModelSpec) -> None:
    """Raise ModelError for the first tensor that is missing or has another shape than config.json says."""
    if spec.stored is not None and spec.stored.method == "bitsandbytes" and not spec.stored.quantized:
        raise ModelError(
            f"{folder / 'config.json'}: quantization_config says bitsandbytes, and no tensor is quantized.",
            "Remove quantization_config, or fetch the model again with `vidqa pull`.",
        )
    canonical = family_of(spec).canonical_name
    stored = {canonical(tensor.name): tensor for tensor in stored_tensors(folder)}
    for name, shape in tensor_shapes(spec):
        if spec.stored is None or not _is_quantized(name, shape, stored):
            _check_plain(folder, name, shape, stored.get(name))


def stored_dtype(folder: Path) -> str:
    """Return the precision that most bytes of unquantized tensors are stored in; F64 counts as fp32."""
    sizes = Counter[str]()
    for tensor in stored_tensors(folder):
        if tensor.dtype in _FLOATS:
            sizes[_FLOATS[tensor.dtype]] += tensor.stored_bytes
    return max(sizes, key=sizes.__getitem__, default="bf16")


def _check_plain(folder: Path, name: str, shape: Shape, found: StoredTensor | None) -> None:
    if found is None:
        what = f"The model in {folder} has no tensor {name}, {list(shape)}, which config.json calls for."
        raise ModelError(what, _FETCH_AGAIN)
    if found.shape != shape or found.dtype not in _FLOATS:
        raise ModelError(
            f"{found.path}: {found.name} is {found.dtype} {list(found.shape)}; config.json calls for "
            f"{list(shape)} in F32, F16, BF16 or F64.",
            _FETCH_AGAIN,
        )


def _is_quantized(name: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> bool:
    """Return whether a matrix is stored as bitsandbytes' 4-bit or 8-bit codes, or as `qweight` of AWQ and GPTQ."""
    found, module = stored.get(name), name.removesuffix(".weight")
    if found is None:
        return f"{module}.qweight" in stored
    values = math.prod(shape)
    int8 = found.dtype == "I8" and f"{module}.SCB" in stored and found.shape == shape
    return int8 or (name + _NF4 in stored and 2 * found.stored_bytes in (values, values + 1))


def tensor_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of a checkpoint."""
    yield f"{_LANGUAGE_PREFIX}embed_tokens.weight", (spec.vocabulary, spec.hidden)
    for layer in range(spec.layers):
        for name, shape in _layer_shapes(spec).items():
            yield f"{_LANGUAGE_PREFIX}layers.{layer}.{name}", shape
    yield f"{_LANGUAGE_PREFIX}norm.weight", (spec.hidden,)
    if not spec.tied:
        yield "lm_head.weight", (spec.vocabulary, spec.hidden)
    for name, shape in family_of(spec).vision_shapes(spec):
        yield _VISION_PREFIX + name, shape


def _layer_shapes(spec: ModelSpec) -> dict[str, Shape]:
    hidden, wide, queries, kv = spec.hidden, spec.intermediate, spec.query_width, spec.kv_heads * spec.head_dim
    shapes: dict[str, Shape] = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    for name, width in (("q_proj", queries), ("k_proj", kv), ("v_proj", kv)):
        shapes[f"self_attn.{name}.weight"] = (width, hidden)
        if spec.attention_bias:
            shapes[f"self_attn.{name}.bias"] = (width,)
    if spec.qk_norm:
        shapes |= {f"self_attn.{name}.weight": (spec.head_dim,) for name in ("q_norm", "k_norm")}
    shapes["self_attn.o_proj.weight"] = (hidden, queries)
    if spec.experts:
        return shapes | {
            "mlp.gate.weight": (spec.experts, hidden),
            "mlp.experts.gate_up_proj": (spec.experts, 2 * spec.expert_width, hidden),
            "mlp.experts.down_proj": (spec.experts, hidden, spec.expert_width),
        }
    return shapes | {
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
