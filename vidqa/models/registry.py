"""Names of models to what a plan needs of them: numbers, bounds, and where the weights are.

Released checkpoints can be planned before they are fetched. No torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import check_supported, check_tensors, read_spec
from vidqa.models.family import families, family_of, runnable_types
from vidqa.models.hub import CachedModel, cached_models, missing, resolve_model
from vidqa.models.spec import ModelSpec
from vidqa.models.tokenizer_files import read_tokenizer_files
from vidqa.types import PixelBounds


@cache
def released() -> Mapping[str, ModelSpec]:
    """Return every family's known checkpoints by repository."""
    return {name: spec for family in families() for name, spec in family.RELEASED.items()}


@cache
def short_names() -> Mapping[str, str]:
    """Return repositories by their short names."""
    return {short: name for family in families() for short, name in family.SHORT_NAMES.items()}


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
    """The named model, or all candidates of `auto`: cached ones (`local`), or the released ones with a short name.

    Raises ModelMissing where nothing is found, ModelError for what cannot be planned or, where
    `local`, run.
    """
    if name == AUTO:
        return _candidates(local)
    name = short_names().get(name.lower(), name)
    try:
        folder = resolve_model(name)
    except ModelMissing:
        if local or name not in released():
            raise
        return [_released(name)]
    return [_open(name, folder, local)]


def _released(name: str) -> Checkpoint:
    spec = released()[name]
    return Checkpoint(name, spec, family_of(spec).REFERENCE_BOUNDS, None)


def _open(name: str, folder: Path, local: bool) -> Checkpoint:
    """A folder as a checkpoint: the one place where its files are checked, before anything is computed with them.

    What only an answer needs (tokenizer, chat template, tokens that end it) is looked at where it is to run here.
    """
    spec = read_spec(folder)
    found = Checkpoint(name, spec, family_of(spec).read_bounds(folder), folder)
    if local:
        check_supported(found.spec, name)
        read_tokenizer_files(folder, found.spec)
    if found.spec.model_type in runnable_types():
        check_tensors(folder, found.spec)
    return found


def _candidates(local: bool) -> list[Checkpoint]:
    cached = [found for model in cached_models() if model.runnable for found in _readable(model, local)]
    if cached:
        return cached
    if local:
        raise ModelMissing(
            "--model auto chooses among cached models, and none that runs is cached.",
            "Fetch one with `vidqa pull OWNER/NAME`, or add --model demo (coloured shapes only).",
        )
    return [_released(name) for name in short_names().values()]


def _readable(model: CachedModel, local: bool) -> Iterator[Checkpoint]:
    """A cached model as a checkpoint; nothing where its files are broken or cannot be planned or (`local`) run."""
    try:
        yield _open(model.repository, model.folder, local)
    except ModelError:
        return
