"""Captions clips with one session: reads ahead, groups clips of a kind, answers each group at once.

A Captioner of this process. Knows no journal and no files but the clips.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from vidqa.batch.bucketing import groups
from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion, Preparing
from vidqa.batch.clip_record import ClipRecord, FailedStage, Failure, Pending
from vidqa.batch.clip_result import ClipResult
from vidqa.batch.clip_segments import SegmentedClip
from vidqa.batch.prefetch import PrefetchedClip, Prefetcher
from vidqa.config import CLIP_DEADLINE_SECONDS, EngineConfig
from vidqa.devices.host import usable_cores
from vidqa.errors import DoesNotFit, Interrupted, ModelError, NotFinite, UsageError, VideoError, VidqaError
from vidqa.events import Answered, Event, Failed, StageProgress, StageStarted
from vidqa.planner.planner import Forecast
from vidqa.types import Request, VideoInfo
from vidqa.video.reader import Decoding, VideoReader, open_source

_MOST_WAITING = 48  # clips that may wait for others of their kind, and be read ahead


class BatchEngine(Protocol):
    """What captioning needs of a session; `vidqa.Session` is one."""

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        """Plan for a probed video."""

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """Answer several at once; the last event of each is Answered or Failed."""

    def cancel(self) -> None:
        """Stop at the next chunk or token."""

    def close(self) -> None:
        """Let go of the model."""


Opener = Callable[[Request, Callable[[], bool]], VideoReader]
EngineFactory = Callable[[EngineConfig, Opener], BatchEngine]
Tell = Callable[[Sequence[str], Event], None]


def make_session(config: EngineConfig, opener: Opener) -> BatchEngine:
    """The engine's session; imported late, since it is heavy."""
    from vidqa.engine.session import Session

    return Session(config, opener=opener)


def nobody(names: Sequence[str], event: Event) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class PreparedClips:
    """How far ahead clips are read: decoding processes, bytes of frames that wait, seconds for one clip."""

    processes: int = field(default_factory=lambda: min(max(usable_cores() // 4, 2), 6))  # FFmpeg has threads of its own
    most_bytes: int = 2**30
    clip_deadline_seconds: float = CLIP_DEADLINE_SECONDS


class SessionCaptioner:
    """A Captioner with one model. `batch` fixes how many are answered at once; `tell` hears names and events."""

    def __init__(
        self,
        config: EngineConfig,
        asking: CaptionRequest,
        task_key: str,
        *,
        batch: int | None = None,
        reading: PreparedClips = PreparedClips(),
        make_engine: EngineFactory = make_session,
        tell: Tell = nobody,
    ) -> None:
        self._config, self._asking, self._task_key = config, asking, task_key
        self._batch, self._reading = batch, reading
        self._make_engine, self._tell = make_engine, tell
        self._finishing = self._stopped = False  # no Events: signal handlers set them, even within each other
        self._busy = False  # with a group; else who waits for the next one can be sent away
        self._ahead: Prefetcher[PlannedQuestion] | None = None
        self._lock = threading.Lock()
        self._made: BatchEngine | None = None
        self._ready: dict[Request, PrefetchedClip[PlannedQuestion]] = {}
        self._parts: dict[str, ClipResult] = {}
        self._load_seconds = 0.0

    def captions(self, pending: Iterable[Pending]) -> Iterator[ClipRecord]:
        """A record for every clip; see Captioner. Raises ModelError where the model cannot be used at all."""
        preparing = Preparing(self._asking, self._config, self.forecast, self._batch)
        with self._read_ahead(self._jobs(pending), preparing) as self._ahead:
            for group in groups(self._ahead, lambda ready: ready.job.kind, _MOST_WAITING):
                self._busy = True
                begun = [ready for ready in group if not self._is_late(ready.job)]
                if begun:
                    yield from self._settled(begun)
                self._busy = bool(self._parts)
                self._leave_if_idle()

    def finish(self) -> None:
        """End with the group that is being answered; while the model loads, at once."""
        self._finishing = True
        self._leave_if_idle()

    def stop(self) -> None:
        """End at once."""
        self._finishing = self._stopped = True
        if self._made is not None:
            self._made.cancel()
        if self._ahead is not None:
            self._ahead.close()

    def _leave_if_idle(self) -> None:
        """Read no further: a decoder that hangs would be waited for."""
        if self._finishing and not self._busy and self._ahead is not None:
            self._ahead.close()

    def close(self) -> None:
        """Let go of the model."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig) -> Forecast:
        """What the session would run."""
        return self._engine().forecast(video, request, config)

    def _engine(self) -> BatchEngine:
        """The session; made anew where the last one failed for no known reason."""
        with self._lock:
            if self._made is None:
                self._made = self._make_engine(self._config, self._open)
            return self._made

    def _open(self, request: Request, stopped: Callable[[], bool]) -> VideoReader:
        """What was read ahead, the first time; later, with another plan, the file again."""
        ready = self._ready.pop(request, None)
        if ready is not None and ready.reader is not None:
            return ready.reader
        return VideoReader(*open_source(request.video, self.how, stopped))

    @property
    def how(self) -> Decoding:
        """How files are decoded."""
        config, most = self._config, self._reading.clip_deadline_seconds
        return Decoding(config.isolate_decoder, min(config.decoder_deadline_seconds, most), most, gives_way=True)

    def _read_ahead(self, jobs: Iterator[PlannedQuestion], preparing: Preparing) -> Prefetcher[PlannedQuestion]:
        reading = self._reading
        return Prefetcher(
            jobs, preparing.prepare, processes=reading.processes, most_bytes=reading.most_bytes,
            most_ready=_MOST_WAITING, how=self.how,
        )  # fmt: skip

    def _is_late(self, job: PlannedQuestion) -> bool:
        """Whether a clip is not to be begun any more; one that was begun is finished."""
        return self._finishing and job.pending.clip.name not in self._parts

    def _jobs(self, pending: Iterable[Pending]) -> Iterator[PlannedQuestion]:
        """Each clip's parts; no new clip once it is to finish. Called from the threads that read ahead."""
        with suppress(Interrupted), SegmentedClip(self._asking.segments, self.how, lambda: self._finishing) as opening:
            for clip in pending:
                if self._finishing:
                    return
                yield from self._parts_of(clip, opening)

    def _parts_of(self, clip: Pending, opening: SegmentedClip) -> Iterator[PlannedQuestion]:
        if self._asking.segments is None:
            yield PlannedQuestion(clip)
            return
        try:
            yield from [job for job, _ in opening.jobs(clip)]
        except (VideoError, UsageError) as error:  # too many parts are a usage error
            yield PlannedQuestion(clip, refused=error)

    def _settled(self, group: Sequence[PrefetchedClip[PlannedQuestion]]) -> Iterator[ClipRecord]:
        """Answer a group; records of the clips that are complete by then."""
        for ready in group:
            job = ready.job
            self._parts.setdefault(job.pending.clip.name, ClipResult(job.pending, self._task_key, job.count))
        begun, self._load_seconds = time.monotonic(), 0.0
        for ready in group:
            if ready.error is not None:
                stage: FailedStage = "open" if ready.info is None else "plan"
                self._of(ready.job).failed(ready.job, failure_of(ready.error, stage))
        if readable := [ready for ready in group if ready.error is None]:
            self._answer(readable)
        share = (time.monotonic() - begun - self._load_seconds) / len(group)
        for name in dict.fromkeys(ready.job.pending.clip.name for ready in group):
            parts = self._parts[name]
            parts.seconds += share * sum(ready.job.pending.clip.name == name for ready in group)
            if parts.complete:
                yield self._parts.pop(name).record()

    def _of(self, job: PlannedQuestion) -> ClipResult:
        return self._parts[job.pending.clip.name]

    def _answer(self, group: Sequence[PrefetchedClip[PlannedQuestion]]) -> None:
        """All at once; after an error that is nobody's, one by one, so that it is somebody's."""
        try:
            self._ask(group)
        except Interrupted:
            raise
        except Exception as error:
            if isinstance(error, ModelError) and not isinstance(error, NotFinite):
                raise  # no clip can be captioned
            if not isinstance(error, VidqaError):
                self.close()  # whatever it was, the next clip finds a new session
            left = [ready for ready in group if not self._is_told(ready.job)]
            if len(group) == 1:
                self._of(group[0].job).failed(group[0].job, failure_of(error, "caption"))
                return
            for ready in left:
                self._answer([ready])

    def _is_told(self, job: PlannedQuestion) -> bool:
        parts = self._of(job)
        return job.number in parts.segments or job.number in parts.failures

    def _ask(self, group: Sequence[PrefetchedClip[PlannedQuestion]]) -> None:
        jobs = [ready.job for ready in group]
        requests = [job.request for job in jobs if job.request is not None]
        self._ready = dict(zip(requests, group, strict=True))
        names = [job.pending.clip.name for job in jobs]
        try:
            begun, engine = time.monotonic(), self._engine()
            for number, event in engine.ask_many(requests):
                self._tell(names, event)
                if self._stopped or (self._finishing and _is_loading(event)):
                    engine.cancel()  # again: a stop just before it began was forgotten
                match event:
                    case StageProgress("load", done, total) if done == total:
                        self._load_seconds += time.monotonic() - begun  # nobody's
                    case Answered(answer):
                        if answer.finish_reason == "cancelled":
                            raise Interrupted("Stopped while clips were captioned.")
                        self._of(jobs[number]).answered(jobs[number], answer)
                    case Failed(error):
                        self._of(jobs[number]).failed(jobs[number], failure_of(error, "caption"))
        finally:
            for ready in group:
                ready.close()
            self._ready.clear()


def _is_loading(event: Event) -> bool:
    return isinstance(event, StageStarted | StageProgress) and event.stage == "load"


def failure_of(error: Exception, stage: FailedStage) -> Failure:
    """What a record says of an error."""
    match error:
        case DoesNotFit():
            stage = "plan"
        case VideoError() if stage != "open":
            stage = "video"
    if isinstance(error, VidqaError):
        return Failure(stage, type(error).__name__, error.what, error.remedy)
    what = f"Something unexpected went wrong: {error}."
    return Failure(stage, type(error).__name__, what, "Run again with --retry-failed; report it if it comes back.")
