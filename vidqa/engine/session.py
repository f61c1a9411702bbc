"""The session: answers questions about videos with one loaded model, as events.

The path of a question: open the video, plan for the memory that is free, load the model once, run the plan (an
`Attempt`), and repeat with a smaller plan if memory runs out.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from vidqa.config import EngineConfig
from vidqa.devices.device import allocator_environment, compiler_environment
from vidqa.engine.domain_warning import with_domain_warning
from vidqa.engine.model_manager import ModelManager
from vidqa.engine.request_state import (
    RequestCaches,
    RequestState,
    asked_tokens,
    prompt_of,
    ran_out_of_memory,
    resume_from,
)
from vidqa.engine.scan_stage import plan_with_scan
from vidqa.engine.timers import Callbacks, PhaseTimer, StageContext, Stopwatch, ignore_phase
from vidqa.errors import Interrupted, UsageError
from vidqa.events import Answered, Event, Found, Noted, Planned
from vidqa.planner.explain import unheard_note
from vidqa.planner.planner import Forecast
from vidqa.planner.request_checks import check_config, check_limits, check_request, check_search, check_searchable
from vidqa.planner.subtitle_budget import cues_in_range
from vidqa.types import Plan, Request, VideoInfo
from vidqa.utils.generators import finished
from vidqa.video.reader import VideoReader, never, open_video

if TYPE_CHECKING:
    import numpy

    from vidqa.devices.memory_tracker import Meter
    from vidqa.models.loader import Loaded

Item = TypeVar("Item")


class Session:
    """Answers one question at a time; `cancel` may be called from any thread.

    Errors are raised, progress is yielded; the last event of an `ask` is `Answered`. For tests, `fault` is called with
    the phase's name at every unit of work, and may raise MemoryError; `meter` replaces how memory is read. `opener`
    replaces how a request's video is opened: it gets a function that returns whether to stop, and is called once for
    every attempt.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        fault: Callable[[str], None] = ignore_phase,
        meter: "Meter | None" = None,
        opener: Callable[[Request, Callable[[], bool]], VideoReader] | None = None,
    ) -> None:
        self._config, self._opener = config, opener
        self._lock, self._cancelled = threading.Lock(), threading.Event()
        self._callbacks = Callbacks(self._cancelled.is_set, fault)
        self._models = ModelManager(self._callbacks, meter)
        self._caches = RequestCaches()
        self._unheard: set[str] = set()  # videos whose unheard sound was noted
        # torch reads both when it starts
        os.environ.update(allocator_environment(os.environ) | compiler_environment(os.environ))

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def config(self) -> EngineConfig:
        """The settings of the next question."""
        return self._config

    @property
    def loaded(self) -> "Loaded | None":
        """The model, once a question has loaded it."""
        return self._models.loaded

    def ask(self, request: Request) -> Iterator[Event]:
        """Answer one question. Raises VidqaError children; closing the iterator frees what it held."""
        check_request(request)
        check_config(self.config)
        return self._start(self._answer(request))

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """Answer several requests at once, each as `ask` would; yield (index of the request, event).

        The last event of each is `Answered` or `Failed`. Requests that do not fit together are split into groups.
        """
        for request in requests:
            check_request(request)
        check_config(self.config)
        return self._start(self._answer_batch(requests))

    def load(self, request: Request) -> Iterator[Event]:
        """Plan and load the model as `ask` would; a later question reuses it. Caches of the last video stay.

        Yields `Planned`, then the stage `load` in bytes of the stored weights unless the model is loaded already.
        """
        check_limits(request)
        check_config(self.config)
        return self._start(self._plan_and_load(request))

    def plan(self, request: Request) -> Plan:
        """Return the plan that `ask` would run now; reads the video's header and the model's config, no weights."""
        check_request(request)
        self._clear_cancellation()
        with self._open(request, never) as reader:
            return finished(plan_with_scan(self._models, reader, request, self.config, local=False)).plan

    def see(
        self, request: Request, report: Callable[[Event], None] = lambda event: None
    ) -> tuple[Plan, "list[numpy.ndarray]"]:
        """Return the plan and the frames (height, width, 3) uint8 that the model would get; loads no weights.

        `report` gets the progress of a scan of the video, if one is necessary.
        """
        check_limits(request)
        self._clear_cancellation()
        with self._open(request, never) as reader:
            state = finished(plan_with_scan(self._models, reader, request, self.config, local=False), report)
            from vidqa.engine.vision import planned_frames

            return planned_frames(reader, state.plan, state.problem.spec)

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        """Return the plan that `ask` would run for a probed video, or why none fits; callable during a question.

        Opens no file and loads nothing; free memory is read each time. The loaded model counts as loaded if it serves
        `config`: same model, device, weights and placement. Raises UsageError and ModelError children.
        """
        check_limits(request)
        return self._models.forecast(video, request, config or self.config, self._caches.embedding_bytes())

    def find(self, request: Request) -> Iterator[Event]:
        """Look for the request's question, which may be any text, in the whole video; the last event is `Found`.

        What is cached of the last question stays where memory holds it too. Raises VidqaError children.
        """
        request = replace(request, focus="always", max_tokens=1)
        check_search(request)
        check_config(self.config)
        return self._start(self._search(request))

    def pictures(self, request: Request, plan: Plan) -> tuple[Plan, "list[numpy.ndarray]"]:
        """Return a plan's frames (height, width, 3) uint8 and the plan with their times; a model has to be loaded."""
        assert self.loaded is not None
        from vidqa.engine.vision import planned_frames

        with self._open(request, never) as reader:
            return planned_frames(reader, plan, self.loaded.model.spec)

    def cancel(self) -> None:
        """Stop the running question at its next layer, chunk or token; callable from any thread."""
        self._cancelled.set()

    def reconfigure(self, config: EngineConfig) -> None:
        """Use other settings from the next question on; raises UsageError while a question runs.

        The model stays loaded if it serves `config` too. Any change frees what is cached of the last video.
        """
        with self._exclusive():
            if config == self._config:
                return
            self.forget()
            self._models.unload_unless(config)
            self._config = config

    def forget(self) -> None:
        """Free what is cached of the last video."""
        self._caches = RequestCaches()

    def close(self) -> None:
        """Cancel what runs and free the model."""
        self.cancel()
        self.forget()
        self._models.close()

    def _start(self, stage: Generator[Item, None, None]) -> Generator[Item, None, None]:
        self._clear_cancellation()  # now, not when the first event is read
        return self._run_exclusively(stage)

    def _clear_cancellation(self) -> None:
        """Clear a cancellation of what has ended; one of a question that runs stays."""
        if not self._lock.locked():
            self._cancelled.clear()

    def _run_exclusively(self, stage: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """Run a stage as the only one. Re-raise Interrupted without its traceback, which would keep tensors alive."""
        with self._exclusive():
            try:
                yield from stage
                return
            except Interrupted as error:
                stopped = (error.what, error.remedy)
        raise Interrupted(*stopped)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise UsageError("This session is answering another question.", "Wait for it or cancel it.")
        try:
            yield
        finally:
            self._lock.release()

    def _answer(self, request: Request) -> Generator[Event, None, None]:
        previous, self._caches.question = self._caches.question, None  # freed now, unless this question resumes it
        state = resume_from(previous, request, self.loaded)
        del previous
        yield from self._run_attempts(request, state, self._attempt)

    def _search(self, request: Request) -> Generator[Event, None, None]:
        yield from self._run_attempts(request, None, self._find, searches=True)

    def _run_attempts(
        self,
        request: Request,
        state: RequestState | None,
        attempt: Callable[[RequestState, VideoReader | None], Generator[Event, None, None]],
        *,
        searches: bool = False,
    ) -> Generator[Event, None, None]:
        """Run attempts, each with a smaller plan, until one does not run out of memory."""
        reader, parked = None, self._caches.embedding_bytes()
        try:
            if state is None:
                watch, reader = Stopwatch(), self._open(request)
                state = yield from plan_with_scan(
                    self._models, reader, request, self.config, local=True, parked_bytes=parked
                )
                state.open_seconds = watch.seconds() - state.clock.watch.seconds()
            while (yield from ran_out_of_memory(state, attempt(state, reader))):
                if reader is not None:
                    reader.close()
                self.forget()
                yield state.lower_plan(self.config)
                reader = None if state.vision_embeddings else self._open(request)
        finally:
            if reader is not None:
                reader.close()
            if state is not None and self.loaded:
                self._caches.keep(state, searched=searches)

    def _attempt(self, state: RequestState, reader: VideoReader | None) -> Generator[Event, None, None]:
        """Load the model if necessary, run the state's plan, and yield the answer last."""
        loaded, tracker = yield from self._models.ensure_loaded(state, self.config)
        state.set_phase("vision")  # what is allocated before the first phase begins is for the frames
        from vidqa.engine.attempt import Attempt, AttemptResult  # imports torch: only after the files were checked
        from vidqa.engine.detokenizer import AnswerState

        yield from state.replan_attention(loaded, self.config)
        prompt = prompt_of(state.request, loaded, self._callbacks.is_cancelled)
        plan = yield from self._claim_caches(state, state.plan_for(prompt, loaded))
        is_first = state.vision_embeddings is None and state.cached_prompt is None and not state.degraded
        answer = state.answer = state.answer or AnswerState(state.request)
        attempt = Attempt(
            loaded, plan, prompt, answer, tracker, replace(self._callbacks, on_phase=state.set_phase), state.clock,
            state.vision_embeddings, state.cached_prompt,
            asked_tokens(state.request, plan, loaded, self._callbacks.is_cancelled),
            cues_in_range(state.video, state.request) if plan.subtitles else (),
        )  # fmt: skip
        yield Planned(state.video, plan)
        yield from state.note(*state.first_notes(), *map(Noted, (*self._sound_notes(state), *attempt.compile_notes())))
        try:
            state.cached_prompt = None  # else it would stay while the attempt makes another one
            result = yield from state.with_each_note_once(self._warning(state, attempt.run(reader)))
        except Interrupted:
            if not answer.tokens:
                raise
            result = AttemptResult(plan, "cancelled", 0)  # the text from before memory ran out is the answer
        finally:
            state.take_caches(attempt)
        yield from state.note(*(Noted(text, "frames") for text in (reader.notes if reader else ())))
        memory = state.memory_use(loaded, tracker, result.kv_bytes, self._models.runtime_bytes)
        if self.config.remember:
            state.remember_peaks(result.plan, memory)
        if self.config.calibrate and is_first and result.reason != "cancelled":
            state.remember_times(result.plan)
        yield Answered(state.finished_answer(result.plan, result.reason, memory))

    def _claim_caches(self, state: RequestState, plan: Plan, *, searches: bool = False) -> Generator[Event, None, Plan]:
        """Reuse and free what is cached of earlier requests; return the plan with what stays."""
        if self._caches == RequestCaches():
            return plan
        from vidqa.engine.kept_caches import claim_caches  # not in the path of a first question

        return (yield from claim_caches(self._caches, state, plan, self.config, searches=searches))

    def _sound_notes(self, state: RequestState) -> list[str]:
        """Return, once for a video, that its sound is not heard."""
        notes = list(unheard_note(state.video, state.request)) if state.video.path not in self._unheard else []
        self._unheard.update(state.video.path for _ in notes)
        return notes

    def _find(self, state: RequestState, reader: VideoReader | None) -> Generator[Event, None, None]:
        """Load the model if necessary, score the candidates of the state's plan, and yield what was found last."""
        check_searchable(state.video, state.plan)
        loaded, tracker = yield from self._models.ensure_loaded(state, self.config)
        state.set_phase("vision")
        from vidqa.engine.find_stage import find_stage, focus_of

        yield from state.replan_attention(loaded, self.config)
        plan = state.plan_for(prompt_of(state.request, loaded, self._callbacks.is_cancelled), loaded)
        plan = yield from self._claim_caches(state, plan, searches=True)
        yield Planned(state.video, plan)
        callbacks = replace(self._callbacks, on_phase=state.set_phase)
        stages = StageContext(tracker, callbacks, PhaseTimer(plan.device))
        focus = focus_of(loaded, plan, state.request, stages, state.vision_embeddings)
        try:
            searching = find_stage(focus, loaded, plan, stages, reader)
            found = yield from state.with_each_note_once(self._warning(state, searching))
        finally:
            state.vision_embeddings = focus.embeddings
        yield Found(state.video, found, None if loaded.model.domain is None else state.out_of_domain)

    def _warning(self, state: RequestState, events: Generator[Event, None, Item]) -> Generator[Event, None, Item]:
        return with_domain_warning(events, state, self.config, self._models.forecast)

    def _plan_and_load(self, request: Request) -> Generator[Event, None, None]:
        with self._open(request) as reader:
            state = yield from plan_with_scan(self._models, reader, request, self.config, local=True)
        yield Planned(state.video, state.plan)
        while (yield from ran_out_of_memory(state, self._models.ensure_loaded(state, self.config))):
            yield state.lower_plan(self.config)

    def _answer_batch(self, requests: Sequence[Request]) -> Generator[tuple[int, Event], None, None]:
        from vidqa.engine.batch_runner import BatchScheduler

        self.forget()
        self._unheard.update(request.video for request in requests)  # a run says it once, not for every clip
        scheduler = BatchScheduler(self.config, self._models, self._open, self._answer)
        yield from scheduler.answer(dict(enumerate(requests)))

    def _open(self, request: Request, stopped: Callable[[], bool] | None = None) -> VideoReader:
        stopped, config = stopped or self._callbacks.is_cancelled, self.config
        if self._opener is not None:
            return self._opener(request, stopped)
        return open_video(
            request.video,
            isolated=config.isolate_decoder,
            deadline_seconds=config.decoder_deadline_seconds,
            clip_deadline_seconds=config.clip_deadline_seconds,
            stopped=stopped,
            stream=request.stream,
            pictures=request.picture_times,
            subs=request.subs,
        )
