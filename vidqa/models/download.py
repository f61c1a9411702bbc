"""Downloads from the Hugging Face Hub to its cache, with progress, and from where an earlier download stopped.

huggingface_hub deletes a file that did not arrive whole, and a model may be one file of 17 GB. So large files are
fetched here into the cache's blobs, under the name that huggingface_hub gives them; it then finds them there, fetches
the small ones and links all to a snapshot. It also retries for half a minute while the hub cannot be reached, so one
request with a limit comes first. No torch.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import check_supported, read_spec
from vidqa.models.hub import DOWNLOADED, cache_folder, free_cache_bytes, repository_folder, resolve_model
from vidqa.models.registry import released, short_name
from vidqa.utils.units import format_decimal_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_REACH_SECONDS = 4.0  # a command that is offline ends within 5 s
_READ_SECONDS = 10.0  # without a byte, before the connection counts as broken
_CHUNK_BYTES = 2**18
_RETRIES = 3  # in a row that bring no byte
_RETRY_SECONDS = 0.5
_REPORT_SECONDS = 0.1
_PART = ".part"
_PARTIAL_CONTENT, _SERVER_ERROR = 206, 500


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Bytes of a model's large files that are here, of all, and the seconds of this call.

    `resumed_bytes` of them were here before.
    """

    done_bytes: int
    total_bytes: int
    resumed_bytes: int = 0
    seconds: float = 0.0


Report = Callable[[DownloadProgress], None]


@dataclass(frozen=True, slots=True)
class _LargeFile:
    name: str
    size: int
    sha256: str


def pull_model(repository: str, report: Report = lambda progress: None) -> Path:
    """Download a repository to the cache, or resume an earlier download; return its folder.

    The type is checked before gigabytes are downloaded. `report` is called a few times a second; what it raises stops
    the download, and a later call goes on from there. Raise ModelMissing if the hub cannot be reached or the connection
    breaks, ModelError if the model cannot be downloaded or would not run. A whole model in the cache is returned
    without the hub.
    """
    if repository in released():
        check_supported(released()[repository], repository)  # before the hub is asked
    with _quiet_hub():
        try:
            listing = _reach_hub(repository)
        except ModelMissing:
            with contextlib.suppress(ModelError):
                return resolve_model(repository)
            raise
        try:
            return _download(repository, listing, report)
        except OSError as error:
            if error.errno is None:  # of huggingface_hub: a small file cannot be fetched any more
                raise _broken(repository, _large_files(listing)) from error
            raise ModelError(
                f"{repository} cannot be written to {cache_folder()}: {error.strerror}.",
                "Make it writable, or set HF_HUB_CACHE to another folder.",
            ) from error
        except _transport_error() as error:
            raise _broken(repository, _large_files(listing)) from error


def partial_bytes(repository: str) -> int:
    """Return the bytes of a model's large files that are in the cache."""
    blobs = repository_folder(repository) / "blobs"
    return sum(path.stat().st_size for path in blobs.glob("*")) if blobs.is_dir() else 0


def _download(repository: str, listing: "ModelInfo", report: Report) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    files = _large_files(listing)
    if not any(sibling.rfilename.endswith(".safetensors") for sibling in listing.siblings or ()):
        raise ModelError(
            f"{repository} has no safetensors weights on the hub, and vidqa loads no others.",
            "Choose another model: `vidqa models --known` lists some.",
        )
    check_supported(
        read_spec(Path(hf_hub_download(repository, "config.json", revision=listing.sha)).parent), repository
    )
    _check_disk(repository, files)
    _fetch_large(repository, str(listing.sha), files, report)
    return Path(snapshot_download(repository, allow_patterns=DOWNLOADED))


# Reaching the hub


def _reach_hub(repository: str) -> "ModelInfo":
    """Return the hub's listing of a repository; raise ModelMissing if offline, ModelError if the hub refuses.

    In a thread, since the look-up of a host's name has no limit in time.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    limit = max(_REACH_SECONDS, float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 0))  # the hub's option for slow lines
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(HfApi().model_info(repository, files_metadata=True, timeout=limit))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(limit)
    result = found[0] if found else None
    if isinstance(result, HFValidationError):
        raise ModelError(f"{repository!r} is no name of a repository.", "Write OWNER/NAME.") from result
    if isinstance(result, RepositoryNotFoundError):
        raise ModelError(
            f"{repository} cannot be fetched: the hub has no such model, or shows it to certain accounts only.",
            "Check the name, and set HF_TOKEN for a private model.",
        ) from result
    if isinstance(result, HfHubHTTPError):
        raise ModelError(
            f"{repository} cannot be fetched: the hub answered {result.response.status_code} "
            f"{result.response.reason_phrase}.",
            "Check the name and your HF_TOKEN, or try again later.",
        ) from result
    if result is None or isinstance(result, Exception):
        raise _offline(repository, limit, result) from result
    listing: ModelInfo = result
    return listing


def _offline(repository: str, seconds: float, error: Exception | None) -> ModelMissing:
    """Return the error for a hub that cannot be reached."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    short = short_name(repository)
    here = partial_bytes(repository)
    rest = f"; {format_decimal_bytes(here)} of it are here, and the download goes on from there" if here else ""
    if isinstance(error, OfflineModeIsEnabled):
        return ModelMissing(
            f"{repository} is not fetched: HF_HUB_OFFLINE says that this machine is offline{rest}.",
            "Unset it and try again.",
        )
    answer = f"did not answer within {seconds:g} s" if error is None or _is_timeout(error) else "cannot be reached"
    return ModelMissing(
        f"Offline: {constants.ENDPOINT} {answer}, so {repository} is not fetched{rest}.",
        f"Connect to the internet, then type `vidqa pull {short}`.",
    )


def _is_timeout(error: Exception) -> bool:
    return "Timeout" in type(error).__name__  # the class is that of the HTTP library, which differs by version


def _transport_error() -> type[Exception]:
    """Return the class of a broken download's errors: the HTTP library depends on huggingface_hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silence huggingface_hub's bars and warnings, whose facts are in the errors here."""
    from huggingface_hub import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    level, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.CRITICAL)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


# Large files


def _large_files(listing: "ModelInfo") -> list[_LargeFile]:
    """Return the files of Git LFS that are downloaded; the name of a blob in the cache is their SHA-256."""
    return [
        _LargeFile(one.rfilename, one.lfs.size, one.lfs.sha256)
        for one in sorted(listing.siblings or (), key=lambda one: one.rfilename)
        if one.lfs is not None and any(fnmatch(one.rfilename, pattern) for pattern in DOWNLOADED)
    ]


def _blob(repository: str, file: _LargeFile) -> Path:
    return repository_folder(repository) / "blobs" / file.sha256


def _present(repository: str, file: _LargeFile) -> int:
    """Return how many bytes of a file are in the cache."""
    blob = _blob(repository, file)
    if blob.exists():
        return file.size
    part = blob.with_name(blob.name + _PART)
    return min(part.stat().st_size, file.size) if part.exists() else 0


def _check_disk(repository: str, files: list[_LargeFile]) -> None:
    """Raise ModelError if what is left to download is larger than the free space."""
    missing = sum(file.size - _present(repository, file) for file in files)
    free = free_cache_bytes()
    if missing > free:
        raise ModelError(
            f"{repository} needs {format_decimal_bytes(missing)} more on disk, and {format_decimal_bytes(free)} are "
            f"free at {cache_folder()}.",
            "Make room, or set HF_HUB_CACHE to a folder on another disk.",
        )


def _fetch_large(repository: str, revision: str, files: list[_LargeFile], report: Report) -> None:
    """Download what is missing of the large files, one after the other."""
    from huggingface_hub import hf_hub_url

    meter = _Meter(report, sum(file.size for file in files), sum(_present(repository, file) for file in files))
    (repository_folder(repository) / "blobs").mkdir(parents=True, exist_ok=True)
    with _locked(repository):
        for file in files:
            if not (blob := _blob(repository, file)).exists():
                _fetch(hf_hub_url(repository, file.name, revision=revision), file, blob, meter)
    meter.show(always=True)


class _Meter:
    """Counts bytes and reports them a few times a second."""

    def __init__(self, report: Report, total_bytes: int, resumed_bytes: int) -> None:
        self._report, self._total, self._resumed, self.done_bytes = report, total_bytes, resumed_bytes, resumed_bytes
        self._started, self._due = time.monotonic(), 0.0

    def show(self, *, always: bool = False) -> None:
        """Report if it is time for it, or `always`."""
        now = time.monotonic()
        if always or now >= self._due:
            self._due = now + _REPORT_SECONDS
            self._report(DownloadProgress(self.done_bytes, self._total, self._resumed, now - self._started))


@contextlib.contextmanager
def _locked(repository: str) -> Iterator[None]:
    """Let one process at a time write a repository's large files; raise ModelError if another one does."""
    with (repository_folder(repository) / "vidqa.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ModelError(f"Another process downloads {repository} now.", "Wait for it, or stop it.") from error
        yield


def _fetch(url: str, file: _LargeFile, blob: Path, meter: _Meter) -> None:
    """Download a file to `blob`, from where an earlier download stopped, and compare its SHA-256."""
    part, failed = blob.with_name(blob.name + _PART), 0
    while not part.exists() or part.stat().st_size < file.size:
        before = meter.done_bytes
        try:
            _append(url, part, meter)
        except _transport_error() as error:
            failed = 1 if meter.done_bytes > before else failed + 1
            if failed > _RETRIES or not _may_pass(error):
                raise
            time.sleep(_RETRY_SECONDS)
    with part.open("rb") as whole:
        sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
    if sha256 != file.sha256:
        part.unlink()
        raise ModelError(f"{file.name} arrived damaged: its SHA-256 is {sha256[:12]}….", "Fetch it again.")
    part.rename(blob)


def _append(url: str, part: Path, meter: _Meter) -> None:
    """Append what `url` has after the bytes of `part`; a server that cannot skip them sends all again."""
    from huggingface_hub import get_session, get_token, hf_raise_for_status

    here = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={here}-", "Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"  # the client leaves it away after a redirect to another host
    with get_session().stream("GET", url, headers=headers, timeout=_READ_SECONDS) as response:
        hf_raise_for_status(response)
        skipped = response.status_code == _PARTIAL_CONTENT
        meter.done_bytes -= 0 if skipped else here
        with part.open("ab" if skipped else "wb") as file:
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                file.write(chunk)
                meter.done_bytes += len(chunk)
                meter.show()


def _may_pass(error: Exception) -> bool:
    """Return whether a later try may succeed: not after an answer of the server that refuses."""
    response = getattr(error, "response", None)
    return response is None or response.status_code >= _SERVER_ERROR


def _broken(repository: str, files: list[_LargeFile]) -> ModelMissing:
    """Return the error for a connection that broke."""
    here = format_decimal_bytes(sum(_present(repository, file) for file in files))
    total = format_decimal_bytes(sum(file.size for file in files))
    return ModelMissing(
        f"The connection broke: {here} of {total} of {repository} are here.",
        f"Type `vidqa pull {short_name(repository)}` again: it goes on from there.",
    )
