"""Captions on several GPUs: their selection, and a pool with a worker process for each.

A worker that dies is restarted and its clips are assigned again. The pool is a Captioner, so its consumer remains the
journal's only writer.
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
from vidqa.batch.clip_record import ClipRecord, Failure, PendingClip, record_from, utc_now
from vidqa.batch.work_queue import MAX_DEATHS, QueuedClip, WorkerSlot, WorkQueue
from vidqa.batch.worker_process import WorkerProcess
from vidqa.devices.host import THIS_MACHINE, Machine
from vidqa.devices.nvml import cuda_uuids
from vidqa.errors import UsageError, VidqaError
from vidqa.utils.safe_text import safe_line

COMMAND = (sys.executable, "-m", "vidqa.batch.gpu_worker")
_MAX_HELD = 96  # clips of a worker: twice what its captioner prefetches, so that it never runs dry
_SHUTDOWN_SECONDS = 10.0
_EXIT_SECONDS = 5.0  # from the end of a worker's stdout to its exit, after which it is killed


def find_gpus(choice: str, machine: Machine = THIS_MACHINE) -> tuple[str, ...]:
    """Return the UUIDs of `all`, of CUDA's numbers (`0,1`) or of the beginnings of UUIDs (`GPU-8f2a,MIG-1`).

    `all` includes every MIG instance. Raises UsageError for a GPU that does not exist.
    """
    visible = cuda_uuids(machine)
    if not all(uuid.startswith(("GPU-", "MIG-")) for uuid in visible):  # a wrong UUID would silently hide the GPU
        raise UsageError("The NVIDIA driver does not report the UUIDs of its GPUs.", "Leave out --gpus.")
    if not visible:
        raise UsageError("The NVIDIA driver shows no usable GPU.", "Change CUDA_VISIBLE_DEVICES, or leave out --gpus.")
    if choice == "all":
        return visible
    chosen = tuple(_find_gpu(entry.strip(), visible) for entry in choice.split(","))
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"--gpus {choice} names a GPU twice.", "Name each once.")
    return chosen


def _find_gpu(entry: str, visible: tuple[str, ...]) -> str:
    if entry.isdecimal() and entry.isascii() and int(entry) < len(visible):
        return visible[int(entry)]
    found = [uuid for uuid in visible if entry.startswith(("GPU-", "MIG-")) and uuid.startswith(entry)]
    if len(found) != 1:
        problem = "is the beginning of several" if found else "is none"
        raise UsageError(
            f"--gpus: {entry!r} {problem} of the {len(visible)} GPU(s) that CUDA shows.",
            f"Use all, numbers from 0 to {len(visible) - 1}, or UUIDs as nvidia-smi -L prints them.",
        )
    return found[0]


class GpuPool:
    """A Captioner with one worker process per device; a device is its process's CUDA_VISIBLE_DEVICES."""

    def __init__(
        self, settings: Mapping[str, Any], run: str, devices: Sequence[str], command: Sequence[str] = COMMAND
    ) -> None:
        """`settings` is the workers' argument for make_captioner; `run` the key for records of clips that killed
        them.
        """
        self._run = run
        self._events: SimpleQueue[tuple[_PoolWorker | None, bytes]] = SimpleQueue()
        threads = max((os.cpu_count() or 1) // len(devices), 1)
        self._workers = [
            _PoolWorker(command, _environment(device, threads), settings, self._events.put) for device in devices
        ]
        self._finishing = False
        self._stopped = False

    def captions(self, pending: Iterable[PendingClip]) -> Iterator[ClipRecord]:
        """Yield a record for every clip; raises VidqaError with the last worker's reason if none can go on.

        The workers then wait for more clips until `close`, unless the iterator is closed early.
        """
        queue = WorkQueue(pending, len(self._workers), _MAX_HELD)
        try:
            for worker in self._workers:
                if not worker.is_started and not self._finishing:
                    worker.start()
            while not self._stopped and self._dispatch(queue):
                worker_or_none, line = self._events.get()
                if worker_or_none is not None:
                    yield from self._handle(worker_or_none, line, queue)
        except BaseException:
            self.stop()
            raise
        finally:
            if self._stopped:
                self.close()

    def finish(self) -> None:
        """Assign no more clips; those that the workers have begun are still recorded."""
        self._finishing = True
        self._events.put((None, b""))

    def stop(self) -> None:
        """Kill the workers."""
        self._stopped = True
        for worker in self._workers:
            worker.kill_permanently()
        self._events.put((None, b""))

    def close(self) -> None:
        """Shut the workers down, and kill those that do not end."""
        for worker in self._workers:
            worker.shutdown()
        for worker in self._workers:
            worker.wait(_SHUTDOWN_SECONDS)

    def _dispatch(self, queue: WorkQueue) -> bool:
        """Assign clips to every worker with room; returns whether there is an event to wait for."""
        active = [worker for worker in self._workers if worker.is_active]
        if self._finishing:
            for worker in active:
                worker.shutdown()
            return any(worker.slot.held for worker in active)
        held = sum(len(worker.slot.held) for worker in active)
        if held + len(queue) == 0:
            return False
        if not active:
            raise self._no_worker_left()
        share = queue.share(len(active), held)
        for worker in active:
            if worker.is_ready:
                worker.send(queue.assign(worker.slot, share))
        return True

    def _handle(self, worker: "_PoolWorker", line: bytes, queue: WorkQueue) -> Iterator[ClipRecord]:
        """Yield a line's record; at a worker's death, the records of clips that saw too many."""
        if line:
            record = worker.parse(line)
            if record is not None:
                yield record
            return
        worker.wait(_EXIT_SECONDS)
        worker.is_active = not self._finishing and worker.may_restart()
        if worker.is_active:
            worker.start()
        if not self._finishing:
            for pending in queue.requeue(worker.slot):
                yield worker_died(pending, self._run, worker.exit_reason)

    def _no_worker_left(self) -> VidqaError:
        """Return the error of a worker that could not start, or how the last one died."""
        error = next((worker.error for worker in self._workers if worker.error is not None), None)
        return error or VidqaError(
            f"No worker process is left of {len(self._workers)}: each died {MAX_DEATHS} times without a caption. "
            f"The last one {self._workers[-1].exit_reason}.",
            "Earlier captions are kept; `vidqa doctor` checks the devices.",
        )


class _PoolWorker:
    """The worker of one device, through restarts of its process.

    It gets clips only after its `ready` message, so one that is shut down before may be killed without loss.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        settings: Mapping[str, Any],
        put: Callable[[tuple["_PoolWorker", bytes]], None],
    ) -> None:
        self._command, self._environment, self._settings, self._put = command, environment, settings, put
        self._process: WorkerProcess | None = None
        self._lock = Lock()  # `kill_permanently` from another thread kills a new process, or prevents it
        self._is_killed = False
        self._fault = ""
        self._has_recorded = False
        self.slot = WorkerSlot()
        self.is_active = True
        self.is_ready = False
        self.error: VidqaError | None = None
        self.exit_reason = ""

    @property
    def is_started(self) -> bool:
        """Whether a process was ever started."""
        return self._process is not None

    def start(self) -> None:
        """Start a process, unless `kill_permanently` was called."""
        self.is_ready, self._has_recorded, self._fault = False, False, ""
        with self._lock:
            if self._is_killed:
                return
            self._process = WorkerProcess(self._command, self._environment, lambda line: self._put((self, line)))
        self._process.write(self._settings)

    def send(self, clips: Sequence[QueuedClip]) -> None:
        """Send clips to the process."""
        assert self._process is not None
        for clip in clips:
            self._process.write(asdict(clip.pending))

    def parse(self, line: bytes) -> ClipRecord | None:
        """Return a line's record and release its clip; kills a process that sends anything invalid."""
        if self._fault:
            return None
        try:
            return self._handle_message(json.loads(line))
        except (ValueError, KeyError, TypeError):
            self._kill_for(f"sent an invalid message: {safe_line(line[:80].decode(errors='replace'))}")
            return None

    def may_restart(self) -> bool:
        """Count a death; returns whether another process may succeed."""
        self.slot.deaths += 1
        return self.error is None and not self.slot.is_exhausted

    def shutdown(self) -> None:
        """Close the process's input: it ends after the clips in work. One that is still starting is killed."""
        if self._process is not None:
            self._process.close_input()
            if not self.is_ready:
                self._process.kill()

    def kill_permanently(self) -> None:
        """Kill the process and start no other; callable from any thread."""
        with self._lock:
            self._is_killed = True
            if self._process is not None:
                self._process.kill()

    def wait(self, timeout_seconds: float) -> None:
        """Wait for the process's end, killing it after the timeout, and set `exit_reason`."""
        if self._process is not None:
            reason = self._process.wait(timeout_seconds)
            self.exit_reason = self._fault or reason

    def _handle_message(self, message: Mapping[str, Any]) -> ClipRecord | None:
        if "record" in message:
            record = record_from(message["record"])
            del self.slot.held[record.name]  # KeyError: a clip that it does not hold
            self.slot.deaths, self._has_recorded = 0, True
            return record
        if "error" in message:
            error = error_from(message)
            if self._has_recorded:
                self._kill_for(f"gave up: {safe_line(str(error))}")
            else:
                self.error = error  # a restart would fail in the same way
        else:
            self.is_ready = bool(message["ready"])
        return None

    def _kill_for(self, fault: str) -> None:
        self._fault = fault
        assert self._process is not None
        self._process.kill()


def error_from(message: Mapping[str, Any]) -> VidqaError:
    """Return the error that a worker's `error` message describes."""
    kind: type[VidqaError] = getattr(errors, message["error"], VidqaError)
    return kind(message["what"], message["remedy"])


def worker_died(pending: PendingClip, run: str, reason: str) -> ClipRecord:
    """Return the failed record of a clip that too many workers held when they died."""
    message = f"{MAX_DEATHS} worker processes died while they had this clip; the last one {reason}."
    hint = "Run `vidqa ask` with this file to see the error; then use --retry-failed."
    return ClipRecord(
        pending.clip.name, pending.content, run, "failed", pending.attempt,
        error=Failure("worker", "WorkerDied", message, hint), at=utc_now(), modified_ns=pending.modified_ns,
    )  # fmt: skip


def _environment(device: str, threads: int) -> dict[str, str]:
    """Return a worker's environment: one GPU, set before torch is imported; its CPU threads; this vidqa first."""
    python_path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"CUDA_VISIBLE_DEVICES": device, "PYTHONPATH": os.pathsep.join(python_path), "PYTHONSAFEPATH": "1"}
    return {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | own
