"""Checkpoints by name: spec, frame and pixel bounds, and the folder of the weights. No torch.

Released checkpoints can be planned before they are downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import check_supported, check_tensors, read_spec, stored_dtype
from vidqa.models.family import families, family_of, runnable_types
from vidqa.models.hub import cached_models, model_missing, resolve_model
from vidqa.models.spec import ModelSpec
from vidqa.models.tokenizer_files import read_tokenizer_files
from vidqa.types import PixelBounds

AUTO = "auto"


@cache
def released() -> Mapping[str, ModelSpec]:
    """Return every family's known checkpoints by repository."""
    return {name: spec for family in families() for name, spec in family.RELEASED.items()}


@cache
def short_names() -> Mapping[str, str]:
    """Return repositories by their short names."""
    return {short: name for family in families() for short, name in family.SHORT_NAMES.items()}


def full_name(name: str) -> str:
    """Return the repository of a short name; other names stay as they are."""
    return short_names().get(name.lower(), name)


def short_name(repository: str) -> str:
    """Return the short name of a repository; one without stays as it is."""
    return next((short for short, name in short_names().items() if name == repository), repository)


def has_model(name: str) -> bool:
    """Return whether a model is whole on this machine; for `auto`, whether any is that runs."""
    if name == AUTO:
        return any(model.runnable for model in cached_models())
    try:
        resolve_model(full_name(name))
    except ModelMissing:
        return False
    except ModelError:
        return True  # its files are here; what is wrong with them is said when it is used
    return True


def first_model(named: str | None) -> str | None:
    """Return the full name of the named model, else the first cached one that runs; None without either.

    `auto` chooses among cached models, so where none runs it is as no name.
    """
    if named is not None and (named != AUTO or has_model(AUTO)):
        return full_name(named)
    return next((model.repository for model in cached_models() if model.runnable), None)


@cache
def runnable_models() -> tuple[str, ...]:
    """Return the repositories with a short name that the engine runs."""
    return tuple(name for name in short_names().values() if released()[name].model_type in runnable_types())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be planned. `folder` is None if its weights are not on this machine."""

    name: str
    spec: ModelSpec
    bounds: PixelBounds
    folder: Path | None

    def local_folder(self) -> Path:
        """Return the weights' folder; raise ModelMissing if there is none, ModelError if the type cannot run."""
        check_supported(self.spec, self.name)
        if self.folder is None:
            raise model_missing(self.name)
        return self.folder


def find_checkpoints(name: str, *, local: bool) -> list[Checkpoint]:
    """Return the named model, or all candidates of `auto`: cached ones, else (not `local`) `runnable_models`.

    Raise ModelMissing if nothing is found, ModelError if the model cannot be planned or, if `local`, cannot run.
    """
    if name == AUTO:
        return _candidates(local)
    name = full_name(name)
    try:
        folder = resolve_model(name)
    except ModelMissing:
        if name not in released():
            raise
        if local:
            check_supported(released()[name], name)  # before a download is suggested
            raise
        return [_released(name)]
    return [_read_checkpoint(name, folder, local)]


def runnable_checkpoints() -> list[Checkpoint]:
    """Return the checkpoints that the engine runs as they were released; no file is read."""
    return [_released(name) for name in runnable_models()]


def missing_checkpoints() -> list[Checkpoint]:
    """Return the released checkpoints that run and are not in the cache, or not whole there."""
    cached = {model.repository for model in cached_models() if model.runnable}
    return [one for one in runnable_checkpoints() if one.name not in cached]


def _released(name: str) -> Checkpoint:
    spec = released()[name]
    return Checkpoint(name, spec, family_of(spec).REFERENCE_BOUNDS, None)


def _read_checkpoint(name: str, folder: Path, local: bool) -> Checkpoint:
    """Read and check all files of a folder, those of the tokenizer only if the model is to run (`local`)."""
    spec = read_spec(folder)
    bounds = family_of(spec).read_bounds(folder, spec)
    if local:
        check_supported(spec, name)
        read_tokenizer_files(folder, spec)
    if spec.model_type in runnable_types():
        check_tensors(folder, spec)
        spec = replace(spec, stored_dtype=stored_dtype(folder))
    return Checkpoint(name, spec, bounds, folder)


def _candidates(local: bool) -> list[Checkpoint]:
    candidates = []
    for model in cached_models():
        if model.runnable:
            try:
                candidates.append(_read_checkpoint(model.repository, model.folder, local))
            except ModelError:
                continue  # broken files
    if candidates or not local:
        return candidates or runnable_checkpoints()
    raise ModelMissing(
        "--model auto chooses among cached models, and none that runs is cached.",
        "Fetch one with `vidqa pull OWNER/NAME`, or add --model demo (coloured shapes only).",
    )
