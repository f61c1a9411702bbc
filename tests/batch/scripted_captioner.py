"""A captioner without a model, made in a worker's process: what it does to a clip is in the clip's name.

kill, segv, exit, garbage: its process dies of it, each in its way; once: only the first time; station: its parent
dies; wait: it takes until the test says go; all: until all workers are there; fail: a failed record.
`settings`: `batch` clips take `batch_seconds` on a device that works on one batch at a time; `folder` is where it
notes, in files, what it met. A caption says on which device it was made, and by which process.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from vidqa.batch.clip_record import Clip, ClipRecord, Failure, Pending
from vidqa.errors import ModelMissing

TASK = "a task"


def clips(*names: str) -> list[Pending]:
    return [Pending(Clip(f"/clips/{name}", name), f"content of {name}") for name in names]


def make(settings: Mapping[str, Any]) -> "Scripted":
    if settings.get("dies_at_start"):
        os.write(2, b"no such card\nCUDA error: out of luck\n")
        os._exit(7)
    sys.stdout.write("a library that prints\n")
    os.write(1, b"a native library that prints\n")
    return Scripted(settings)


class Scripted:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._batch, self._seconds = settings.get("batch", 1), settings.get("batch_seconds", 0.0)
        self._folder = Path(settings.get("folder", os.devnull))
        self._workers = settings.get("workers", 1)
        if "fifo" in settings:
            os.open(settings["fifo"], os.O_WRONLY)  # closed when the process is over
        self._cannot_load = settings.get("no_model", False)
        self._finishing = False
        self._note("here")

    def captions(self, pending: Iterable[Pending]) -> Iterator[ClipRecord]:
        if self._cannot_load:
            raise ModelMissing("There is no model.", "Fetch it.")
        waiting = iter(pending)
        while not self._finishing and (batch := list(islice(waiting, self._batch))):
            self._note(f"batch {len(batch)} {batch[0].clip.name}")
            for clip in batch:
                self._meet(clip.clip.name)
            time.sleep(self._seconds)
            yield from (_record(clip) for clip in batch)

    def finish(self) -> None:
        self._finishing = True
        self._note("finish")

    def stop(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._note("close")

    def _meet(self, name: str) -> None:
        kind = name.split("-")[0]
        if kind == "wait":  # until the test lets it go
            while not (self._folder / f"go {name}").exists():
                time.sleep(0.01)
        if kind == "all":  # until all workers are there
            while len(list(self._folder.glob("notes *"))) < self._workers:
                time.sleep(0.01)
        if kind == "once":
            if (self._folder / f"met {name}").exists():
                return
            (self._folder / f"met {name}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind in _ENDS:
            _ENDS[kind]()

    def _note(self, words: str) -> None:
        if self._folder.is_dir():
            with (self._folder / f"notes {os.getpid()}").open("a", errors="surrogateescape") as file:
                file.write(words + "\n")


def _record(pending: Pending) -> ClipRecord:
    name = pending.clip.name
    if name.startswith("fail"):
        return ClipRecord(name, pending.content, TASK, "failed", pending.attempt, error=Failure("video", "K", "m", "h"))
    told = f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.getpid()}"
    return ClipRecord(name, pending.content, TASK, "done", pending.attempt, told)


def _garbage() -> None:
    for descriptor in range(3, 12):  # whichever is the worker's own way out
        try:
            os.write(descriptor, b"\x1b[2Jnot a message\n")
        except OSError:
            continue
    time.sleep(600)  # it is killed for what it said


def _kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)  # it dies with it


_ENDS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "station": _kill_parent,
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(3),
    "exit0": lambda: os._exit(0),
    "garbage": _garbage,
}
