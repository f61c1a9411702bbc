"""Downloads from a hub on this machine: progress, stop, resume, and what is said where it fails."""

import errno
import fcntl
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.models.hub_server import HubServer, hub_server
from vidqa.cli.console import ExitCode
from vidqa.errors import Interrupted, ModelError
from vidqa.models.download import DownloadProgress, _check_disk, _fetch, _LargeFile, _locked, _Meter
from vidqa.models.hub import demo_folder

SHORT, NAME = "3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct"
CONTENT = (demo_folder() / "model.safetensors").read_bytes()
SIZE, SHA256 = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
LARGE = _LargeFile("model.safetensors", SIZE, SHA256)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server(demo_folder()) as server:
        yield server


def start(cache: Path, environment: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    """Start vidqa with a cache and what huggingface_hub reads at its import."""
    base = {"PATH": "/usr/bin:/bin", "HOME": str(cache), "VIDQA_CONFIG": str(cache / "none.toml")}
    return subprocess.Popen(
        [sys.executable, "-m", "vidqa", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=base | {"HF_HUB_CACHE": str(cache)} | environment,
    )  # fmt: skip


def pull(hub: HubServer, cache: Path, name: str = SHORT) -> tuple[int, str, str]:
    """Pull to the end; return the exit code, stdout and stderr."""
    process = start(cache, hub.environment(cache), "pull", name)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err and "Errno" not in err and "Retrying" not in err
    return process.returncode, out.strip(), " ".join(err.split())


def part(cache: Path) -> Path | None:
    """Return the file of a download that is not complete."""
    return next(cache.glob("models--*/blobs/*.part"), None)


def blob(cache: Path) -> Path:
    """Return the path of the weights in a cache, whose folder is made."""
    folder = cache / f"models--{NAME.replace('/', '--')}" / "blobs"
    folder.mkdir(parents=True)
    return folder / SHA256


def assert_whole(folder: str) -> None:
    for path in demo_folder().glob("*.*"):
        if path.suffix != ".md":
            assert (Path(folder) / path.name).read_bytes() == path.read_bytes()


def test_a_stopped_download_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    hub.block_seconds = 0.02
    process = start(tmp_path, hub.environment(tmp_path), "pull", SHORT)
    latest = time.monotonic() + 60
    while not ((file := part(tmp_path)) and file.stat().st_size) and time.monotonic() < latest:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    said = " ".join(err.split())
    assert re.search(rf"Stopped: [\d.]+ [kM]B of {NAME} are here. `vidqa pull {SHORT}` goes on from there", said), said
    assert file is not None
    here, hub.block_seconds = file.stat().st_size, 0.0
    assert 0 < here < SIZE
    code, folder, err = pull(hub, tmp_path)
    assert code == ExitCode.OK, err
    assert hub.ranges == ["bytes=0-", f"bytes={here}-"]
    assert_whole(folder)
    assert part(tmp_path) is None


def test_a_broken_connection_is_taken_up_again(hub: HubServer, tmp_path: Path) -> None:
    hub.cut_after = [1_000_000, 2_000_000]
    code, folder, err = pull(hub, tmp_path)
    assert code == ExitCode.OK, err
    assert len(hub.ranges) == 3 and hub.ranges[0] == "bytes=0-" and hub.ranges[1] != "bytes=0-"
    assert_whole(folder)


def test_a_server_that_sends_all_again_makes_no_longer_file(hub: HubServer, tmp_path: Path) -> None:
    hub.cut_after, hub.ignore_ranges = [1_000_000], True
    code, folder, err = pull(hub, tmp_path)
    assert code == ExitCode.OK, err
    assert_whole(folder)


def test_a_connection_that_stays_broken_is_said_with_what_is_here(hub: HubServer, tmp_path: Path) -> None:
    hub.cut_after = [1_000_000] + [0] * 9
    code, _, err = pull(hub, tmp_path)
    assert code == ExitCode.MODEL_MISSING
    assert "The connection broke: " in err and f"`vidqa pull {SHORT}` again: it goes on from there" in err
    assert "ffline" not in err


def test_answers_without_a_byte_end_after_a_few(hub: HubServer, tmp_path: Path) -> None:
    hub.empty = True
    code, _, err = pull(hub, tmp_path)
    assert code == ExitCode.MODEL_MISSING and "The connection broke: 0 B of" in err
    assert hub.ranges == ["bytes=0-"] * 4


def test_a_page_in_place_of_a_file_costs_no_byte_of_it(hub: HubServer, tmp_path: Path) -> None:
    here = blob(tmp_path).with_name(f"{SHA256}.part")
    here.write_bytes(CONTENT[:1_000_000])
    hub.page = b"<html>Log in</html>"
    code, _, err = pull(hub, tmp_path)
    assert code == ExitCode.MODEL_MISSING
    assert f"model.safetensors is not fetched: the answer has 19 bytes instead of {SIZE}. A network that asks" in err
    assert here.read_bytes() == CONTENT[:1_000_000]
    hub.page = b""
    code, folder, err = pull(hub, tmp_path)
    assert code == ExitCode.OK, err
    assert hub.ranges[-1] == "bytes=1000000-"
    assert_whole(folder)


def test_a_blob_that_lost_its_end_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    blob(tmp_path).write_bytes(CONTENT[:1_000_000])  # after a loss of power
    code, folder, err = pull(hub, tmp_path)
    assert code == ExitCode.OK, err
    assert_whole(folder)


def test_a_file_is_flushed_to_the_disk_before_it_counts_as_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / SHA256
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT)
    renamed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: renamed.append(target.exists()))
    _fetch("", LARGE, target, _Meter(lambda progress: None, SIZE, SIZE))
    assert renamed == [False, True], "the file, and after its rename the folder"
    assert target.read_bytes() == CONTENT


def test_a_stop_is_heard_while_a_whole_file_is_compared(tmp_path: Path) -> None:
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT)

    def stop(progress: DownloadProgress) -> None:
        raise Interrupted("Stopped.")

    with pytest.raises(Interrupted):
        _fetch("", LARGE, tmp_path / SHA256, _Meter(stop, SIZE, SIZE))
    assert [path.name for path in tmp_path.iterdir()] == [f"{SHA256}.part"]


_STOPPED = """
import os, sys
from pathlib import Path
from vidqa.errors import Interrupted
from vidqa.models.download import pull_model

def report(progress):
    if Path(sys.argv[2]).exists():
        raise Interrupted("Stopped.")

try:
    pull_model(sys.argv[1], report)
except Interrupted as error:
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("path", ["/config.json", "/storage/model.safetensors", "/tokenizer.json"])
def test_a_stop_is_heard_while_the_hub_sends_nothing(path: str, hub: HubServer, tmp_path: Path) -> None:
    hub.stall, stop = path, tmp_path / "stop"
    process = subprocess.Popen(
        [sys.executable, "-c", _STOPPED, NAME, str(stop)], stdout=subprocess.PIPE, text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
        | hub.environment(tmp_path / "cache"),
    )  # fmt: skip
    assert hub.stalled.wait(60)
    stop.touch()
    started = time.monotonic()
    out, _ = process.communicate(timeout=120)
    assert out.strip() == "Stopped."
    assert time.monotonic() - started < 8, "below the 10 s of a read without a byte"


def test_a_file_that_arrives_damaged_is_not_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.damaged = True
    code, _, err = pull(hub, tmp_path)
    assert code == ExitCode.FAILED and "model.safetensors arrived damaged" in err
    assert part(tmp_path) is None and not list(tmp_path.glob("models--*/snapshots/*/*.safetensors"))


@pytest.mark.parametrize(("status", "said"), [(503, "the hub answered 503"), (404, "the hub has no such model")])
def test_a_hub_that_refuses_is_not_offline(status: int, said: str, hub: HubServer, tmp_path: Path) -> None:
    hub.status = status
    code, _, err = pull(hub, tmp_path)
    assert code == ExitCode.FAILED and said in err and "ffline" not in err


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("config.json", 403, "the hub answered 403 Forbidden. Check the name and your HF_TOKEN"),
        ("config.json", 404, "the hub answered 404 Not Found"),
        ("model.safetensors", 403, "the hub answered 403 Forbidden. Check the name and your HF_TOKEN"),
        ("model.safetensors", 401, "the hub answered 401 Unauthorized. Check the name and your HF_TOKEN"),
        ("tokenizer.json", 403, "the hub answered 403 Forbidden"),
    ],
)
def test_a_file_that_the_hub_refuses_is_no_broken_connection(
    name: str, status: int, said: str, hub: HubServer, tmp_path: Path
) -> None:
    hub.refused[name] = status
    code, _, err = pull(hub, tmp_path)
    assert code == ExitCode.FAILED and said in err and "connection" not in err and "ffline" not in err


def test_a_sha256_that_is_a_path_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.sha256 = "../../x"
    code, _, err = pull(hub, tmp_path)
    assert code == ExitCode.FAILED and "gives model.safetensors the SHA-256 '../../x', which is none" in err
    assert hub.ranges == []


def test_a_repository_without_safetensors_is_not_offline(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "config.json").write_bytes((demo_folder() / "config.json").read_bytes())
    (served / "pytorch_model.bin").write_bytes(b"x")
    with hub_server(served) as server:
        code, _, err = pull(server, tmp_path / "cache")
    assert code == ExitCode.FAILED and f"{NAME} has no safetensors weights on the hub" in err and "ffline" not in err


@pytest.mark.parametrize("refuses", [False, True])
def test_offline_is_one_sentence_within_five_seconds(refuses: bool, tmp_path: Path) -> None:
    with socket.socket() as silent:  # refuses connections, or accepts them and answers none
        silent.bind(("127.0.0.1", 0))
        if not refuses:
            silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = os.times()
        process = start(tmp_path, {"HF_ENDPOINT": url}, "pull", "2b")
        out, err = process.communicate(timeout=60)
        seconds = os.times().elapsed - started.elapsed
    said = " ".join(err.split())
    assert (process.returncode, out) == (ExitCode.MODEL_MISSING, "")
    reason = "cannot be reached" if refuses else "did not answer within 4 s"
    assert f"Offline: {url} {reason}, so Qwen/Qwen2-VL-2B-Instruct is not fetched." in said
    assert said.endswith("Connect to the internet, then type `vidqa pull 2b`.")
    assert not re.search("Errno|Retrying|safetensors", err)
    assert seconds < 15, "the limit of 4 s and the start of a process"


def test_a_download_larger_than_the_disk_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"needs 1000\.0 PB|needs 1000000\.0 TB more on disk"):
        _check_disk("some/model", [_LargeFile("model.safetensors", 10**18, "abc")])


def test_one_process_downloads_a_model_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.models.download.repository_folder", lambda repository: tmp_path)
    refused = pytest.raises(ModelError, match="Another process downloads some/model now")
    with _locked("some/model"), refused, _locked("some/model"):
        pass
    with _locked("some/model"):
        pass


def test_a_cache_without_locks_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("vidqa.models.download.repository_folder", lambda repository: tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    refused = pytest.raises(ModelError, match=r"vidqa\.lock cannot be locked: No locks available.*HF_HUB_CACHE")
    with refused, _locked("some/model"):
        pass


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 4_255_140_312, 0, 0.0), "0 B of 4.3 GB (0 %)"),
        ((1_000_000_000, 4_000_000_000, 0, 10.0), "1.0 GB of 4.0 GB (25 %) · 100.0 MB/s · 30 s left"),
        ((3_000_000_000, 4_000_000_000, 2_000_000_000, 10.0), "3.0 GB of 4.0 GB (75 %) · 100.0 MB/s · 10 s left"),
    ],
)
def test_progress_counts_the_rate_of_this_call(numbers: tuple[int, int, int, float], text: str) -> None:
    assert DownloadProgress(*numbers).text == text
