"""A Captioner with one session in this process: prefetches clips, groups similar ones, answers each group at once."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from vidqa.batch.caption_requests import CaptionRequest, ClipSegmenter, PlannedQuestion, RequestPlanner, bucketed
from vidqa.batch.clip_record import ClipRecord, FailedStage, Failure, PendingClip
from vidqa.batch.clip_result import ClipResult
from vidqa.batch.prefetch import PrefetchedClip, Prefetcher
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.batch.run_forecast import RunTimer
from vidqa.config import CLIP_DEADLINE_SECONDS, EngineConfig
from vidqa.devices.device import find_device
from vidqa.devices.host import usable_cores
from vidqa.errors import DoesNotFit, Interrupted, ModelError, NotFinite, UsageError, VideoError, VidqaError
from vidqa.events import LOADING, Answered, Event, Failed, StageProgress, StageStarted
from vidqa.planner.calibration import device_key
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import cpu_threads
from vidqa.types import Placement, Request, VideoInfo
from vidqa.video.reader import Decoding, VideoReader, open_source
from vidqa.video.subtitle_files import OFF

MAX_WAITING = 48  # clips that wait for others of their bucket, and that are prefetched


class BatchEngine(Protocol):
    """The part of `vidqa.Session` that captioning uses."""

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        """Plan for a probed video."""

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """Answer several requests at once; each one's last event is Answered or Failed."""

    def cancel(self) -> None:
        """Stop at the next chunk or token."""

    def close(self) -> None:
        """Release the model."""


Opener = Callable[[Request, Callable[[], bool]], VideoReader]
EngineFactory = Callable[[EngineConfig, Opener], BatchEngine]
OnEvent = Callable[[Sequence[str], Event], None]
"""Called with the names of the group's clips and an event of the engine."""


def make_session(config: EngineConfig, opener: Opener) -> BatchEngine:
    """Return a `vidqa.Session`; imported late, as it loads torch."""
    from vidqa.engine.session import Session

    return Session(config, opener=opener)


@dataclass(frozen=True, slots=True)
class PrefetchOptions:
    """How clips are prefetched: decoder processes, bytes of buffered frames, seconds allowed for one clip."""

    processes: int = field(default_factory=lambda: min(max(usable_cores() // 4, 2), 6))  # FFmpeg adds threads
    max_bytes: int = 2**30
    clip_deadline_seconds: float = CLIP_DEADLINE_SECONDS


@dataclass(frozen=True, slots=True)
class CaptionerConfig:
    """How clips are captioned: engine, request, the run's key, batch size (None: automatic), prefetching."""

    engine: EngineConfig
    request: CaptionRequest
    run: str
    batch: int | None = None
    prefetch: PrefetchOptions = field(default_factory=PrefetchOptions)

    @property
    def decoding(self) -> Decoding:
        """How files are decoded."""
        deadline = self.prefetch.clip_deadline_seconds
        seconds = min(self.engine.decoder_deadline_seconds, deadline)
        subs = self.request.request.subs
        return Decoding(self.engine.isolate_decoder, seconds, deadline, gives_way=True, subs=subs)

    @property
    def device_key(self) -> str:
        """What measured times of the device belong to."""
        return device_key(find_device(self.engine.device), cpu_threads(self.engine))

    def to_object(self) -> dict[str, Any]:
        """Return it as JSON types, for a worker process."""
        return asdict(self)

    @staticmethod
    def from_object(values: Mapping[str, Any]) -> "CaptionerConfig":
        """Parse `to_object`'s result after a passage through JSON."""
        engine, caption_request = dict(values["engine"]), values["request"]
        if engine["placement"] is not None:
            engine["placement"] = Placement(**engine["placement"])
        request = dict(caption_request["request"], history=())
        if request["size"] is not None:
            request["size"] = tuple(request["size"])
        prompt = PromptTemplate(**caption_request["prompt"])
        return CaptionerConfig(
            EngineConfig(**engine),
            CaptionRequest(prompt, Request(**request), caption_request["segments"]),
            values["run"],
            values["batch"],
            PrefetchOptions(**values["prefetch"]),
        )


class SessionCaptioner:
    """A Captioner with one model; `on_event` gets the engine's events.

    With `remember_run`, a call of `captions` is a whole run, whose times are remembered for later forecasts.
    """

    def __init__(
        self,
        config: CaptionerConfig,
        make_engine: EngineFactory = make_session,
        on_event: OnEvent = lambda names, event: None,
        *,
        remember_run: bool = True,
    ) -> None:
        self._remember_run = remember_run and config.engine.remember and config.engine.calibrate
        self._config, self._make_engine, self._on_event = config, make_engine, on_event
        self._finishing = self._stopped = False  # plain booleans, as signal handlers set them
        self._busy = False  # answering a group; otherwise `finish` ends the wait for the next one
        self._prefetcher: Prefetcher[PlannedQuestion] | None = None
        self._lock = threading.Lock()
        self._engine: BatchEngine | None = None
        self._readable: dict[Request, PrefetchedClip[PlannedQuestion]] = {}
        self._results: dict[str, ClipResult] = {}
        self._load_seconds = 0.0
        self._timer = RunTimer(config.prefetch.processes)

    def captions(self, pending: Iterable[PendingClip]) -> Iterator[ClipRecord]:
        """Yield a record for every clip; see Captioner. Raises ModelError if the model cannot be used at all."""
        config = self._config
        planner = RequestPlanner(config.request, config.engine, self.forecast, config.batch)
        with Prefetcher(
            self._questions(pending), planner.plan, processes=config.prefetch.processes,
            max_bytes=config.prefetch.max_bytes, max_ready=MAX_WAITING, decoding=config.decoding,
            inspect=planner.scan if planner.scans else None,
        ) as self._prefetcher:  # fmt: skip
            self._timer = RunTimer(config.prefetch.processes)
            for group in bucketed(self._prefetcher, lambda ready: ready.job.bucket, MAX_WAITING):
                self._busy = True
                if accepted := [ready for ready in group if self._is_accepted(ready.job)]:
                    self._timer.begin_group([ready.job for ready in accepted])
                    yield from self._process(accepted)
                self._busy = bool(self._results)
                self._close_if_idle()
            if self._remember_run:
                self._timer.remember(config.device_key)

    def finish(self) -> None:
        """End after the current group; during loading, immediately."""
        self._finishing = True
        self._close_if_idle()

    def stop(self) -> None:
        """End immediately."""
        self._finishing = self._stopped = True
        if self._engine is not None:
            self._engine.cancel()
        if self._prefetcher is not None:
            self._prefetcher.close()

    def close(self) -> None:
        """Release the model."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig) -> Forecast:
        """Return the session's plan."""
        return self._get_engine().forecast(video, request, config)

    def _close_if_idle(self) -> None:
        """Stop prefetching if no group is in work: a decoder that hangs would delay the end."""
        if self._finishing and not self._busy and self._prefetcher is not None:
            self._prefetcher.close()

    def _get_engine(self) -> BatchEngine:
        """Return the session, made anew after an unexpected error closed the last one."""
        with self._lock:
            if self._engine is None:
                self._engine = self._make_engine(self._config.engine, self._open)
            return self._engine

    def _open(self, request: Request, is_cancelled: Callable[[], bool]) -> VideoReader:
        """Return the prefetched reader; for a second attempt with another plan, open the file."""
        ready = self._readable.pop(request, None)
        if ready is not None and ready.reader is not None:
            return ready.reader
        return VideoReader(*open_source(request.video, self._config.decoding, is_cancelled))

    def _is_accepted(self, question: PlannedQuestion) -> bool:
        """Return whether to answer a question: while finishing, only those of clips that were begun."""
        return not self._finishing or question.pending.clip.name in self._results

    def _questions(self, pending: Iterable[PendingClip]) -> Iterator[PlannedQuestion]:
        """Yield each clip's questions, no new clip's while finishing. Runs in the prefetcher's threads."""
        segments, decoding = self._config.request.segments, replace(self._config.decoding, subs=OFF)
        with suppress(Interrupted), ClipSegmenter(segments, decoding, lambda: self._finishing) as splitter:
            for clip in pending:
                if self._finishing:
                    return
                if segments is None:
                    yield PlannedQuestion(clip)
                    continue
                try:
                    yield from [question for question, _ in splitter.split(clip)]
                except (VideoError, UsageError) as error:  # UsageError: too many segments
                    yield PlannedQuestion(clip, error=error)

    def _process(self, group: Sequence[PrefetchedClip[PlannedQuestion]]) -> Iterator[ClipRecord]:
        """Answer a group; yield the records of clips that are then complete."""
        for ready in group:
            question = ready.job
            self._results.setdefault(
                question.pending.clip.name, ClipResult(question.pending, self._config.run, question.count)
            )
        started, self._load_seconds = time.monotonic(), 0.0
        for ready in group:
            if ready.error is not None:
                self._fail(ready.job, ready.error, "open" if ready.info is None else "plan")
        if readable := [ready for ready in group if ready.error is None]:
            self._answer(readable)
        self._timer.load_seconds += self._load_seconds
        share = (time.monotonic() - started - self._load_seconds) / len(group)
        for ready in group:
            self._result(ready.job).seconds += share
        for name in dict.fromkeys(ready.job.pending.clip.name for ready in group):
            if self._results[name].is_complete:
                yield self._results.pop(name).to_record()

    def _result(self, question: PlannedQuestion) -> ClipResult:
        return self._results[question.pending.clip.name]

    def _fail(self, question: PlannedQuestion, error: Exception, stage: FailedStage) -> None:
        self._result(question).add_failure(question, failure_of(error, stage))

    def _answer(self, group: Sequence[PrefetchedClip[PlannedQuestion]]) -> None:
        """Answer a group; if that fails, answer its clips one by one to find the cause."""
        try:
            self._ask(group)
        except Interrupted:
            raise
        except Exception as error:
            if isinstance(error, ModelError) and not isinstance(error, NotFinite):
                raise  # no clip can be captioned
            if not isinstance(error, VidqaError):
                self.close()  # the session may be broken
            if len(group) == 1:
                self._fail(group[0].job, error, "caption")
                return
            for ready in [ready for ready in group if not self._result(ready.job).has(ready.job)]:
                self._answer([ready])

    def _ask(self, group: Sequence[PrefetchedClip[PlannedQuestion]]) -> None:
        questions = [ready.job for ready in group]
        requests = [question.request for question in questions if question.request is not None]
        self._readable = dict(zip(requests, group, strict=True))
        names = [question.pending.clip.name for question in questions]
        try:
            started, engine = time.monotonic(), self._get_engine()
            earlier = self._load_seconds
            for number, event in engine.ask_many(requests):
                self._on_event(names, event)
                self._timer.on_event(event)
                if self._stopped or (self._finishing and _is_loading(event)):
                    engine.cancel()  # again, as the session forgets a cancel that precedes its question
                match event:
                    case StageProgress("load", done, total) if done == total:
                        # not counted for any clip; all bytes can be there a while before the model is
                        self._load_seconds = earlier + time.monotonic() - started
                    case Answered(answer):
                        if answer.finish_reason == "cancelled":
                            raise Interrupted("Stopped while clips were captioned.")
                        self._result(questions[number]).add_answer(questions[number], answer)
                    case Failed(error):
                        self._fail(questions[number], error, "caption")
        finally:
            for ready in group:
                ready.close()
            self._readable.clear()


def make_captioner(values: Mapping[str, Any]) -> SessionCaptioner:
    """Return a worker process's captioner from `CaptionerConfig.to_object`.

    It remembers no times: it gets its clips a few at a time, and all but the first few need no loading.
    """
    return SessionCaptioner(CaptionerConfig.from_object(values), remember_run=False)


def _is_loading(event: Event) -> bool:
    return isinstance(event, StageStarted | StageProgress) and event.stage in LOADING


def failure_of(error: Exception, stage: FailedStage) -> Failure:
    """Return an error as a record's failure."""
    match error:
        case DoesNotFit():
            stage = "plan"
        case VideoError() if stage != "open":
            stage = "video"
    if isinstance(error, VidqaError):
        return Failure(stage, type(error).__name__, error.what, error.remedy)
    message = f"Unexpected error: {error}."
    return Failure(stage, type(error).__name__, message, "Run again with --retry-failed; report it if it returns.")
