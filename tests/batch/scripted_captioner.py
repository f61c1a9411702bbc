"""A captioner without a model for worker processes; the clip's name says what happens to it.

`kill`, `segv`, `exit`, `exit0`, `garbage`: its process dies in this way; `once`: only the first time; `station`: its
parent dies; `wait`: it takes until the test creates `go NAME`; `all`: until all workers have started; `fail`: it gets a
failed record. Settings: `batch` clips take `batch_seconds`; `folder` is where each process writes its notes. A caption
has the device and the process id.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from vidqa.batch.clip_record import Clip, ClipRecord, Failure, PendingClip
from vidqa.batch.gpu_pool import COMMAND
from vidqa.errors import ModelMissing

RUN = "a run"
SCRIPTED = (*COMMAND, "tests.batch.scripted_captioner:make")


def clips(*names: str) -> list[PendingClip]:
    return [PendingClip(Clip(f"/clips/{name}", name), f"content of {name}") for name in names]


def numbered(count: int) -> tuple[str, ...]:
    return tuple(f"{number}.mp4" for number in range(count))


def once_each(records: Iterable[ClipRecord], pending: list[PendingClip]) -> dict[str, ClipRecord]:
    """Return the records by name, after checking that every clip has exactly one."""
    records = list(records)
    assert Counter(record.name for record in records) == Counter(clip.clip.name for clip in pending)
    assert all(record.content == f"content of {record.name}" and record.task == RUN for record in records)
    return {record.name: record for record in records}


def failed(records: Mapping[str, ClipRecord]) -> set[str]:
    return {name for name, record in records.items() if record.status == "failed"}


def make(settings: Mapping[str, Any]) -> "ScriptedCaptioner":
    if settings.get("dies_at_start"):
        os.write(2, b"no such card\nCUDA error: out of luck\n")
        os._exit(7)
    sys.stdout.write("a library that prints\n")
    os.write(1, b"a native library that prints\n")
    return ScriptedCaptioner(settings)


class ScriptedCaptioner:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._batch, self._seconds = settings.get("batch", 1), settings.get("batch_seconds", 0.0)
        self._folder = Path(settings.get("folder", os.devnull))
        self._workers = settings.get("workers", 1)
        if "fifo" in settings:
            os.open(settings["fifo"], os.O_WRONLY)  # closed when the process ends
        self._has_model = not settings.get("no_model", False)
        self._finishing = False
        self._note("started")

    def captions(self, pending: Iterable[PendingClip]) -> Iterator[ClipRecord]:
        if not self._has_model:
            raise ModelMissing("There is no model.", "Fetch it.")
        waiting = iter(pending)
        while not self._finishing and (batch := list(islice(waiting, self._batch))):
            self._note(f"batch {len(batch)} {batch[0].clip.name}")
            for clip in batch:
                self._act(clip.clip.name)
            time.sleep(self._seconds)
            yield from map(_record, batch)

    def finish(self) -> None:
        self._finishing = True
        self._note("finish")

    def stop(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._note("close")

    def _act(self, name: str) -> None:
        kind = name.split("-")[0]
        met = self._folder / f"met {name}"
        if kind == "wait":
            _wait_until((self._folder / f"go {name}").exists)
        elif kind == "all":
            _wait_until(lambda: len(list(self._folder.glob("notes *"))) >= self._workers)
        elif kind == "once" and not met.exists():
            met.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in _DEATHS:
            _DEATHS[kind]()

    def _note(self, text: str) -> None:
        if self._folder.is_dir():
            with (self._folder / f"notes {os.getpid()}").open("a", errors="surrogateescape") as file:
                file.write(text + "\n")


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def _record(pending: PendingClip) -> ClipRecord:
    name = pending.clip.name
    if name.startswith("fail"):
        return ClipRecord(name, pending.content, RUN, "failed", pending.attempt, error=Failure("video", "K", "m", "h"))
    caption = f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.getpid()}"
    return ClipRecord(name, pending.content, RUN, "done", pending.attempt, caption)


def _garbage() -> None:
    for descriptor in range(3, 12):  # one of them is the worker's pipe to its parent
        try:
            os.write(descriptor, b"\x1b[2Jnot a message\n")
        except OSError:
            continue
    time.sleep(600)  # until it is killed


def _kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)  # until it dies with its parent


_DEATHS: Mapping[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "station": _kill_parent,
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(3),
    "exit0": lambda: os._exit(0),
    "garbage": _garbage,
}
