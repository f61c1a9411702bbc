"""The safetensors files of a checkpoint: which they are, and what their headers say of every tensor.

A file begins with the length of its header (8 bytes) and the header (JSON); the tensors' bytes follow, without a gap,
to the end (safetensors, "Format"). All of it is checked here, before other libraries read the bytes. Knows no torch and
reads no weights.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.json_rules import (
    AGAIN,
    Integer,
    JsonSection,
    ListOf,
    OneOf,
    Rule,
    Values,
    parse_json,
    read_object,
    shown,
)

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_INDEX_BYTES = 32 * 2**20
_LONGEST_HEADER = 16 * 2**20  # 72 billion GPTQ weights in one file would take 0.5 MiB
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
# What transformers would load in place of the files that are checked here, or beside them.
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
    """A tensor in a file: `dtype` in safetensors' words, e.g. BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int
    path: Path

    @property
    def values(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load, all of them there.

    Raises ModelMissing where one is missing, ModelError where the index names what is no file of the folder.
    """
    _refuse_other_weights(folder)
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    index = folder / _INDEX
    if not index.exists():
        raise _incomplete(folder, f"there is no {_WHOLE} and no {_INDEX}")
    shards = _shards(index)
    for shard in shards:
        if not (folder / shard).is_file():
            raise _incomplete(folder, f"{shard} is missing")
    return [folder / shard for shard in shards]


def _refuse_other_weights(folder: Path) -> None:
    for path in folder.iterdir():
        if _OTHER_WEIGHTS.fullmatch(path.name):
            raise ModelError(
                f"{path} would be loaded in place of {_WHOLE} or on top of it; vidqa runs whole models.",
                "Merge the adapter or the shards into one checkpoint first, or take the file away.",
            )


def _shards(index: Path) -> list[str]:
    content = Values(index, "", read_object(index, _INDEX_BYTES))
    content.inner("metadata")  # transformers cannot do without it
    files = content.take("weight_map", JsonSection())
    if not files:
        raise ModelError(f"{index}: weight_map names no tensor.", AGAIN)
    for tensor, shard in files.items():
        if type(shard) is not str or not _SHARD.fullmatch(shard):
            raise ModelError(
                f"{index}: weight_map[{shown(tensor)}] is {shown(shard)}; "
                "it must be a *.safetensors file in the same folder.",
                AGAIN,
            )
    return sorted(set(files.values()))


def _incomplete(folder: Path, what: str) -> ModelMissing:
    return ModelMissing(
        f"The weights in {folder} are incomplete or not safetensors: {what}.",
        "Fetch them with `vidqa pull OWNER/NAME`.",
    )


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Every tensor of a checkpoint; raises ModelError for files that are not whole."""
    return [tensor for path in weight_files(folder) for tensor in read_header(path)]


def tensor_sizes(folder: Path) -> dict[str, int]:
    """Stored bytes of every tensor of a checkpoint; raises ModelError for files that are not whole."""
    return {tensor.name: tensor.stored_bytes for tensor in stored_tensors(folder)}


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file, in the order of their bytes; raises ModelError where it is no whole safetensors file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                _refuse(path, f"its header claims {length} bytes, the file has {size}")
            header = parse_json(file.read(length))
    except (OSError, ValueError) as error:
        _refuse(path, str(getattr(error, "strerror", None) or error))
    if not isinstance(header, dict):
        _refuse(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    placed = sorted(_placed(path, header), key=lambda one: (one[0], one[0] + one[1].stored_bytes))
    _check_places(path, placed, size - 8 - length)
    return [tensor for _, tensor in placed]


def _placed(path: Path, header: dict[str, Any]) -> Iterator[tuple[int, StoredTensor]]:
    """Where each tensor begins behind the header, and what it is."""
    for name, entry in header.items():
        if not isinstance(entry, dict):
            _refuse(path, f"its header has {shown(entry)} for {shown(name)}")
        dtype, shape, (begin, end) = Values(path, name[:200], entry).checked(_ENTRY).values()
        bits = math.prod(shape) * _BITS[dtype]
        if bits != 8 * (end - begin):
            _refuse(path, f"{shown(name)}, {dtype} {list(shape)}, has {end - begin} bytes instead of {bits / 8:g}")
        yield begin, StoredTensor(name, dtype, shape, end - begin, path)


def _check_places(path: Path, placed: list[tuple[int, StoredTensor]], data_bytes: int) -> None:
    """Tensors must follow each other without a gap or an overlap, to the end of the file."""
    end = 0
    for begin, tensor in placed:
        if begin != end:
            _refuse(path, f"{shown(tensor.name)} begins at byte {begin} instead of {end}")
        end = begin + tensor.stored_bytes
    if end != data_bytes:
        _refuse(path, f"its tensors take {end} bytes, the file has {data_bytes} for them")


def _refuse(path: Path, why: str) -> NoReturn:
    raise ModelError(f"{path} is no whole safetensors file: {why}.", "Fetch the model again with `vidqa pull`.")
