"""Checkpoints that are stored quantized: by which method, in how many bytes, and what must be installed to run them.

Reads `quantization_config` and the headers of safetensors files, which say the type and shape of
every tensor, so bytes are exact for any method and any list of modules that it skipped. Pure
reading: no torch, no weights.
"""

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError

PARTS = ("embedding", "layers", "lm_head", "vision")
# What transformers asks for: quantizers/quantizer_{bnb_4bit,awq,gptq}.py.
_LIBRARIES = {"bitsandbytes": ("bitsandbytes",), "awq": ("gptqmodel",), "gptq": ("optimum", "gptqmodel")}
_BLOCK = 512  # bytes that an allocation is rounded up to (memory/weights.py)
_ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # others: 1
_PACKED = ("U8", "I8", "I32", "I16")
_NOT_KEPT = (".weight_format", ".quant_state.bitsandbytes__nf4")  # read while loading, not kept on the device
_LONGEST_HEADER = 100_000_000  # safetensors' own limit
_UNQUANTIZED = "use the unquantized checkpoint with --weights int8 or nf4."
_REMEDY = _UNQUANTIZED.capitalize()


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


def read_stored(folder: Path, config: Mapping[str, Any]) -> StoredWeights | None:
    """What config.json says of quantization, with the bytes of the files beside it; None where it says nothing.

    Raises ModelError for methods that vidqa does not load.
    """
    quantization = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not quantization:
        return None
    method, weights = _method(quantization, folder.name)
    sizes, packed = Counter[tuple[str, int]](), set[str]()
    for path in sorted(folder.glob("*.safetensors")):
        for name, kind, values, _ in _tensors(path):
            part = _part(name)
            for element in (2, 4):
                sizes[part, element] += _loaded_bytes(name, kind, values, element)
            if kind in _PACKED and values > 1:
                packed.add(part)
    table = tuple((part, sizes[part, 2], sizes[part, 4]) for part in PARTS if sizes[part, 2])
    return StoredWeights(method, weights, table, tuple(sorted(packed)))


def _method(quantization: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The library's method and the precision by its name in a plan."""
    method = str(quantization.get("quant_method") or "bitsandbytes").lower()
    if method not in _LIBRARIES:
        raise ModelError(
            f"{name} is stored quantized by {method!r}; vidqa loads {', '.join(_LIBRARIES)} checkpoints.", _REMEDY
        )
    if method != "bitsandbytes":
        return method, method
    if quantization.get("load_in_8bit"):
        return method, "int8"
    kind = str(quantization.get("bnb_4bit_quant_type", "fp4"))
    if kind != "nf4":
        raise ModelError(f"{name} is stored in bitsandbytes' {kind}; vidqa plans nf4 and int8.", _REMEDY)
    return method, "nf4-dq" if quantization.get("bnb_4bit_use_double_quant") else "nf4"


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor in a folder's safetensors files, as they are stored; raises ModelError for other files."""
    return {name: size for path in sorted(folder.glob("*.safetensors")) for name, _, _, size in _tensors(path)}


def _tensors(path: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, type, number of values and stored bytes of every tensor: the file begins with a length and JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            yield name, str(entry["dtype"]), math.prod(entry["shape"]), end - begin
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is no safetensors file: {error}.", "Fetch the model again with `vidqa pull`."
        ) from error


def _part(name: str) -> str:
    if "visual." in name:
        return "vision"
    if "embed_tokens." in name:
        return "embedding"
    return "lm_head" if name.startswith("lm_head.") else "layers"


def _loaded_bytes(name: str, kind: str, values: int, element: int) -> int:
    """Bytes on the device: unquantized tensors in the compute precision, all others as they are."""
    if name.endswith(_NOT_KEPT):
        return 0
    plain = kind in ("F32", "F16", "BF16") and name.endswith((".weight", ".bias"))
    count = values * (element if plain else _ELEMENT_BYTES.get(kind, 1))
    return -(-count // _BLOCK) * _BLOCK
