"""Local folders of models: the demo, a path, or a repository in the Hugging Face cache. Downloads: download.py.

huggingface_hub reads HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN. Nothing here uses the network. No torch.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.config_validation import read_object
from vidqa.models.family import planned_types, runnable_types
from vidqa.models.weight_files import weight_files

DEMO = "demo"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
DOWNLOADED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A repository in the cache. `runnable`: its type can run and its weights are complete."""

    repository: str
    model_type: str
    size_bytes: int
    folder: Path
    runnable: bool


def demo_folder() -> Path:
    """Return the demo model's folder, in the installed package or in the checkout's assets."""
    package = Path(__file__).parents[1]
    for folder in (package / "_assets" / "demo-model", package.parent / "assets" / "demo-model"):
        if (folder / "config.json").exists():
            return folder
    raise ModelMissing("The demo model is not part of this installation.", "Install vidqa again.")


def resolve_model(name: str) -> Path:
    """Return the folder of `demo`, of a path, or of a cached repository.

    Raise ModelMissing if there is none, ModelError if it is not a usable model.
    """
    if name == DEMO:
        return demo_folder()
    folder = Path(os.path.expanduser(name))
    if not os.path.isdir(folder):
        if not _REPOSITORY.fullmatch(name):
            raise ModelMissing(
                f"There is no model {name!r}: neither a folder, nor OWNER/NAME, nor a short name.",
                "`vidqa models --known` lists the short names. Use for example demo.",
            )
        return _whole_snapshot(name)
    if not (folder / "config.json").exists():
        raise ModelMissing(f"{folder} holds no model: config.json is missing.", "Give a checkpoint's folder.")
    weight_files(folder)
    return folder


def is_repository(name: str) -> bool:
    """Return whether a name is looked up in the cache: neither the demo model nor a folder, but OWNER/NAME."""
    return name != DEMO and not os.path.isdir(os.path.expanduser(name)) and _REPOSITORY.fullmatch(name) is not None


def _whole_snapshot(repository: str) -> Path:
    """Return a cached repository's folder; raise ModelMissing if its download is not complete."""
    folder = _cached_folder(repository)
    try:
        if (folder / "config.json").exists():
            weight_files(folder)
            return folder
    except ModelMissing:
        pass
    raise ModelMissing(
        f"The download of {repository} is not complete in {cache_folder()}.",
        f"Type `vidqa pull {repository}`, which goes on with it, or try --model demo (coloured shapes only).",
        repository=repository,
    )


def _cached_folder(repository: str) -> Path:
    if not repository_folder(repository).is_dir():
        raise model_missing(repository)  # before huggingface_hub is imported, which is slow
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=DOWNLOADED))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise model_missing(repository) from error


def repository_folder(repository: str) -> Path:
    """Return the folder in the cache where a repository is, or would be."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def model_missing(repository: str) -> ModelMissing:
    """Return the error for a repository that is not in the cache."""
    return ModelMissing(
        f"The model {repository} is not in the cache, {cache_folder()}.",
        f"Fetch it with `vidqa pull {repository}`, or try --model demo (coloured shapes only).",
        repository=repository,
    )


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of Hugging Face's cache, as huggingface_hub finds it: importing that takes 30 ms."""
    cache = environment.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    home = _expanded(environment.get("HF_HOME", os.path.join(cache, "huggingface")))
    older = environment.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return Path(_expanded(environment.get("HF_HUB_CACHE", older)))


def free_cache_bytes() -> int:
    """Return the free disk space for the cache, whose folder may not exist yet."""
    folder = cache_folder().absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def cached_models() -> list[CachedModel]:
    """Return the cached models that can be planned, runnable ones first, then by name."""
    if not any(cache_folder().glob("models--*")):
        return []
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = [model for repository in repositories if (model := _cached_model(repository)) is not None]
    return sorted(models, key=lambda model: (not model.runnable, model.repository))


def cached_names() -> list[str]:
    """Return the names of cached models whose type can run; their weights may be incomplete.

    For shell completion, which has 0.1 s: huggingface_hub is not imported and no weights are read.
    """
    names = set()
    for path in cache_folder().glob("models--*--*/snapshots/*/config.json"):
        with contextlib.suppress(ModelError):
            if read_object(path).get("model_type") in runnable_types():
                names.add(path.parts[-4].removeprefix("models--").replace("--", "/", 1))
    return sorted(names)


def _cached_model(repository: Any) -> CachedModel | None:
    if repository.repo_type != "model" or not repository.revisions:
        return None
    newest = max(repository.revisions, key=lambda revision: revision.last_modified)
    folder = Path(newest.snapshot_path)
    try:
        model_type = str(read_object(folder / "config.json").get("model_type"))
    except ModelError:
        return None
    if model_type not in planned_types():
        return None
    runnable = model_type in runnable_types() and _has_weights(folder)
    return CachedModel(repository.repo_id, model_type, repository.size_on_disk, folder, runnable)


def _has_weights(folder: Path) -> bool:
    """Return whether all weight files exist; their contents are checked when the model is chosen."""
    try:
        return bool(weight_files(folder))
    except ModelError:
        return False
