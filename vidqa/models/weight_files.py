"""The safetensors files of a checkpoint, and the tensors that their headers list.

A file begins with the length of its header (8 bytes) and the header (JSON); the tensors' bytes follow without a gap to
the end (safetensors, "Format"). All of it is checked before other libraries read the bytes. No torch, no weights read.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.config_validation import (
    FETCH_AGAIN,
    Integer,
    JsonSection,
    ListOf,
    OneOf,
    Rule,
    Values,
    parse_json,
    quoted,
    read_object,
)

_SINGLE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_INDEX_BYTES = 32 * 2**20
_MAX_HEADER_BYTES = 16 * 2**20  # 72 billion GPTQ weights in one file would take 0.5 MiB
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
# transformers would load these in place of the checked files, or in addition.
_OTHER_WEIGHTS = re.compile(r"adapter_config\.json|shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_COUNT = Integer(0, 2**48)
_ENTRY: dict[str, Rule] = {
    "dtype": OneOf(tuple(_BITS)), "shape": ListOf(_COUNT, 0, 16), "data_offsets": ListOf(_COUNT, 2, 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, its `dtype` as safetensors names it, e.g. BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int
    path: Path


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers would load.

    Raise ModelMissing if one is missing, ModelError if the index names a path that is not a file of the folder.
    """
    for path in folder.iterdir():
        if _OTHER_WEIGHTS.fullmatch(path.name):
            raise ModelError(
                f"{path} would be loaded in place of {_SINGLE_FILE} or on top of it; vidqa runs whole models.",
                "Merge the adapter or the shards into one checkpoint first, or remove the file.",
            )
    if (folder / _SINGLE_FILE).is_file():
        return [folder / _SINGLE_FILE]
    if not (folder / _INDEX).exists():
        raise _incomplete(folder, f"there is no {_SINGLE_FILE} and no {_INDEX}")
    shards = _shards(folder / _INDEX)
    for shard in shards:
        if not (folder / shard).is_file():
            raise _incomplete(folder, f"{shard} is missing")
    return [folder / shard for shard in shards]


def _shards(index: Path) -> list[str]:
    content = Values(index, "", read_object(index, _MAX_INDEX_BYTES))
    content.inner("metadata")  # required by transformers
    files = content.take("weight_map", JsonSection())
    if not files:
        raise ModelError(f"{index}: weight_map names no tensor.", FETCH_AGAIN)
    for tensor, shard in files.items():
        if type(shard) is not str or not _SHARD.fullmatch(shard):
            must = "it must be a *.safetensors file in the same folder"
            raise ModelError(f"{index}: weight_map[{quoted(tensor)}] is {quoted(shard)}; {must}.", FETCH_AGAIN)
    return sorted(set(files.values()))


def _incomplete(folder: Path, what: str) -> ModelMissing:
    return ModelMissing(
        f"The weights in {folder} are incomplete or not safetensors: {what}.",
        "Fetch them with `vidqa pull OWNER/NAME`.",
    )


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Return every tensor of a checkpoint; raise ModelError for incomplete files."""
    return [tensor for path in weight_files(folder) for tensor in _read_header(path)]


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Return the stored bytes of every tensor of a checkpoint; raise ModelError for incomplete files."""
    return {tensor.name: tensor.stored_bytes for tensor in stored_tensors(folder)}


def _read_header(path: Path) -> list[StoredTensor]:
    """Return the tensors of one file in the order of their bytes; raise ModelError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                _refuse(path, f"its header claims {length} bytes, the file has {size}")
            header = parse_json(file.read(length))
    except (OSError, ValueError) as error:
        _refuse(path, str(getattr(error, "strerror", None) or error))
    if not isinstance(header, dict):
        _refuse(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = sorted(_tensors(path, header), key=lambda item: (item[0], item[0] + item[1].stored_bytes))
    end = 0
    for begin, tensor in tensors:
        if begin != end:
            _refuse(path, f"{quoted(tensor.name)} begins at byte {begin} instead of {end}")
        end = begin + tensor.stored_bytes
    if end != size - 8 - length:
        _refuse(path, f"its tensors take {end} bytes, the file has {size - 8 - length} for them")
    return [tensor for _, tensor in tensors]


def _tensors(path: Path, header: dict[str, Any]) -> Iterator[tuple[int, StoredTensor]]:
    """Yield the first byte after the header, and the tensor."""
    for name, entry in header.items():
        if not isinstance(entry, dict):
            _refuse(path, f"its header has {quoted(entry)} for {quoted(name)}")
        dtype, shape, (begin, end) = Values(path, name[:200], entry).checked(_ENTRY).values()
        bits = math.prod(shape) * _BITS[dtype]
        if bits != 8 * (end - begin):
            _refuse(path, f"{quoted(name)}, {dtype} {list(shape)}, has {end - begin} bytes instead of {bits / 8:g}")
        yield begin, StoredTensor(name, dtype, shape, end - begin, path)


def _refuse(path: Path, why: str) -> NoReturn:
    raise ModelError(f"{path} is no whole safetensors file: {why}.", "Fetch the model again with `vidqa pull`.")
