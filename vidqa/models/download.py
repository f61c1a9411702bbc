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
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from vidqa.errors import ModelError, ModelMissing
from vidqa.models.checkpoint import check_supported, read_spec
from vidqa.models.download_errors import download_failure, hub_offline, hub_refused, transport_error
from vidqa.models.hub import DOWNLOADED, cache_folder, free_cache_bytes, repository_folder, resolve_model
from vidqa.models.registry import released
from vidqa.utils.atomic_write import sync_folder
from vidqa.utils.polled_thread import call_in_thread, iterate_in_thread
from vidqa.utils.units import format_decimal_bytes, format_span

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_REACH_SECONDS = 4.0  # a command that is offline ends within 5 s
_READ_SECONDS = 10.0  # without a byte, before the connection counts as broken
_CHUNK_BYTES = 2**18
_HASHED_BYTES = 2**22
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

    @property
    def text(self) -> str:
        """Return how far the download is, its rate, and how long it still takes."""
        share = 100 * self.done_bytes // max(self.total_bytes, 1)
        text = f"{format_decimal_bytes(self.done_bytes)} of {format_decimal_bytes(self.total_bytes)} ({share} %)"
        rate = (self.done_bytes - self.resumed_bytes) / self.seconds if self.seconds >= 1 else 0.0
        if rate <= 0:
            return text
        left = format_span((self.total_bytes - self.done_bytes) / rate)
        return f"{text} · {format_decimal_bytes(round(rate))}/s · {left} left"


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
        except (OSError, transport_error()) as error:
            files = _large_files(listing)
            here, total = sum(_present(repository, file) for file in files), sum(file.size for file in files)
            raise download_failure(repository, here, total, error) from error


def partial_bytes(repository: str) -> int:
    """Return the bytes of a model's large files that are in the cache."""
    blobs = repository_folder(repository) / "blobs"
    return sum(path.stat().st_size for path in blobs.glob("*")) if blobs.is_dir() else 0


def _download(repository: str, listing: "ModelInfo", report: Report) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    files = _large_files(listing)
    meter = _Meter(report, sum(file.size for file in files), sum(_present(repository, file) for file in files))
    if not any(sibling.rfilename.endswith(".safetensors") for sibling in listing.siblings or ()):
        raise ModelError(
            f"{repository} has no safetensors weights on the hub, and vidqa loads no others.",
            "Choose another model: `vidqa models --known` lists some.",
        )
    config = call_in_thread(lambda: hf_hub_download(repository, "config.json", revision=listing.sha), meter.show)
    check_supported(read_spec(Path(config).parent), repository)
    _check_disk(repository, files)
    _fetch_large(repository, str(listing.sha), files, meter)
    return Path(call_in_thread(lambda: snapshot_download(repository, allow_patterns=DOWNLOADED), meter.show))


# Reaching the hub


def _reach_hub(repository: str) -> "ModelInfo":
    """Return the hub's listing of a repository; raise ModelMissing if offline, ModelError if the hub refuses.

    In a thread, since the look-up of a host's name has no limit in time.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    limit = max(_REACH_SECONDS, float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 0))  # the hub's option for slow lines
    until = time.monotonic() + limit

    def check_time() -> None:
        if time.monotonic() >= until:
            raise TimeoutError

    try:
        return call_in_thread(lambda: HfApi().model_info(repository, files_metadata=True, timeout=limit), check_time)
    except HFValidationError as error:
        raise ModelError(f"{repository!r} is no name of a repository.", "Write OWNER/NAME.") from error
    except HfHubHTTPError as error:
        raise hub_refused(repository, error) from error
    except Exception as error:
        raise hub_offline(repository, partial_bytes(repository), limit, error) from error


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
    """Return the files of Git LFS that are downloaded; the name of a blob in the cache is their SHA-256.

    Raise ModelError for another text in its place, which would be a path outside of the cache.
    """
    files = [
        _LargeFile(one.rfilename, one.lfs.size, one.lfs.sha256)
        for one in sorted(listing.siblings or (), key=lambda one: one.rfilename)
        if one.lfs is not None and any(fnmatch(one.rfilename, pattern) for pattern in DOWNLOADED)
    ]
    for file in files:
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):
            raise ModelError(
                f"The hub's listing gives {file.name} the SHA-256 {file.sha256!r}, which is none.",
                "Check HF_ENDPOINT: it names another hub than Hugging Face's.",
            )
    return files


def _blob(repository: str, file: _LargeFile) -> Path:
    return repository_folder(repository) / "blobs" / file.sha256


def _present(repository: str, file: _LargeFile) -> int:
    """Return how many bytes of a file are in the cache."""
    blob = _blob(repository, file)
    if _is_whole(blob, file):
        return file.size
    return min(_size(blob.with_name(blob.name + _PART)), file.size)


def _is_whole(blob: Path, file: _LargeFile) -> bool:
    """Return whether a blob has all bytes: after a loss of power, one that was not flushed may be short."""
    return blob.exists() and blob.stat().st_size == file.size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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


def _fetch_large(repository: str, revision: str, files: list[_LargeFile], meter: "_Meter") -> None:
    """Download what is missing of the large files, one after the other."""
    from huggingface_hub import hf_hub_url

    (repository_folder(repository) / "blobs").mkdir(parents=True, exist_ok=True)
    with _locked(repository):
        for file in files:
            if not _is_whole(blob := _blob(repository, file), file):
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
        except BlockingIOError as error:
            raise ModelError(f"Another process downloads {repository} now.", "Wait for it, or stop it.") from error
        except OSError as error:
            what = f"The model cache {file.name} cannot be locked: {error.strerror}."
            raise ModelError(what, "Set HF_HUB_CACHE to a folder of a file system with locks.") from error
        yield


def _fetch(url: str, file: _LargeFile, blob: Path, meter: _Meter) -> None:
    """Download a file to `blob`, from where an earlier download stopped, and compare its SHA-256."""
    part, failed = blob.with_name(blob.name + _PART), 0
    while (before := _size(part)) < file.size:
        meter.show(always=True)  # it stops the download
        error: Exception = ConnectionError("The answer ended early.")
        try:
            _append(url, part, file, meter)
        except transport_error() as caught:
            error = caught
        failed = 1 if _size(part) > before else failed + 1
        if failed > _RETRIES or not _may_pass(error):
            raise error
        if _size(part) < file.size:
            time.sleep(_RETRY_SECONDS)
    if (sha256 := _flushed_sha256(part, meter)) != file.sha256:
        part.unlink()
        raise ModelError(f"{file.name} arrived damaged: its SHA-256 is {sha256[:12]}….", "Fetch it again.")
    part.replace(blob)
    sync_folder(blob.parent)


def _flushed_sha256(part: Path, meter: _Meter) -> str:
    """Flush a file to the disk and return its SHA-256, with reports, since a large file takes many seconds."""
    sha256 = hashlib.sha256()
    with part.open("rb") as file:
        os.fsync(file.fileno())  # before the rename, so that a crash leaves no short blob
        while piece := file.read(_HASHED_BYTES):
            sha256.update(piece)
            meter.show()
    return sha256.hexdigest()


def _append(url: str, part: Path, file: _LargeFile, meter: _Meter) -> None:
    """Append what `url` has after the bytes of `part`; a server that cannot skip them sends all again."""
    here = _size(part)
    with (
        contextlib.closing(iterate_in_thread(lambda: _chunks(url, here, file), meter.show)) as chunks,
        part.open("ab") as target,
    ):
        for again, chunk in chunks:
            if again:
                target.truncate(0)
                meter.done_bytes -= here
            target.write(chunk)
            meter.done_bytes += len(chunk)
            meter.show()


def _chunks(url: str, here: int, file: _LargeFile) -> Generator[tuple[bool, bytes], None, None]:
    """Yield the bytes of a file after the first `here`.

    A server that cannot skip these sends all of them, and the first chunk comes with True. Raise ModelMissing if that
    answer is not as long as the file: the page of a network that asks for a log-in is none of its bytes.
    """
    from huggingface_hub import get_session, get_token, hf_raise_for_status

    headers = {"Range": f"bytes={here}-", "Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"  # the client removes it at a redirect to another host
    with get_session().stream("GET", url, headers=headers, timeout=_READ_SECONDS) as response:
        hf_raise_for_status(response)
        again, length = response.status_code != _PARTIAL_CONTENT, response.headers.get("Content-Length", "")
        if again and length != str(file.size):
            raise ModelMissing(
                f"{file.name} is not fetched: the answer has {length or 'an unknown number of'} bytes instead of "
                f"{file.size}.",
                "A network that asks for a log-in answers so: log in and try again, and the download goes on.",
            )
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            yield again, chunk
            again = False


def _may_pass(error: Exception) -> bool:
    """Return whether a later try may succeed: not after an answer of the server that refuses."""
    response = getattr(error, "response", None)
    return response is None or response.status_code >= _SERVER_ERROR
