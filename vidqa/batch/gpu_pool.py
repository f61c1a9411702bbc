"""Several GPUs at once: a worker process for each, and clips handed out as they have room for them.

A worker that dies is started anew and its clips go back. The crew is a Captioner, so that whoever iterates it stays
the one writer of the journal. Knows messages and what deaths mean; knows no torch and no model.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from vidqa import errors
from vidqa.batch.clip_record import ClipRecord, Failure, Pending, now, record_from
from vidqa.batch.work_queue import MOST_DEATHS, HeldClips, WorkerSlot, WorkQueue
from vidqa.batch.worker_process import WorkerProcess
from vidqa.errors import VidqaError
from vidqa.utils.safe_text import safe_line

COMMAND = (sys.executable, "-m", "vidqa.batch.gpu_worker")
_AHEAD = 96  # clips that a worker holds: twice what its captioner takes to read ahead, so that it never runs dry
_FAREWELL_SECONDS = 10.0
_LAST_BREATH_SECONDS = 5.0  # from the end of its stdout to its own; what lives on is killed


class GpuPool:
    """Captions on several devices, each named by what CUDA_VISIBLE_DEVICES is for its process."""

    def __init__(
        self, settings: Mapping[str, Any], task: str, devices: Sequence[str], command: Sequence[str] = COMMAND
    ) -> None:
        """`settings` is what workers make their captioner of; `task` is the key in records that they did not live to
        write.
        """
        self._task = task
        self._events: SimpleQueue[tuple[_PoolWorker | None, bytes]] = SimpleQueue()
        threads = max((os.cpu_count() or 1) // len(devices), 1)
        self._workers = [
            _PoolWorker(command, _environment(device, threads), settings, self._events.put) for device in devices
        ]
        self._finishing = False
        self._stopped = False

    def captions(self, pending: Iterable[Pending]) -> Iterator[ClipRecord]:
        """A record for every clip; raises VidqaError where no worker can go on, for the reason of the last one.

        The workers stay for more clips until `close`, unless the records are left half-read.
        """
        stock = WorkQueue(pending, len(self._workers), _AHEAD)
        try:
            self._begin()
            while not self._stopped and self._deal(stock):
                sender, line = self._events.get()
                if sender is not None:
                    yield from self._heard(sender, line, stock)
        except BaseException:
            self.stop()
            raise
        finally:
            if self._stopped:
                self.close()

    def finish(self) -> None:
        """Hand out no more clips; what the workers have begun is still recorded."""
        self._finishing = True
        self._events.put((None, b""))

    def stop(self) -> None:
        """Kill the workers."""
        self._stopped = True
        for worker in self._workers:
            worker.kill_for_good()
        self._events.put((None, b""))

    def close(self) -> None:
        """Let the workers end, and kill those that do not."""
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.end(_FAREWELL_SECONDS)

    def _begin(self) -> None:
        for worker in self._workers:
            if worker.is_new and not self._finishing:
                worker.start()

    def _deal(self, stock: WorkQueue) -> bool:
        """Give every worker what it has room for; returns whether there is a record to wait for."""
        working = [worker for worker in self._workers if worker.is_hired]
        if self._finishing:
            for worker in working:
                worker.dismiss()
            return any(worker.hands.held for worker in working)
        held = sum(len(worker.hands.held) for worker in working)
        if held + len(stock) == 0:
            return False
        if not working:
            raise self._why_none_is_left()
        share = stock.share(len(working), held)
        for worker in working:
            if worker.is_ready:
                worker.give(stock.hand_out(worker.hands, share))
        return True

    def _heard(self, worker: "_PoolWorker", line: bytes, stock: WorkQueue) -> Iterator[ClipRecord]:
        """The record that a line is; at a worker's death, those of the clips that have seen too many."""
        if line:
            record = worker.understood(line)
            if record is not None:
                yield record
            return
        worker.end(_LAST_BREATH_SECONDS)
        worker.is_hired = not self._finishing and worker.may_return()
        if worker.is_hired:
            worker.start()
        if not self._finishing:
            for pending in stock.take_back(worker.hands):
                yield worker_died(pending, self._task, worker.fate)

    def _why_none_is_left(self) -> VidqaError:
        """The word of a worker that could not begin, or how the last one died."""
        told = next((worker.error for worker in self._workers if worker.error is not None), None)
        return told or VidqaError(
            f"No worker process is left of {len(self._workers)}: each died {MOST_DEATHS} times without a caption. "
            f"The last one {self._workers[-1].fate}.",
            "What is captioned is kept; `vidqa doctor` looks at the devices.",
        )


class _PoolWorker:
    """The process of one device through its lives."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        settings: Mapping[str, Any],
        put: Callable[[tuple["_PoolWorker", bytes]], None],
    ) -> None:
        self._command, self._environment, self._settings, self._put = command, environment, settings, put
        self._process: WorkerProcess | None = None
        self._lock = Lock()  # a process that is started is killed, or none is started
        self._is_over = False
        self._fault = ""
        self._is_proven = False
        self.hands = WorkerSlot()
        self.is_hired = True
        self.is_ready = False
        self.error: VidqaError | None = None
        self.fate = ""

    @property
    def is_new(self) -> bool:
        """Whether it never lived."""
        return self._process is None

    def start(self) -> None:
        """Begin a life, unless all is over."""
        self.is_ready, self._is_proven, self._fault = False, False, ""
        with self._lock:
            if self._is_over:
                return
            self._process = WorkerProcess(self._command, self._environment, lambda line: self._put((self, line)))
        self._process.write(self._settings)

    def give(self, clips: Sequence[HeldClips]) -> None:
        """Hand clips over."""
        assert self._process is not None
        for clip in clips:
            self._process.write(asdict(clip.pending))

    def understood(self, line: bytes) -> ClipRecord | None:
        """The record that a line is, whose clip is no longer held; a process that says what it may not is killed."""
        if self._fault:
            return None
        try:
            return self._message(json.loads(line))
        except (ValueError, KeyError, TypeError):
            self._blame(f"said what is no message: {safe_line(line[:80].decode(errors='replace'))}")
            return None

    def may_return(self) -> bool:
        """Count a death; returns whether another life could fare better."""
        self.hands.strikes += 1
        return self.error is None and not self.hands.is_out

    def dismiss(self) -> None:
        """Say that no more comes: it ends with what it has begun, or at once where it has nothing."""
        if self._process is not None:
            self._process.close_input()
            if not self.is_ready:
                self._process.kill()

    def kill_for_good(self) -> None:
        """End it now and begin no other; callable from any thread."""
        with self._lock:
            self._is_over = True
            if self._process is not None:
                self._process.kill()

    def end(self, patience_seconds: float) -> None:
        """Collect the process, and remember how it ended."""
        if self._process is not None:
            how = self._process.end(patience_seconds)
            self.fate = self._fault or how

    def _message(self, message: Mapping[str, Any]) -> ClipRecord | None:
        if "record" in message:
            record = record_from(message["record"])
            del self.hands.held[record.name]  # KeyError: never asked for, or told before
            self.hands.strikes, self._is_proven = 0, True
            return record
        if "error" in message:
            self._told(message)
        else:
            self.is_ready = bool(message["ready"])
        return None

    def _told(self, message: Mapping[str, str]) -> None:
        """Its own word on why it cannot go on; one that never made a record would not another time either."""
        kind = getattr(errors, message["error"], VidqaError)
        error: VidqaError = kind(message["what"], message["remedy"])
        if self._is_proven:
            self._blame(f"gave up: {safe_line(str(error))}")
        else:
            self.error = error

    def _blame(self, fault: str) -> None:
        self._fault = fault
        assert self._process is not None
        self._process.kill()


def worker_died(pending: Pending, task: str, how: str) -> ClipRecord:
    """The record of a clip that was with too many workers when they died."""
    message = f"{MOST_DEATHS} worker processes died while they had this clip; the last one {how}."
    hint = "`vidqa ask` with this file shows what it does to the model; then --retry-failed."
    error = Failure("worker", "WorkerDied", message, hint)
    return ClipRecord(
        pending.clip.name, pending.content, task, "failed", pending.attempt,
        error=error, at=now(), modified_ns=pending.modified_ns,
    )  # fmt: skip


def _environment(device: str, threads: int) -> dict[str, str]:
    """One GPU, set before torch is imported; its part of the processor's threads; this vidqa before any other."""
    found = os.environ.get("PYTHONPATH", "")
    ours = {
        "CUDA_VISIBLE_DEVICES": device,
        "PYTHONPATH": os.pathsep.join(part for part in (str(Path(__file__).parents[2]), found) if part),
        "PYTHONSAFEPATH": "1",
    }
    return {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | ours
