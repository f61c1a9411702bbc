"""Names of models to what a plan needs of them: numbers, bounds, and where the weights are.

A model can be planned before it is fetched: the released Qwen2-VL and Qwen2.5-VL
checkpoints stand here in numbers. Knows no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.config_rules import SUPPORTED_TYPES
from vidqa.models.families.qwen2_vl.spec import (
    REFERENCE_BOUNDS,
    ModelSpec,
    VisionSpec,
    check_supported,
    read_bounds,
    read_spec,
)
from vidqa.models.families.qwen2_vl.tensor_names import check_tensors
from vidqa.models.hub import CachedModel, cached_models, missing, resolve_model
from vidqa.models.tokenizer_files import read_text_side
from vidqa.types import PixelBounds

_TOWER = VisionSpec(depth=32, embed_dim=1280, heads=16, patch=14, temporal_patch=2, merge=2, mlp_hidden=5120)
_GATED_TOWER = VisionSpec(
    depth=32, embed_dim=1280, heads=16, patch=14, temporal_patch=2, merge=2,
    mlp_hidden=3420, gated=True, window=112, full_attention=(7, 15, 23, 31),
)  # fmt: skip


def _qwen2(layers: int, hidden: int, wide: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> ModelSpec:
    return ModelSpec("qwen2_vl", layers, hidden, wide, heads, kv_heads, 128, vocabulary, 32768, 151656, tied, _TOWER)


def _qwen25(layers: int, hidden: int, wide: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> ModelSpec:
    return ModelSpec(
        "qwen2_5_vl", layers, hidden, wide, heads, kv_heads, 128, vocabulary, 128_000, 151656, tied, _GATED_TOWER
    )


# config.json of the released checkpoints.
RELEASED = {
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2(28, 1536, 8960, 12, 2, 151_936, True),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2(28, 3584, 18944, 28, 4, 152_064, False),
    "Qwen/Qwen2-VL-72B-Instruct": _qwen2(80, 8192, 29568, 64, 8, 152_064, False),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25(36, 2048, 11008, 16, 2, 151_936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen25(28, 3584, 18944, 28, 4, 152_064, False),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen25(80, 8192, 29568, 64, 8, 152_064, False),
}
SHORT_NAMES = {name.split("-")[2].lower(): name for name in RELEASED if "Qwen2-VL" in name}  # 2b, 7b, 72b
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be planned. `folder` is None where its weights are not here."""

    name: str
    spec: ModelSpec
    bounds: PixelBounds
    folder: Path | None

    def local_folder(self) -> Path:
        """Where the weights lie; raises ModelMissing where they do not, ModelError for a type that cannot run."""
        check_supported(self.spec, self.name)
        if self.folder is None:
            raise missing(self.name)
        return self.folder


def find_checkpoints(name: str, *, local: bool) -> list[Checkpoint]:
    """The named model, or all candidates of `auto`: cached ones (`local`), or the released Qwen2-VL sizes.

    Raises ModelMissing where nothing is found, ModelError for what cannot be planned or, where
    `local`, run.
    """
    if name == AUTO:
        return _candidates(local)
    name = SHORT_NAMES.get(name.lower(), name)
    try:
        folder = resolve_model(name)
    except ModelMissing:
        if local or name not in RELEASED:
            raise
        return [Checkpoint(name, RELEASED[name], REFERENCE_BOUNDS, None)]
    return [_open(name, folder, local)]


def _open(name: str, folder: Path, local: bool) -> Checkpoint:
    """A folder as a checkpoint: the one place where its files are checked, before anything is computed with them.

    What only an answer needs (tokenizer, chat template, tokens that end it) is looked at where it is to run here.
    """
    found = Checkpoint(name, read_spec(folder), read_bounds(folder), folder)
    if local:
        check_supported(found.spec, name)
        read_text_side(folder, found.spec)
    if found.spec.model_type in SUPPORTED_TYPES:
        check_tensors(folder, found.spec)
    return found


def _candidates(local: bool) -> list[Checkpoint]:
    cached = [found for model in cached_models() if model.runnable for found in _readable(model, local)]
    if cached:
        return cached
    if local:
        raise ModelMissing(
            "--model auto chooses among cached models, and no Qwen2-VL is cached.",
            "Fetch one with `vidqa pull OWNER/NAME`, or add --model demo (coloured shapes only).",
        )
    return [Checkpoint(name, RELEASED[name], REFERENCE_BOUNDS, None) for name in SHORT_NAMES.values()]


def _readable(model: CachedModel, local: bool) -> Iterator[Checkpoint]:
    """A cached model as a checkpoint; nothing where its files are broken or cannot be planned or (`local`) run."""
    try:
        yield _open(model.repository, model.folder, local)
    except ModelError:
        return
