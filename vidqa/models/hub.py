"""Model names to local folders: the demo, a path, or a repository in the Hugging Face cache.

Respects HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN, which huggingface_hub reads.
Nothing is fetched except by `pull_model`; safetensors only. Knows no torch.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import check_supported, read_spec
from vidqa.models.family import planned_types, runnable_types
from vidqa.models.json_rules import read_object
from vidqa.models.weight_files import weight_files

DEMO = "demo"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FETCHED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A repository in the cache. `runnable`: its type is supported and its weights are there."""

    repository: str
    model_type: str
    size_bytes: int
    folder: Path
    runnable: bool


def demo_folder() -> Path:
    """Where the demo model lies: in the installed package, or in the checkout's assets."""
    package = Path(__file__).parents[1]
    for folder in (package / "_assets" / "demo-model", package.parent / "assets" / "demo-model"):
        if (folder / "config.json").exists():
            return folder
    raise ModelMissing("The demo model is not part of this installation.", "Install vidqa again.")


def resolve_model(name: str) -> Path:
    """The local folder of `demo`, a folder's path, or a cached repository.

    Raises ModelMissing where it is not here, ModelError where it is not a usable model.
    """
    if name == DEMO:
        return demo_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked_folder(folder)
    if not _REPOSITORY.fullmatch(name):
        raise ModelMissing(f"There is no model {name!r}: neither a folder nor OWNER/NAME.", "Use for example demo.")
    return _checked_folder(_cached_folder(name))


def _cached_folder(repository: str) -> Path:
    if not (cache_folder() / f"models--{repository.replace('/', '--')}").is_dir():
        raise missing(repository)  # told without the hub's library, whose import takes longest here
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(_FETCHED)))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise missing(repository) from error


def missing(repository: str) -> ModelMissing:
    """The error for a repository that is not in the cache."""
    return ModelMissing(
        f"The model {repository} is not here: it was looked for in {cache_folder()}.",
        f"Fetch it with `vidqa pull {repository}`, or try --model demo (coloured shapes only).",
    )


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise ModelMissing(f"{folder} holds no model: config.json is missing.", "Give a checkpoint's folder.")
    weight_files(folder)
    return folder


def cache_folder() -> Path:
    """Where Hugging Face keeps models on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def cached_models() -> list[CachedModel]:
    """Models in the cache that can be planned, runnable ones first, then by name."""
    if not any(cache_folder().glob("models--*")):
        return []
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [model for repository in repositories if (model := _cached(repository)) is not None]
    return sorted(found, key=lambda model: (not model.runnable, model.repository))


def cached_names() -> list[str]:
    """Names of the cached models whose type can run, without the hub's library or a look at their weights.

    For shell completion, which has a tenth of a second: a name may stand for half a model.
    """
    found = set()
    for path in cache_folder().glob("models--*--*/snapshots/*/config.json"):
        with contextlib.suppress(ModelError):
            if read_object(path).get("model_type") in runnable_types():
                found.add(path.parts[-4].removeprefix("models--").replace("--", "/", 1))
    return sorted(found)


def _cached(repository: Any) -> CachedModel | None:
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
    runnable = model_type in runnable_types() and _is_whole(folder)
    return CachedModel(repository.repo_id, model_type, repository.size_on_disk, folder, runnable)


def _is_whole(folder: Path) -> bool:
    """Whether the weights are there; what is in them is looked at when the model is chosen."""
    try:
        weight_files(folder)
    except ModelError:
        return False
    return True


def pull_model(repository: str) -> Path:
    """Fetch a repository into the cache, going on where an earlier fetch stopped.

    The type is looked at before gigabytes are fetched. Raises ModelMissing where the repository
    cannot be reached, ModelError where it cannot be fetched or would not run.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # The transport's own error, which a fetch that breaks half-way raises as it is; which
    # library that is (httpx, httpx2) depends on huggingface_hub's version.
    transport_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        check_supported(read_spec(Path(hf_hub_download(repository, "config.json")).parent), repository)
        folder = Path(snapshot_download(repository, allow_patterns=list(_FETCHED)))
    except (HFValidationError, HfHubHTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{repository} cannot be fetched: {reason}", "Check the name and your HF_TOKEN.") from error
    except (LocalEntryNotFoundError, OSError, transport_error) as error:
        raise _unreachable(repository) from error
    # Offline, huggingface_hub returns what an earlier fetch left.
    if not _is_whole(folder):
        raise _unreachable(repository)
    return folder


def _unreachable(repository: str) -> ModelMissing:
    return ModelMissing(
        f"{repository} is not whole in {cache_folder()}: the Hugging Face hub cannot be reached, or has no "
        "safetensors weights for it.",
        f"Check the connection (and HF_HUB_OFFLINE) and run `vidqa pull {repository}` again: it goes on where it "
        "stopped. Or use --model demo.",
    )
