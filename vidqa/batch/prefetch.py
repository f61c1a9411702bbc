"""Prefetching of clips: opens, prepares and decodes the next clips while the model works on others.

Threads with one decoder process each take jobs as the memory budget allows, so neither the number of jobs nor the
length of a clip increases memory use.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from vidqa.batch.frame_buffer import BufferedFrames, BufferedSource, MemoryBudget
from vidqa.errors import Interrupted, VidqaError
from vidqa.types import VideoInfo
from vidqa.video.decoder_pool import ReusedDecoder
from vidqa.video.open import Source
from vidqa.video.reader import Decoding, VideoReader

_CLOSE_SECONDS = 1.0  # how long `close` waits for threads that are inside the caller's functions


class PrefetchJob(Protocol):
    """A job with a file to read."""

    @property
    def path(self) -> str:
        """The file."""


AnyJob = TypeVar("AnyJob", bound=PrefetchJob)


@dataclass(frozen=True, slots=True)
class PrefetchedClip(Generic[AnyJob]):
    """A job with its `reader`, or with an `error`; then `info` is None if the file could not be opened.

    Closing the reader keeps frames that were not read, for another attempt. `close` drops them; call it after every
    job.
    """

    job: AnyJob
    info: VideoInfo | None
    reader: VideoReader | None
    error: VidqaError | None
    _buffered: BufferedFrames | None = None

    def close(self) -> None:
        """Drop the frames; the reader then decodes from the file."""
        if self._buffered is not None:
            self._buffered.drop(unread=True)


class Prefetcher(Generic[AnyJob]):
    """Iterates over jobs as they become ready: opened and prepared, with frames being decoded.

    `prepare` returns the ascending indices of the frames that will be read; it is called from other threads, one
    call at a time, and its exceptions become the job's error. These frames come from the buffer once; others are
    decoded from the file. `jobs` is pulled as needed, at most `max_ready` ahead of the consumer. Decoded frames never
    take more than `max_bytes`; a clip that does not fit is decoded later, at the latest when it is read, so clips can
    be read in any order.
    """

    def __init__(
        self,
        jobs: Iterator[AnyJob],
        prepare: Callable[[AnyJob, VideoInfo], Sequence[int]],
        *,
        processes: int,
        max_bytes: int,
        max_ready: int,
        decoding: Decoding,
        inspect: Callable[[AnyJob, Source], None] | None = None,
    ) -> None:
        """`inspect` gets each job's opened file before `prepare`; several threads call it at once."""
        self._inspect = inspect
        self._jobs, self._prepare, self._max_ready, self._decoding = jobs, prepare, max_ready, decoding
        self._budget = MemoryBudget(max_bytes)
        self._changed = self._budget.changed
        self._pull_lock, self._prepare_lock = threading.Lock(), threading.Lock()
        self._ready: deque[PrefetchedClip[AnyJob]] = deque()
        self._queued: list[BufferedFrames] = []  # ready, waiting for memory
        self._pulled = 0  # jobs pulled and not yet yielded
        self._exhausted = False
        self._failure: Exception | None = None  # raised by `jobs`
        self._decoders = [ReusedDecoder(decoding, lambda: self._budget.closed) for _ in range(processes)]
        self._threads = [
            threading.Thread(target=self._work, args=(decoder,), name="vidqa-prefetch", daemon=True)
            for decoder in self._decoders
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Prefetcher[AnyJob]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def peak_bytes(self) -> int:
        """The most bytes that decoded frames took so far."""
        return self._budget.peak_bytes

    def __iter__(self) -> Iterator[PrefetchedClip[AnyJob]]:
        return self

    def __next__(self) -> PrefetchedClip[AnyJob]:
        """Wait for the next job that is ready. Raises what `jobs` raised, after its last job."""
        with self._changed:
            while not self._ready and not self._budget.closed and not (self._exhausted and not self._pulled):
                self._changed.wait()
            if self._ready and not self._budget.closed:
                self._pulled -= 1
                self._changed.notify_all()
                return self._ready.popleft()
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure
        raise StopIteration

    def close(self) -> None:
        """End threads and processes, and whatever waits for a job or a frame. Callable from any thread."""
        self._budget.close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread, decoder in zip(self._threads, self._decoders, strict=True):
            thread.join(max(deadline - time.monotonic(), 0))
            decoder.abandon()

    def _work(self, decoder: ReusedDecoder) -> None:
        """Run one thread: clips that now fit the budget come first, then the next job."""
        with decoder:
            while (task := self._next_task()) is not None:
                if isinstance(task, BufferedFrames):
                    self._decode_queued(task, decoder)
                elif (job := self._pull()) is not None:
                    self._start(job, decoder)

    def _next_task(self) -> BufferedFrames | bool | None:
        """Wait for a task: a queued clip that fits the budget, True if a job may be pulled, None at the end."""
        with self._changed:
            while not self._budget.closed:
                self._queued = [buffered for buffered in self._queued if buffered.is_waiting]
                if (fitting := next((buffered for buffered in self._queued if buffered.reserve()), None)) is not None:
                    return fitting
                if self._exhausted and not self._queued:
                    return None
                if not self._exhausted and self._pulled < self._max_ready:
                    self._pulled += 1
                    return True
                self._changed.wait()
        return None

    def _pull(self) -> AnyJob | None:
        """Return the next job, None after the last."""
        try:
            with self._pull_lock:
                if not self._exhausted:
                    return next(self._jobs)
        except StopIteration:
            pass
        except Exception as error:
            self._failure = error
        with self._changed:
            self._exhausted = True
            self._pulled -= 1
            self._changed.notify_all()
        return None

    def _start(self, job: AnyJob, decoder: ReusedDecoder) -> None:
        """Open and prepare a job, publish it, and decode its frames if they fit the budget."""
        info = None
        try:
            info, source = decoder.open(job.path)
            if self._inspect is not None:
                self._inspect(job, source)
            with self._prepare_lock:
                indices = self._prepare(job, info)
        except Interrupted:
            return  # only `close` causes it
        except Exception as error:
            self._publish(PrefetchedClip(job, info, None, _as_vidqa_error(error)))
            return
        buffered = BufferedFrames(self._budget, job.path, info, indices)
        reader = VideoReader(info, BufferedSource(buffered, self._decoding))
        if self._publish(PrefetchedClip(job, info, reader, None, buffered), buffered):
            self._decode(buffered, source, decoder)

    def _publish(self, ready: PrefetchedClip[AnyJob], buffered: BufferedFrames | None = None) -> bool:
        """Hand a job to the consumer; returns whether its frames are to be decoded now."""
        with self._changed:
            self._ready.append(ready)
            self._changed.notify_all()
            if buffered is None or buffered.total_bytes > self._budget.max_bytes:
                return False
            if buffered.reserve():
                return True
            self._queued.append(buffered)
            return False

    def _decode_queued(self, buffered: BufferedFrames, decoder: ReusedDecoder) -> None:
        """Decode a clip that did not fit the budget when it was opened."""
        try:
            info, source = decoder.open(buffered.path)
        except Interrupted:
            return
        except Exception:
            buffered.give_up()  # the reader opens the file again and gets the error
            return
        if info.pts_seconds == buffered.info.pts_seconds:
            self._decode(buffered, source, decoder)
        else:
            buffered.give_up()

    def _decode(self, buffered: BufferedFrames, source: Source, decoder: ReusedDecoder) -> None:
        try:
            for frame in source.frames(buffered.indices):
                if not buffered.put(frame):
                    return
            buffered.end(source.stopped)
        except Interrupted:
            return
        except Exception as error:
            if decoder.suspect:
                buffered.give_up()
            else:
                buffered.end(_as_vidqa_error(error))


def _as_vidqa_error(error: Exception) -> VidqaError:
    if isinstance(error, VidqaError):
        return error
    return VidqaError(f"{type(error).__name__} while the clip was prepared: {error}")
