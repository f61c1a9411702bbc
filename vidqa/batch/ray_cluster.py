"""Captions on a Ray cluster: Ray Data distributes blocks of clips to actors with one GPU each.

Each actor runs a GpuPool of one process, so a clip that kills its process fails there as on one machine. Clips that a
dataset lost, because Ray gave it up or dropped rows, go into another dataset; the journal, not Ray, decides what is
done. Needs the extra vidqa[ray].
"""

import json
import logging
import os
import threading
import uuid
from asyncio import Event
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import islice
from queue import SimpleQueue
from typing import Any

from vidqa.batch.clip_record import ClipRecord, PendingClip, pending_from, record_from, record_object
from vidqa.batch.gpu_pool import COMMAND, GpuPool, error_from, worker_died
from vidqa.batch.work_queue import MAX_DEATHS
from vidqa.errors import UsageError, VidqaError
from vidqa.utils.safe_text import safe_line

_MAX_CLIPS = 100_000  # of one dataset: the driver holds them, and the actors load the model once
_MAX_EMPTY_DATASETS = 3  # in a row, without a record
_MIN_ROWS, _MAX_ROWS = 8, 64  # of a block: what an actor gets at a time, and what a lost node costs
_BLOCKS_PER_WORKER = 32  # so that all actors end together
_CLOSE_SECONDS = 30.0
_FAILED_WORKER_BACKOFF_SECONDS = 60.0  # an actor that fails immediately would take all clips from working ones

_Message = Mapping[str, Any]


class RayPool:
    """A Captioner on a Ray cluster; its consumer remains the journal's only writer."""

    def __init__(self, settings: Mapping[str, Any], run: str, address: str, command: Sequence[str] = COMMAND) -> None:
        """Join a cluster: `local` starts one here, `auto` finds one, else its address. Each actor gets one GPU, or
        one CPU core if the cluster has no GPU.

        Raises UsageError if Ray is not installed, or there is no such cluster.
        """
        self._ray = _connect(address)
        self._coordinator = self._ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator).remote()
        self._actor_arguments = {
            "settings": dict(settings), "run": run, "command": tuple(command), "coordinator": self._coordinator,
        }  # fmt: skip
        self._messages: SimpleQueue[_Message | None] = SimpleQueue()
        self._reader: threading.Thread | None = None
        self._finishing = threading.Event()
        self._stopped = threading.Event()

    def captions(self, pending: Iterable[PendingClip]) -> Iterator[ClipRecord]:
        """Yield a record for every clip; raises VidqaError if no worker can go on, or datasets stay without records."""
        waiting = iter(pending)
        try:
            while not self._is_ending() and (clips := list(islice(waiting, _MAX_CLIPS))):
                yield from self._caption_all({clip.clip.name: clip for clip in clips})
        except BaseException:
            self.stop()
            raise

    def finish(self) -> None:
        """Begin no more clips; those that the workers have begun are still recorded."""
        self._finishing.set()
        self._coordinator.signal.remote("finish")

    def stop(self) -> None:
        """End immediately; the actors kill their processes."""
        self._stopped.set()
        self._coordinator.signal.remote("stop")
        self._messages.put(None)

    def close(self) -> None:
        """Leave the cluster, and end one that was started here."""
        if self._reader is not None:
            self._reader.join(_CLOSE_SECONDS)  # Ray must not be left while a dataset runs
        self._ray.shutdown()

    def _is_ending(self) -> bool:
        return self._finishing.is_set() or self._stopped.is_set()

    def _caption_all(self, left: dict[str, PendingClip]) -> Iterator[ClipRecord]:
        """Run datasets until every clip has its record; a second record of a clip is dropped."""
        empty_datasets = 0
        failed_workers: set[str] = set()
        while left and not self._is_ending():
            empty_datasets += 1
            workers, reason = self._start_dataset(list(left.values())), "it lost all rows"
            while not self._stopped.is_set() and (message := self._messages.get()) is not None:
                if "record" in message:
                    empty_datasets, failed_workers = 0, set()
                    record = record_from(message["record"])
                    if left.pop(record.name, None) is not None:
                        yield record
                elif "ended" in message:
                    reason = message["ended"]
                else:
                    failed_workers.add(message["worker"])
                    if len(failed_workers) >= workers:
                        raise error_from(message)
            if empty_datasets >= _MAX_EMPTY_DATASETS:
                raise VidqaError(
                    f"Ray ended {empty_datasets} datasets without a caption: {safe_line(reason)}.",
                    "Earlier captions are kept; `ray status` and Ray's logs may show the cause.",
                )

    def _start_dataset(self, clips: Sequence[PendingClip]) -> int:
        """Start a dataset that adds messages to the queue; returns how many actors it can have now."""
        import pyarrow  # type: ignore[import-untyped]

        resources = self._ray.cluster_resources()
        has_gpu = bool(resources.get("GPU", 0))
        workers = max(int(resources.get("GPU" if has_gpu else "CPU", 0)), 1)
        rows = rows_per_block(len(clips), workers)
        workers = min(workers, -(-len(clips) // rows))
        lines = [json.dumps(asdict(clip)) for clip in clips]
        blocks = [pyarrow.table({"pending": lines[at : at + rows]}) for at in range(0, len(lines), rows)]
        dataset = self._ray.data.from_arrow(blocks).map_batches(
            RayActor,
            batch_size=rows,
            compute=self._ray.data.ActorPoolStrategy(min_size=1, initial_size=workers, max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs=self._actor_arguments,
            num_gpus=1 if has_gpu else None,
            num_cpus=None if has_gpu else 1,
        )
        self._reader = threading.Thread(target=self._read, args=(dataset,), daemon=True)
        self._reader.start()
        return workers

    def _read(self, dataset: Any) -> None:
        """Put the dataset's messages on the queue; in a thread, as waiting for Ray cannot be interrupted."""
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                for line in batch["message"]:
                    self._messages.put(json.loads(line))
        except Exception as error:  # of Ray or the network; another dataset may succeed
            self._messages.put({"ended": f"{type(error).__name__}: {_first_line(error)}"})
        self._messages.put(None)


class RayActor:
    """The callable class that Ray Data runs in an actor: a worker process on the actor's GPU."""

    def __init__(self, settings: Mapping[str, Any], run: str, command: Sequence[str], coordinator: Any) -> None:
        self._pool = GpuPool(settings, run, (os.environ.get("CUDA_VISIBLE_DEVICES", ""),), command)
        self._run, self._coordinator = run, coordinator
        self._id = uuid.uuid4().hex
        self._failed = False
        self._ending = threading.Event()
        for signal, action in (("finish", self._pool.finish), ("stop", self._pool.stop)):
            threading.Thread(target=self._on_signal, args=(signal, action), daemon=True).start()

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Return the messages for a block of clips: records, or the error that prevents them."""
        import numpy as np

        if self._failed:
            self._ending.wait(_FAILED_WORKER_BACKOFF_SECONDS)
        pending = [pending_from(json.loads(line)) for line in block["pending"]]
        return {"message": np.array([json.dumps(message) for message in self._messages(pending)], dtype=str)}

    def _messages(self, pending: Sequence[PendingClip]) -> Iterator[_Message]:
        try:
            for record in self._records(pending):
                yield {"record": record_object(record)}
        except VidqaError as error:
            self._failed = True
            yield {"worker": self._id, "error": type(error).__name__, "what": error.what, "remedy": error.remedy}

    def _records(self, pending: Sequence[PendingClip]) -> Iterator[ClipRecord]:
        """Caption clips that no actor died with together, others alone, and fail those that saw too many deaths.

        Ray repeats a block without limit if its actor or node dies.
        """
        import ray

        deaths: list[int] = ray.get(self._coordinator.deaths.remote(_keys(pending)))
        with_deaths = list(zip(pending, deaths, strict=True))
        for clip, count in with_deaths:
            if count >= MAX_DEATHS:
                yield worker_died(clip, self._run, "died with its process or its node")
        groups = [[clip for clip, count in with_deaths if count == 0]]
        groups += [[clip] for clip, count in with_deaths if 0 < count < MAX_DEATHS]
        for group in groups:
            ray.get(self._coordinator.begin.remote(_keys(group)))
            yield from self._pool.captions(group)
            self._coordinator.end.remote(_keys(group))

    def _on_signal(self, signal: str, action: Callable[[], None]) -> None:
        import ray

        ray.get(self._coordinator.wait_for.remote(signal))
        self._ending.set()
        action()


class Coordinator:
    """An actor with the run's shared state: the signals `finish` and `stop`, and the clips that actors died with."""

    def __init__(self) -> None:
        self._signals = {"finish": Event(), "stop": Event()}
        self._begun: Counter[str] = Counter()

    async def signal(self, name: str) -> None:
        """Set a signal, for actors that start later too."""
        self._signals[name].set()

    async def wait_for(self, name: str) -> None:
        """Wait for a signal."""
        await self._signals[name].wait()

    async def begin(self, keys: Sequence[str]) -> None:
        """Count clips that an actor begins."""
        self._begun.update(keys)

    async def end(self, keys: Sequence[str]) -> None:
        """Forget clips that an actor has completed."""
        for key in keys:
            del self._begun[key]

    async def deaths(self, keys: Sequence[str]) -> list[int]:
        """Return how many actors began each clip and did not complete it."""
        return [self._begun.get(key, 0) for key in keys]


def _keys(clips: Sequence[PendingClip]) -> list[str]:
    """Return the clips' names in ASCII, as Ray accepts valid UTF-8 only."""
    return [json.dumps(clip.clip.name) for clip in clips]


def rows_per_block(clips: int, workers: int) -> int:
    """Return how many clips an actor gets at a time: enough for its batches, with some for every actor."""
    wanted = -(-clips // (workers * _BLOCKS_PER_WORKER))
    return min(max(wanted, _MIN_ROWS), _MAX_ROWS, -(-clips // workers))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _connect(address: str) -> Any:
    """Return the package `ray`, connected and kept from printing to this terminal."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise it prints a FutureWarning
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("Ray is not installed.", "pip install 'vidqa[ray]', on all nodes.") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        message = f"There is no Ray cluster at {safe_line(address)}: {safe_line(_first_line(error))}"
        raise UsageError(message, "`ray status` shows a running one; --ray local starts one here.") from error
    # Ray prints the deaths of nodes and workers to stdout in spite of its options.
    import_module("ray._private.worker").print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # unlimited: lost blocks go into another dataset
    context.execution_no_progress_timeout_s = -1  # unlimited: a block of long clips may take long
    return ray
