"""Worker processes on several devices with a scripted captioner: distribution of clips, deaths, shutdown."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.batch.scripted_captioner import RUN, SCRIPTED, clips, failed, numbered, once_each
from tests.conftest import ROOT
from tests.devices.scripted_nvml import Card, ScriptedNvml, machine, no_driver
from vidqa.batch.clip_record import Captioner, ClipRecord, PendingClip
from vidqa.batch.gpu_pool import GpuPool, find_gpus
from vidqa.errors import ModelMissing, UsageError, VidqaError

GPUS = ("GPU-one", "MIG-two")
POOLS: list[GpuPool] = []


@pytest.fixture(autouse=True)
def workers_find_the_tests_and_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    while POOLS:
        POOLS.pop().close()


def pool(*devices: str, **settings: Any) -> GpuPool:
    POOLS.append(GpuPool(settings, RUN, devices or ("one",), SCRIPTED))
    return POOLS[-1]


def process_of(record: ClipRecord) -> int:
    return int(record.caption.split()[1])


def notes(folder: Path) -> list[list[str]]:
    """What each worker noted."""
    return [path.read_text().splitlines() for path in folder.glob("notes *")]


def test_every_clip_is_done_once_and_each_worker_sees_only_its_gpu(tmp_path: Path) -> None:
    pending = clips("all-0.mp4", *numbered(100))
    captioner: Captioner = pool(*GPUS, batch=4, workers=2, folder=str(tmp_path))
    captions = {record.caption for record in once_each(captioner.captions(iter(pending)), pending).values()}
    assert {caption.split()[0] for caption in captions} == set(GPUS)
    assert len(captions) == 2  # one process each
    (more,) = captioner.captions(clips("more.mp4"))
    assert more.caption in captions  # the processes live until they are closed
    assert list(captioner.captions([])) == []


def test_odd_names_and_long_texts_pass() -> None:
    pending = clips("line\nbreak.mp4", "\udcff not UTF-8.mp4", "ключ.mp4", "fail.mp4")
    pending[0] = PendingClip(pending[0].clip, pending[0].content, attempt=2, existing="x" * 10**6)
    records = once_each(pool(*GPUS).captions(pending), pending)
    assert records["line\nbreak.mp4"].attempt == 2
    assert failed(records) == {"fail.mp4"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kill-9.mp4", "was killed by SIGKILL"),
        ("segv-.mp4", "was killed by SIGSEGV"),
        ("exit-3.mp4", "ended with code 3"),
        ("exit0-.mp4", "ended with code 0"),
        ("garbage-.mp4", r"sent an invalid message: \x1b[2Jnot a message"),
    ],
)
def test_a_clip_that_kills_its_worker_fails_alone_with_the_reason(name: str, reason: str, tmp_path: Path) -> None:
    pending = clips("a.mp4", "b.mp4", name, "c.mp4", "d.mp4")
    records = once_each(pool(folder=str(tmp_path), batch=4).captions(pending), pending)
    assert failed(records) == {name}
    error = records[name].error
    assert error is not None
    assert (error.stage, error.kind) == ("worker", "WorkerDied")
    assert reason in error.message and "\x1b" not in error.message
    assert str(notes(tmp_path)).count(f"batch 1 {name}") == 2  # after once among others


def test_the_clips_of_a_dead_worker_are_done_by_the_next_one(tmp_path: Path) -> None:
    pending = clips(*numbered(20), "once-1.mp4", "x.mp4", "y.mp4")
    records = once_each(pool(folder=str(tmp_path), batch=4).captions(pending), pending)
    assert failed(records) == set()
    assert len(set(map(process_of, records.values()))) == 2


def test_a_folder_of_deadly_clips_is_recorded_unless_the_device_fails_with_all_of_many() -> None:
    pending = clips(*(f"kill-{number}.mp4" for number in range(4)))
    assert len(failed(once_each(pool().captions(pending), pending))) == 4
    records = pool().captions(clips(*(f"kill-{number}.mp4" for number in range(100))))
    with pytest.raises(VidqaError, match="No worker process is left of 1"):
        next(records)


def test_a_worker_that_is_killed_from_outside_is_restarted(tmp_path: Path) -> None:
    pending = clips("a.mp4", "wait-b.mp4", "c.mp4", "wait-d.mp4", "e.mp4")
    records = []
    for record in pool(folder=str(tmp_path)).captions(pending):
        records.append(record)
        if record.name in ("a.mp4", "c.mp4"):
            os.kill(process_of(record), signal.SIGKILL)
            for name in ("wait-b.mp4", "wait-d.mp4"):
                (tmp_path / f"go {name}").touch()
    assert failed(once_each(records, pending)) == set()


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("dies_at_start", VidqaError, r"died 3 times.*ended with code 7 after it printed: CUDA error: out of luck"),
        ("no_model", ModelMissing, r"There is no model\. Fetch it\."),
    ],
)
def test_workers_that_cannot_start_end_the_run(setting: str, error: type[VidqaError], message: str) -> None:
    with pytest.raises(error, match=message):
        list(pool(*GPUS, **{setting: True}).captions(clips("a.mp4")))


def test_finish_records_clips_in_work_and_ends_every_worker_that_has_some(tmp_path: Path) -> None:
    pulled: list[str] = []

    def endless() -> Iterator[PendingClip]:
        for number in range(10**6):
            pulled.append(f"{number}.mp4")
            yield clips(pulled[-1])[0]

    captioner = pool(*GPUS, folder=str(tmp_path), batch=2)
    records = []
    for record in captioner.captions(endless()):
        records.append(record)
        if len(records) == 10:
            Thread(target=captioner.finish).start()
    assert len({record.name for record in records}) == len(records) < len(pulled) < 10**5
    captioner.close()
    # A worker that is still starting has no clips, so it is killed instead of finishing.
    working = [lines for lines in notes(tmp_path) if any(line.startswith("batch") for line in lines)]
    assert working and all("finish" in lines and lines[-1] == "close" for lines in working), notes(tmp_path)


@pytest.mark.parametrize("action", ["stop", "close the iterator"])
def test_stopping_kills_a_worker_in_the_middle_of_a_clip(action: str, tmp_path: Path) -> None:
    captioner = pool(folder=str(tmp_path))
    records = captioner.captions(clips("a.mp4", "wait-for-ever.mp4", "c.mp4"))
    process = process_of(next(records))
    if action == "stop":
        Thread(target=captioner.stop).start()
        assert list(records) == []
    else:
        records.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_signals_do_not_end_a_worker(tmp_path: Path) -> None:
    processes = set()
    for record in pool(folder=str(tmp_path)).captions(clips("a.mp4", "wait-b.mp4", "c.mp4")):
        processes.add(process := process_of(record))
        if record.name == "a.mp4":
            os.kill(process, signal.SIGTERM)
            os.kill(process, signal.SIGINT)
            (tmp_path / "go wait-b.mp4").touch()
    assert len(processes) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process that its parent died")
def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    code = f"""
from tests.batch.test_gpu_pool import clips, pool
for record in pool(fifo={str(fifo)!r}, folder={str(tmp_path)!r}).captions(clips("a.mp4", "wait-b.mp4")):
    print(record.name, flush=True)
"""
    parent = subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, cwd=ROOT)
    with parent, fifo.open() as alive:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"a.mp4\n"
        parent.kill()
        assert alive.read() == ""  # returns at the worker's end


CARDS = ScriptedNvml(
    Card(uuid="GPU-aaaa"),
    Card(uuid="GPU-abcd"),
    Card(uuid="GPU-whole", instances=[Card(uuid="MIG-1"), Card(uuid="MIG-2")]),
)
VISIBLE = {"CUDA_VISIBLE_DEVICES": "MIG-2,1"}


@pytest.mark.parametrize(
    ("choice", "environment", "expected"),
    [
        ("all", {}, ("GPU-aaaa", "GPU-abcd", "MIG-1", "MIG-2")),
        ("1,0", {}, ("GPU-abcd", "GPU-aaaa")),
        ("GPU-abcd, MIG-2", {}, ("GPU-abcd", "MIG-2")),
        ("GPU-aa", {}, ("GPU-aaaa",)),
        ("all", VISIBLE, ("MIG-2", "GPU-abcd")),
        ("0", VISIBLE, ("MIG-2",)),
    ],
)
def test_gpus_are_chosen_by_number_or_uuid(choice: str, environment: dict[str, str], expected: tuple[str, ...]) -> None:
    assert find_gpus(choice, machine(CARDS, environment)) == expected


@pytest.mark.parametrize(
    ("nvml", "choice", "message"),
    [
        (CARDS, "7", "'7' is none of the 4"),
        (CARDS, "", "'' is none"),
        (CARDS, "GPU-a", "beginning of several"),
        (CARDS, "0,0", "names a GPU twice"),
        (CARDS, "cuda:0", "'cuda:0' is none"),
        (ScriptedNvml(), "all", "no usable GPU"),
        (no_driver(), "all", "driver"),
        (ScriptedNvml(Card(uuid="None")), "all", "does not report the UUIDs"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused(nvml: Any, choice: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_gpus(choice, machine(nvml))
