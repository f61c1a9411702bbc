"""A Ray cluster at work: Ray Data places workers and feeds them; what is done is the journal's business, not Ray's.

Each of Ray's workers holds a crew of one process, so that a clip that kills its process fails there as on one machine.
A dataset that Ray gives up, or that loses rows, is followed by another one over the clips without a record. Needs the
extra vidqa[ray]; whoever says `import ray`, here too, gets that package and not this file.
"""

import json
import logging
import os
import uuid
from asyncio import Event
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import islice
from queue import SimpleQueue
from threading import Event as Flag
from threading import Thread
from typing import Any

from vidqa import errors
from vidqa.batch.clip_record import ClipRecord, Pending, record_from, record_object
from vidqa.batch.gpu_pool import COMMAND, GpuPool, worker_died
from vidqa.batch.gpu_worker import pending_from
from vidqa.batch.work_queue import MOST_DEATHS
from vidqa.errors import UsageError, VidqaError
from vidqa.utils.safe_text import safe_line

_MOST_CLIPS = 100_000  # of one dataset: the driver holds them, and its workers load the model once
_MOST_VAIN = 3  # datasets in a row without a record
_LEAST_ROWS, _MOST_ROWS = 8, 64  # of a block: what a worker gets at a time, and what a lost node costs
_BLOCKS_PER_WORKER = 32  # so that all end together
_FAREWELL_SECONDS = 30.0
_FAILED_WORKER_BACKOFF_SECONDS = 60.0  # a worker that fails at once would else take all clips from those that work

_Message = Mapping[str, Any]


class RayPool:
    """Captions on a Ray cluster; whoever iterates stays the journal's one writer."""

    def __init__(self, settings: Mapping[str, Any], task: str, address: str, command: Sequence[str] = COMMAND) -> None:
        """Join a cluster: `local` starts one here, `auto` finds one, else its address. Each worker gets one GPU, or
        one processor core in a cluster that has no GPU when it is joined.

        Raises UsageError where Ray is not installed, or there is no such cluster.
        """
        self._ray = _joined(address)
        self._desk = self._ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator).remote()
        self._work = {"settings": dict(settings), "task": task, "command": tuple(command), "desk": self._desk}
        self._messages: SimpleQueue[_Message | None] = SimpleQueue()
        self._pump: Thread | None = None
        self._finishing = Flag()
        self._stopped = Flag()

    def captions(self, pending: Iterable[Pending]) -> Iterator[ClipRecord]:
        """A record for every clip; raises VidqaError where no worker can go on, or dataset after dataset is in vain."""
        waiting = iter(pending)
        try:
            while not self._is_ending() and (clips := list(islice(waiting, _MOST_CLIPS))):
                yield from self._captions_of({clip.clip.name: clip for clip in clips})
        except BaseException:
            self.stop()
            raise

    def finish(self) -> None:
        """Begin no more clips; what the workers have begun is still recorded."""
        self._finishing.set()
        self._desk.say.remote("finish")

    def stop(self) -> None:
        """End at once; the workers kill what they run."""
        self._stopped.set()
        self._desk.say.remote("stop")
        self._messages.put(None)

    def close(self) -> None:
        """Leave the cluster, and end one that was started here."""
        if self._pump is not None:
            self._pump.join(_FAREWELL_SECONDS)  # Ray must not be left while a dataset runs
        self._ray.shutdown()

    def _is_ending(self) -> bool:
        return self._finishing.is_set() or self._stopped.is_set()

    def _captions_of(self, left: dict[str, Pending]) -> Iterator[ClipRecord]:
        """Datasets until every clip has its record; a record that comes twice is dropped."""
        vain = 0
        failing: set[str] = set()
        while left and not self._is_ending():
            vain += 1
            workers, reason = self._begin(list(left.values())), "it lost all rows"
            while not self._stopped.is_set() and (message := self._messages.get()) is not None:
                if "record" in message:
                    vain, failing = 0, set()
                    record = record_from(message["record"])
                    if left.pop(record.name, None) is not None:
                        yield record
                elif "ended" in message:
                    reason = message["ended"]
                else:
                    failing.add(message["worker"])
                    if len(failing) >= workers:
                        raise _told(message)
            if vain >= _MOST_VAIN:
                raise VidqaError(
                    f"Ray ended {vain} datasets without a caption: {safe_line(reason)}.",
                    "What is captioned is kept; `ray status` and Ray's own logs say more.",
                )

    def _begin(self, clips: Sequence[Pending]) -> int:
        """Start a dataset, whose messages will come; returns how many workers there is room and work for now."""
        import pyarrow  # type: ignore[import-untyped]

        resources = self._ray.cluster_resources()
        kind = "GPU" if resources.get("GPU", 0) else "CPU"
        workers = max(int(resources.get(kind, 0)), 1)
        rows = rows_of_a_block(len(clips), workers)
        workers = min(workers, -(-len(clips) // rows))
        lines = [json.dumps(asdict(clip)) for clip in clips]
        blocks = [pyarrow.table({"pending": lines[at : at + rows]}) for at in range(0, len(lines), rows)]
        dataset = self._ray.data.from_arrow(blocks).map_batches(
            RayActor,
            batch_size=rows,
            compute=self._ray.data.ActorPoolStrategy(min_size=1, initial_size=workers, max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs=self._work,
            num_gpus=1 if kind == "GPU" else None,
            num_cpus=1 if kind == "CPU" else None,
        )
        self._pump = Thread(target=self._bring, args=(dataset,), daemon=True)
        self._pump.start()
        return workers

    def _bring(self, dataset: Any) -> None:
        """Bring the messages here in a thread of its own: nothing in Ray can be waited for and stopped."""
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                for line in batch["message"]:
                    self._messages.put(json.loads(line))
        except Exception as error:  # whatever Ray or the network raise; another dataset may fare better
            self._messages.put({"ended": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})
        self._messages.put(None)


class RayActor:
    """What one of Ray's workers runs: the process of the GPU that Ray gave it."""

    def __init__(self, settings: Mapping[str, Any], task: str, command: Sequence[str], desk: Any) -> None:
        self._crew = GpuPool(settings, task, (os.environ.get("CUDA_VISIBLE_DEVICES", ""),), command)
        self._task, self._desk = task, desk
        self._name = uuid.uuid4().hex
        self._failed = False
        self._over = Flag()
        for word, obey in (("finish", self._crew.finish), ("stop", self._crew.stop)):
            Thread(target=self._listen, args=(word, obey), daemon=True).start()

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Messages for a block of clips: records, or why this worker cannot make any."""
        import numpy as np

        if self._failed:
            self._over.wait(_FAILED_WORKER_BACKOFF_SECONDS)
        pending = [pending_from(json.loads(line)) for line in block["pending"]]
        return {"message": np.array([json.dumps(message) for message in self._messages(pending)], dtype=str)}

    def _messages(self, pending: Sequence[Pending]) -> Iterator[_Message]:
        try:
            for record in self._records(pending):
                yield {"record": record_object(record)}
        except VidqaError as error:
            self._failed = True
            told = {"error": type(error).__name__, "what": error.what, "remedy": error.remedy}
            yield {"worker": self._name} | told

    def _records(self, pending: Sequence[Pending]) -> Iterator[ClipRecord]:
        """Ray does a block again, without end, when its worker or node dies: suspects alone then, and not for ever."""
        import ray

        deaths: list[int] = ray.get(self._desk.deaths.remote(_keys(pending)))
        judged = list(zip(pending, deaths, strict=True))
        for clip, died in judged:
            if died >= MOST_DEATHS:
                yield worker_died(clip, self._task, "died with its process or its node")
        groups = [[clip for clip, died in judged if died == 0]]
        groups += [[clip] for clip, died in judged if 0 < died < MOST_DEATHS]
        for group in groups:
            ray.get(self._desk.begin.remote(_keys(group)))
            yield from self._crew.captions(group)
            self._desk.end.remote(_keys(group))

    def _listen(self, word: str, obey: Callable[[], None]) -> None:
        import ray

        ray.get(self._desk.heard.remote(word))
        self._over.set()
        obey()


class Coordinator:
    """What all workers of a run know together: whether to finish or to stop, and in which clips' hands others died."""

    def __init__(self) -> None:
        self._said = {"finish": Event(), "stop": Event()}
        self._begun: Counter[str] = Counter()

    async def say(self, word: str) -> None:
        """Let all finish or stop, those too that come later."""
        self._said[word].set()

    async def heard(self, word: str) -> None:
        """Until it is said."""
        await self._said[word].wait()

    async def begin(self, keys: Sequence[str]) -> None:
        """A worker has these clips now."""
        self._begun.update(keys)

    async def end(self, keys: Sequence[str]) -> None:
        """It has done with them."""
        for key in keys:
            del self._begun[key]

    async def deaths(self, keys: Sequence[str]) -> list[int]:
        """How many workers began each clip and never ended it."""
        return [self._begun.get(key, 0) for key in keys]


def _keys(clips: Sequence[Pending]) -> list[str]:
    """Their names in ASCII: Ray passes no name that is not UTF-8."""
    return [json.dumps(clip.clip.name) for clip in clips]


def rows_of_a_block(clips: int, workers: int) -> int:
    """How many clips a worker gets at a time: enough to fill its batches, and no worker without any."""
    wanted = -(-clips // (workers * _BLOCKS_PER_WORKER))
    return min(max(wanted, _LEAST_ROWS), _MOST_ROWS, -(-clips // workers))


def _told(message: _Message) -> VidqaError:
    kind = getattr(errors, message["error"], VidqaError)
    error: VidqaError = kind(message["what"], message["remedy"])
    return error


def _joined(address: str) -> Any:
    """The package `ray`, connected, its talk kept off this process's terminal."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it prints that it will be so one day
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("Ray is not installed.", "pip install 'vidqa[ray]', on all nodes.") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        what = f"There is no Ray cluster at {safe_line(address)}: {safe_line(str(error).partition(chr(10))[0])}"
        raise UsageError(what, "`ray status` shows a running one; --ray local starts one here.") from error
    # It prints on stdout, whatever it is told, that a node or a worker died; stdout is for what was asked for.
    import_module("ray._private.worker").print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # lost blocks are done by another dataset; the others go on
    context.execution_no_progress_timeout_s = -1  # a block of long clips may take longer than any limit
    return ray
