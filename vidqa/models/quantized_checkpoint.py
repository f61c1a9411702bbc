"""Checkpoints that are stored quantized: by which method, in how many bytes, and what must be installed to run them.

Reads `quantization_config` and the headers of safetensors files, which say the type and shape of
every tensor, so bytes are exact for any method and any list of modules that it skipped. Pure
reading: no torch, no weights.
"""

import importlib.util
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.devices.device import rounded
from vidqa.errors import ModelError
from vidqa.models.json_rules import Boolean, Integer, ListOf, Number, OneOf, Rule, Text, Values, shown
from vidqa.models.weight_files import StoredTensor, stored_tensors

PARTS = ("embedding", "layers", "lm_head", "vision")
# What transformers asks for: quantizers/quantizer_{bnb_4bit,awq,gptq}.py.
_LIBRARIES = {"bitsandbytes": ("bitsandbytes",), "awq": ("gptqmodel",), "gptq": ("optimum", "gptqmodel")}
_ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # others: 1
_PACKED = ("U8", "I8", "I32", "I16")
_NOT_KEPT = (".weight_format", ".quant_state.bitsandbytes__nf4")  # read while loading, not kept on the device
_UNQUANTIZED = "use the unquantized checkpoint with --weights int8 or nf4."
_REMEDY = _UNQUANTIZED.capitalize()
_DTYPES = ("float32", "float16", "bfloat16")
_NAMES = ListOf(Text(256), 0, 4096, None)
_GROUPS: dict[str, Rule] = {"bits": Integer(2, 8, 4), "group_size": Integer(-1, 2**16, 128)}
# The keys that say how the files are to be read: transformers' BitsAndBytesConfig, AwqConfig and GPTQConfig.
_RULES: dict[str, dict[str, Rule]] = {
    "bitsandbytes": {
        "load_in_4bit": Boolean(False),
        "load_in_8bit": Boolean(False),
        "llm_int8_threshold": Number(0.0, 1e6, 6.0),
        "llm_int8_skip_modules": _NAMES,
        "llm_int8_enable_fp32_cpu_offload": Boolean(False),
        "llm_int8_has_fp16_weight": Boolean(False, only=False),
        "bnb_4bit_compute_dtype": OneOf(_DTYPES, None),
        "bnb_4bit_quant_type": Text(16, "fp4"),
        "bnb_4bit_use_double_quant": Boolean(False),
        "bnb_4bit_quant_storage": OneOf((*_DTYPES, "uint8"), None),
    },
    "awq": _GROUPS | {
        "zero_point": Boolean(True), "version": Text(16, None), "format": Text(16, "gemm"),
        "modules_to_not_convert": _NAMES,
    },
    "gptq": _GROUPS | {
        "desc_act": Boolean(False), "sym": Boolean(True), "true_sequential": Boolean(True),
        "static_groups": Boolean(False),
        "damp_percent": Number(0.0, 1.0, 0.1), "checkpoint_format": Text(16, None), "format": Text(16, "gptq"),
        "modules_in_block_to_quantize": ListOf(_NAMES, 0, 64, None), "block_name_to_quantize": Text(256, None),
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Quantized weights of a checkpoint: `weights` names them as a plan does.

    `sizes` has (part, bytes where unquantized tensors become 16-bit, where they become 32-bit),
    each tensor rounded as it is allocated; `quantized` the parts with quantized matrices.
    """

    method: str
    weights: str
    sizes: tuple[tuple[str, int, int], ...]
    quantized: tuple[str, ...]

    def part_bytes(self, part: str, element_bytes: int) -> int:
        """Bytes of a part (embedding, layers, lm_head, vision) once loaded."""
        return next(((half, full)[element_bytes == 4] for name, half, full in self.sizes if name == part), 0)

    def check_installed(self, name: str) -> None:
        """Raise ModelError where a library that runs these weights is missing."""
        absent = [library for library in _LIBRARIES[self.method] if importlib.util.find_spec(library) is None]
        if absent:
            raise ModelError(
                f"{name} is stored quantized by {self.method}, which needs {' and '.join(absent)}: not installed here.",
                f"Install what is missing with `pip install {' '.join(absent)}`, or {_UNQUANTIZED}",
            )


def check_quantization(config: Values) -> dict[str, Any] | None:
    """The checked `quantization_config` of a config.json, None where there is none.

    Raises ModelError for methods that vidqa does not load and for values that cannot be.
    """
    where = config.inner("text_config") if _is_inner(config) else config
    if not where.values.get("quantization_config"):
        return None
    values = where.inner("quantization_config")
    method = str(values.values.get("quant_method") or "bitsandbytes").lower()
    if method not in _LIBRARIES:
        raise ModelError(
            f"{config.path}: the weights are quantized by {shown(method)}; "
            f"vidqa loads {', '.join(_LIBRARIES)} checkpoints.",
            _REMEDY,
        )
    checked = values.checked(_RULES[method]) | {"quant_method": method}
    if method == "bitsandbytes" and checked["load_in_4bit"] == checked["load_in_8bit"]:
        values.refuse("load_in_4bit", checked["load_in_4bit"], "must be true, or load_in_8bit, and not both")
    if checked.get("load_in_4bit") and checked["bnb_4bit_quant_type"] != "nf4":
        kind = checked["bnb_4bit_quant_type"]
        raise ModelError(
            f"{config.path}: the weights are stored in bitsandbytes' {kind}; vidqa plans nf4 and int8.", _REMEDY
        )
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in checked.items() if value is not None
    }


def _is_inner(config: Values) -> bool:
    return not config.values.get("quantization_config") and config.values.get("text_config") is not None


def read_stored(folder: Path, quantization: Mapping[str, Any] | None) -> StoredWeights | None:
    """A checked `quantization_config` with the bytes of the files beside it; None where there is none."""
    if quantization is None:
        return None
    sizes, packed = Counter[tuple[str, int]](), set[str]()
    for tensor in stored_tensors(folder):
        part = _part(tensor.name)
        for element in (2, 4):
            sizes[part, element] += _loaded_bytes(tensor, element)
        if tensor.dtype in _PACKED and tensor.values > 1:
            packed.add(part)
    table = tuple((part, sizes[part, 2], sizes[part, 4]) for part in PARTS if sizes[part, 2])
    return StoredWeights(quantization["quant_method"], _weights(quantization), table, tuple(sorted(packed)))


def _weights(quantization: Mapping[str, Any]) -> str:
    """The precision by its name in a plan."""
    if (method := str(quantization["quant_method"])) != "bitsandbytes":
        return method
    if quantization["load_in_8bit"]:
        return "int8"
    return "nf4-dq" if quantization["bnb_4bit_use_double_quant"] else "nf4"


def _part(name: str) -> str:
    if "visual." in name:
        return "vision"
    if "embed_tokens." in name:
        return "embedding"
    return "lm_head" if name.startswith("lm_head.") else "layers"


def _loaded_bytes(tensor: StoredTensor, element: int) -> int:
    """Bytes on the device: unquantized tensors in the compute precision, all others as they are."""
    if tensor.name.endswith(_NOT_KEPT):
        return 0
    plain = tensor.dtype in ("F32", "F16", "BF16") and tensor.name.endswith((".weight", ".bias"))
    count = tensor.values * (element if plain else _ELEMENT_BYTES.get(tensor.dtype, 1))
    return rounded(count)
