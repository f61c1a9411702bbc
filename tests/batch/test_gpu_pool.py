"""Worker processes on several devices, with a scripted captioner: who does what, and what their deaths mean."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.batch.scripted_captioner import TASK, clips
from tests.conftest import ROOT
from tests.devices.scripted_nvml import Card, ScriptedNvml, machine, no_driver
from vidqa.batch.clip_record import Captioner, ClipRecord, Pending
from vidqa.batch.gpu_pool import COMMAND, GpuPool
from vidqa.batch.gpu_selection import find_gpus
from vidqa.errors import ModelMissing, UsageError, VidqaError

SCRIPTED = (*COMMAND, "tests.batch.scripted_captioner:make")
GPUS = ("GPU-one", "MIG-two")
MADE: list[GpuPool] = []


@pytest.fixture(autouse=True)
def workers_find_the_tests_and_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    while MADE:
        MADE.pop().close()


def crew(devices: tuple[str, ...] = GPUS, **settings: Any) -> GpuPool:
    MADE.append(GpuPool(settings, TASK, devices, SCRIPTED))
    return MADE[-1]


def captioned(working: Captioner, pending: list[Pending]) -> dict[str, ClipRecord]:
    """All records by name, once each."""
    return once_each(list(working.captions(iter(pending))), pending)


def once_each(records: list[ClipRecord], pending: list[Pending]) -> dict[str, ClipRecord]:
    assert Counter(record.name for record in records) == Counter(clip.clip.name for clip in pending)
    assert all(record.content == f"content of {record.name}" and record.task == TASK for record in records)
    return {record.name: record for record in records}


def failed(records: dict[str, ClipRecord]) -> set[str]:
    return {name for name, record in records.items() if record.status == "failed"}


def test_every_clip_is_done_once_and_each_worker_sees_its_own_gpu_alone(tmp_path: Path) -> None:
    pending = clips("all-0.mp4", *(f"{number}.mp4" for number in range(100)))
    working: Captioner = crew(batch=4, workers=2, folder=str(tmp_path))
    records = once_each(list(working.captions(iter(pending))), pending)
    told = {record.caption for record in records.values()}
    assert {words.split()[0] for words in told} == set(GPUS)
    assert len(told) == 2  # a process for each
    (more,) = working.captions(clips("more.mp4"))
    assert more.caption in told  # which stays until it is closed


def test_odd_names_and_long_captions_pass() -> None:
    pending = clips("line\nbreak.mp4", "\udcff not UTF-8.mp4", "ключ.mp4", "fail.mp4")
    long = [Pending(pending[0].clip, pending[0].content, attempt=2, existing="x" * 10**6), *pending[1:]]
    records = once_each(list(crew().captions(long)), long)
    assert records["line\nbreak.mp4"].attempt == 2
    assert failed(records) == {"fail.mp4"}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("kill-9.mp4", "was killed by SIGKILL"),
        ("segv-.mp4", "was killed by SIGSEGV"),
        ("exit-3.mp4", "ended with code 3"),
        ("exit0-.mp4", "ended with code 0"),
        ("garbage-.mp4", r"said what is no message: \x1b[2Jnot a message"),
    ],
)
def test_a_clip_that_kills_its_worker_fails_alone_and_says_how(name: str, how: str, tmp_path: Path) -> None:
    pending = clips("a.mp4", "b.mp4", name, "c.mp4", "d.mp4")
    records = captioned(crew(("one",), folder=str(tmp_path), batch=4), pending)
    assert failed(records) == {name}
    error = records[name].error
    assert error is not None
    assert (error.stage, error.kind) == ("worker", "WorkerDied")
    assert how in error.message
    assert "\x1b" not in error.message
    notes = "".join(path.read_text() for path in tmp_path.glob("notes *"))
    assert notes.count(f"batch 1 {name}") == 2  # and once among others


def test_what_a_dead_worker_had_is_done_by_the_next_one(tmp_path: Path) -> None:
    pending = clips(*(f"{number}.mp4" for number in range(20)), "once-1.mp4", "x.mp4", "y.mp4")
    records = captioned(crew(("one",), folder=str(tmp_path), batch=4), pending)
    assert failed(records) == set()
    assert len({record.caption.split()[1] for record in records.values()}) == 2


def test_nothing_but_deadly_clips_is_recorded_too() -> None:
    pending = clips(*(f"kill-{number}.mp4" for number in range(4)))
    assert failed(captioned(crew(("one",)), pending)) == {c.clip.name for c in pending}


def test_a_device_on_which_every_clip_dies_is_given_up_before_it_spoils_many(tmp_path: Path) -> None:
    records = []
    with pytest.raises(VidqaError, match="No worker process is left of 1"):
        for record in crew(("one",)).captions(clips(*(f"kill-{number}.mp4" for number in range(100)))):
            records.append(record)
    assert records == []


def test_a_worker_killed_from_outside_is_started_anew(tmp_path: Path) -> None:
    pending = clips("a.mp4", "wait-b.mp4", "c.mp4", "wait-d.mp4", "e.mp4")
    records = []
    for record in crew(("one",), folder=str(tmp_path)).captions(pending):
        records.append(record)
        if record.name in ("a.mp4", "c.mp4"):
            os.kill(int(record.caption.split()[1]), signal.SIGKILL)
            for name in ("wait-b.mp4", "wait-d.mp4"):
                (tmp_path / f"go {name}").touch()
    assert failed(once_each(records, pending)) == set()


def test_workers_that_cannot_begin_are_given_up_with_what_they_said_last() -> None:
    with pytest.raises(VidqaError, match=r"died 3 times.*ended with code 7 after it said: CUDA error: out of luck"):
        list(crew(dies_at_start=True).captions(clips("a.mp4")))


def test_a_worker_that_says_why_it_cannot_begin_is_not_asked_again() -> None:
    with pytest.raises(ModelMissing, match=r"There is no model\. Fetch it\."):
        list(crew(no_model=True).captions(clips("a.mp4")))


def test_finish_records_what_was_begun_and_takes_no_more(tmp_path: Path) -> None:
    taken: list[str] = []

    def endless() -> Iterator[Pending]:
        for number in range(10**6):
            taken.append(f"{number}.mp4")
            yield clips(taken[-1])[0]

    working = crew(folder=str(tmp_path), batch=2)
    records = []
    for record in working.captions(endless()):
        records.append(record)
        if len(records) == 10:
            Thread(target=working.finish).start()
    assert len({record.name for record in records}) == len(records) < len(taken) < 10**5
    working.close()
    notes = [path.read_text().splitlines() for path in tmp_path.glob("notes *")]
    begun = [lines for lines in notes if any(line.startswith("batch") for line in lines)]
    # A worker that is still starting when the run ends has nothing to finish.
    assert begun and all("finish" in lines and lines[-1] == "close" for lines in begun), notes


def test_stop_kills_a_worker_in_the_middle_of_a_clip(tmp_path: Path) -> None:
    working = crew(("one",), folder=str(tmp_path))
    records = working.captions(clips("a.mp4", "wait-for-ever.mp4", "c.mp4"))
    process = int(next(records).caption.split()[1])
    Thread(target=working.stop).start()
    assert list(records) == []
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_leaving_the_records_half_read_ends_the_processes() -> None:
    records = crew(("one",)).captions(clips("a.mp4", "b.mp4"))
    process = int(next(records).caption.split()[1])
    records.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_signals_to_the_whole_group_are_the_parents_to_judge(tmp_path: Path) -> None:
    processes = set()
    for record in crew(("one",), folder=str(tmp_path)).captions(clips("a.mp4", "wait-b.mp4", "c.mp4")):
        processes.add(process := int(record.caption.split()[1]))
        if record.name == "a.mp4":
            os.kill(process, signal.SIGTERM)
            os.kill(process, signal.SIGINT)
            (tmp_path / "go wait-b.mp4").touch()
    assert len(processes) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    code = f"""
from tests.batch.test_gpu_pool import clips, crew
for record in crew(("one",), fifo={str(fifo)!r}, folder={str(tmp_path)!r}).captions(clips("a.mp4", "wait-b.mp4")):
    print(record.name, flush=True)
"""
    parent = subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, cwd=ROOT)
    with parent, fifo.open() as alive:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"a.mp4\n"
        parent.kill()
        assert alive.read() == ""  # returns when the worker is gone


def test_nothing_to_do_is_done() -> None:
    assert list(crew(("one",)).captions([])) == []


CARDS = ScriptedNvml(
    Card(uuid="GPU-aaaa"),
    Card(uuid="GPU-abcd"),
    Card(uuid="GPU-whole", instances=[Card(uuid="MIG-1"), Card(uuid="MIG-2")]),
)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("all", ("GPU-aaaa", "GPU-abcd", "MIG-1", "MIG-2")),
        ("1,0", ("GPU-abcd", "GPU-aaaa")),
        ("GPU-abcd, MIG-2", ("GPU-abcd", "MIG-2")),
        ("GPU-aa", ("GPU-aaaa",)),
    ],
)
def test_gpus_are_chosen_by_number_or_uuid(choice: str, expected: tuple[str, ...]) -> None:
    assert find_gpus(choice, machine(CARDS)) == expected


def test_only_what_cuda_shows_is_chosen() -> None:
    shown = machine(CARDS, {"CUDA_VISIBLE_DEVICES": "MIG-2,1"})
    assert find_gpus("all", shown) == ("MIG-2", "GPU-abcd")
    assert find_gpus("0", shown) == ("MIG-2",)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("7", "'7' is none of the 4"),
        ("", "'' is none"),
        ("GPU-a", "beginning of several"),
        ("0,0", "names a GPU twice"),
        ("cuda:0", "'cuda:0' is none"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(choice: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_gpus(choice, machine(CARDS))


def test_without_gpus_or_a_driver_it_is_said() -> None:
    with pytest.raises(UsageError, match="no usable GPU"):
        find_gpus("all", machine(ScriptedNvml()))
    with pytest.raises(UsageError, match="driver"):
        find_gpus("all", machine(no_driver()))
    with pytest.raises(UsageError, match="does not tell the UUIDs"):
        find_gpus("all", machine(ScriptedNvml(Card(uuid="None"))))
