"""Reads the next clips while the model works on others: opened, planned for, and their frames decoded.

Threads, each with a decoder process of its own, take jobs as there is room for them, so that neither
the number of jobs nor the length of a clip makes memory grow. Knows jobs by their path alone.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from vidqa.batch.frame_buffer import BufferedFrames, BufferedReader, MemoryBudget
from vidqa.errors import Interrupted, VidqaError
from vidqa.types import VideoInfo
from vidqa.video.decoder_pool import ReusedDecoder
from vidqa.video.open import Source
from vidqa.video.reader import Decoding, VideoReader

_END_SECONDS = 1.0  # that threads are waited for which a caller's function keeps busy


class PrefetchJob(Protocol):
    """What is to be read; more than its path is the caller's."""

    @property
    def path(self) -> str:
        """The file."""


AnyJob = TypeVar("AnyJob", bound=PrefetchJob)


@dataclass(frozen=True, slots=True)
class PrefetchedClip(Generic[AnyJob]):
    """A job that can be worked on, or why it cannot: a `reader`, or an `error`.

    With an error, `info` tells whether the file could be opened. Closing the reader leaves frames that nobody
    began to read, for another try; `close` lets go of all, and belongs at the end of every job.
    """

    job: AnyJob
    info: VideoInfo | None
    reader: VideoReader | None
    error: VidqaError | None
    _buffered: BufferedFrames | None = None

    def close(self) -> None:
        """Let go of the frames; what is asked of the reader afterwards is read from the file."""
        if self._buffered is not None:
            self._buffered.drop(unread=True)


class Prefetcher(Generic[AnyJob]):
    """Yields jobs as they become ready: opened and prepared, while their frames are decoded behind that.

    `prepare` says which frames will be asked for (ascending indices); it is called in other threads, never twice
    at once, and what it raises is its job's error. Where just these are asked for, once, they come as they were
    decoded; anything else is read from the file. `jobs` is pulled as needed, at most `most_ready` ahead of
    whoever iterates. Decoded frames never take more than `most_bytes`: a clip that finds no room is decoded
    later, at the latest when it is read, so that clips can be read in any order.
    """

    def __init__(
        self,
        jobs: Iterator[AnyJob],
        prepare: Callable[[AnyJob, VideoInfo], Sequence[int]],
        *,
        processes: int,
        most_bytes: int,
        most_ready: int,
        how: Decoding,
    ) -> None:
        self._jobs, self._prepare, self._most_ready, self._how = jobs, prepare, most_ready, how
        self._room = MemoryBudget(most_bytes)
        self._pulling, self._preparing = threading.Lock(), threading.Lock()
        self._ready: deque[PrefetchedClip[AnyJob]] = deque()
        self._queued: list[BufferedFrames] = []  # ready, and waiting for room
        self._ahead = 0  # jobs pulled and not yet yielded
        self._ended = False  # there are no more jobs
        self._failure: Exception | None = None  # of the jobs' iterator
        self._decoders = [ReusedDecoder(how, lambda: self._room.closed) for _ in range(processes)]
        self._threads = [
            threading.Thread(target=self._work, args=(decoder,), name="vidqa-ahead", daemon=True)
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
    def most_held_bytes(self) -> int:
        """The most that decoded frames took so far."""
        return self._room.most_held_bytes

    def __iter__(self) -> Iterator[PrefetchedClip[AnyJob]]:
        return self

    def __next__(self) -> PrefetchedClip[AnyJob]:
        """The next job that is ready; waits for it. Raises what the iterator of jobs raised, after the last."""
        with self._room.changed:
            while not self._ready and not self._room.closed and not (self._ended and not self._ahead):
                self._room.changed.wait()
            if self._ready and not self._room.closed:
                self._ahead -= 1
                self._room.changed.notify_all()
                return self._ready.popleft()
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure
        raise StopIteration

    def close(self) -> None:
        """End threads and processes; whoever waits for a job or a frame is told. Callable from any thread."""
        self._room.close()
        until = time.monotonic() + _END_SECONDS
        for thread, decoder in zip(self._threads, self._decoders, strict=True):
            thread.join(max(until - time.monotonic(), 0))
            decoder.abandon()

    def _work(self, decoder: ReusedDecoder) -> None:
        """One thread: clips that room was found for first, then the next job."""
        with decoder:
            while (task := self._next_task()) is not None:
                if isinstance(task, BufferedFrames):
                    self._open_again(task, decoder)
                elif (job := self._pull()) is not None:
                    self._begin(job, decoder)

    def _next_task(self) -> BufferedFrames | bool | None:
        """A clip that found room, True where a job may be pulled, None at the end. Waits for one of them."""
        with self._room.changed:
            while not self._room.closed:
                self._queued = [buffered for buffered in self._queued if buffered.wanted]
                if (fitting := next((buffered for buffered in self._queued if buffered.reserve()), None)) is not None:
                    return fitting
                if self._ended and not self._queued:
                    return None
                if not self._ended and self._ahead < self._most_ready:
                    self._ahead += 1
                    return True
                self._room.changed.wait()
        return None

    def _pull(self) -> AnyJob | None:
        """The next job, None after the last."""
        try:
            with self._pulling:
                if not self._ended:
                    return next(self._jobs)
        except StopIteration:
            pass
        except Exception as error:
            self._failure = error
        with self._room.changed:
            self._ended = True
            self._ahead -= 1
            self._room.changed.notify_all()
        return None

    def _begin(self, job: AnyJob, decoder: ReusedDecoder) -> None:
        """Open and prepare a job, tell that it is ready, and decode its frames if there is room."""
        info = None
        try:
            info, source = decoder.open(job.path)
            with self._preparing:
                indices = self._prepare(job, info)
        except Interrupted:
            return  # only `close` stops it
        except Exception as error:
            self._tell(PrefetchedClip(job, info, None, _explained(error)))
            return
        buffered = BufferedFrames(self._room, job.path, info, indices)
        reader = VideoReader(info, BufferedReader(buffered, self._how))
        if self._tell(PrefetchedClip(job, info, reader, None, buffered), buffered):
            self._decode(buffered, source, decoder)

    def _tell(self, ready: PrefetchedClip[AnyJob], buffered: BufferedFrames | None = None) -> bool:
        """A job is ready; whether its frames are to be decoded now."""
        with self._room.changed:
            self._ready.append(ready)
            self._room.changed.notify_all()
            if buffered is None or not self._room.could_take(buffered.total_bytes):
                return False
            if buffered.reserve():
                return True
            self._queued.append(buffered)
            return False

    def _open_again(self, buffered: BufferedFrames, decoder: ReusedDecoder) -> None:
        """Decode a clip that found no room when it was opened."""
        try:
            info, source = decoder.open(buffered.path)
        except Interrupted:
            return
        except Exception:
            buffered.give_up()  # whoever reads the clip is told
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
                buffered.end(_explained(error))


def _explained(error: Exception) -> VidqaError:
    """An error as one that can be told."""
    if isinstance(error, VidqaError):
        return error
    return VidqaError(f"{type(error).__name__} while the clip was prepared: {error}")
