"""Session: the one object that every face drives. A question goes in, events come out.

Opens the video first (a bad file fails before a model is loaded), plans for the memory that
is free now, loads the model once and runs the pipeline; when memory runs out after all, it
goes on with a smaller plan. What the next question about the same pictures needs stays.
Single-flight: one `ask` at a time; `cancel` from any thread.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from vidqa.config import EngineConfig
from vidqa.devices.device import allocator_environment, compiler_environment, find_device, reread
from vidqa.engine.metrics import answer_of, dropped_turns, memory_use, remember_peaks
from vidqa.engine.model_manager import LoadHooks, ModelManager
from vidqa.engine.request_state import PreviousRequest, RequestState, keep, prompt_of, resume_from, video_cache_key
from vidqa.errors import Interrupted, UsageError
from vidqa.events import Answered, Degraded, Event, Planned
from vidqa.models.family import family_of
from vidqa.models.registry import find_checkpoints
from vidqa.planner.fallback import MAX_STEPS, gave_up, lower
from vidqa.planner.planner import plan_video
from vidqa.planner.tasks import (
    Forecast,
    as_used,
    budget_bytes,
    check_config,
    check_limits,
    check_request,
    closer_look,
    plan_best,
    tasks_for,
)
from vidqa.types import Plan, Request, VideoInfo
from vidqa.video.reader import VideoReader, never, open_video

if TYPE_CHECKING:
    import numpy

    from vidqa.devices.memory_tracker import Meter, Tracker
    from vidqa.engine.prompt import PromptTokens
    from vidqa.models.loader import Loaded


Item = TypeVar("Item")


def _no_fault(phase: str) -> None:
    """Nothing fails on purpose."""


class Session:
    """Answers questions about videos with one loaded model.

    Errors are raised, progress is yielded; the last event of an `ask` is `Answered`.
    `fault` is called with the name of each phase at every unit of its work: a test makes it
    raise MemoryError there. `meter` replaces how memory is read. `opener` gives the reader of a request's video
    where it is not simply opened; it is told whether to stop, and asked again for every further attempt.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        fault: Callable[[str], None] = _no_fault,
        meter: "Meter | None" = None,
        opener: Callable[[Request, Callable[[], bool]], VideoReader] | None = None,
    ) -> None:
        self._config = config
        self._opener = opener
        self._fault, self._meter = fault, meter
        self._model = ModelManager()
        self._kept: PreviousRequest | None = None
        self._flight = threading.Lock()
        self._cancelled = threading.Event()
        # torch reads both when it starts
        os.environ.update(allocator_environment(os.environ) | compiler_environment(os.environ))

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config(self) -> EngineConfig:
        """The settings that the next question runs by."""
        return self._config

    @property
    def loaded(self) -> "Loaded | None":
        """The model, once a question has loaded it."""
        return self._model.loaded

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        """What `ask` would do with a probed video, by other settings if given; callable while a question runs.

        Opens no file and loads nothing; free memory is read anew each time. What is loaded counts as such where
        `config` asks for the same model, device, weights and placement. Raises UsageError for what cannot be, and
        ModelError children.
        """
        check_limits(request)
        return self._model.forecast(video, request, config or self.config)

    def plan(self, request: Request) -> Plan:
        """What `ask` would run now: reads the video's facts and the model's config, loads no weights."""
        check_request(request)
        with self._open(request) as reader:
            return self._plan(reader, request, local=False).plan

    def see(self, request: Request) -> tuple[Plan, "list[numpy.ndarray]"]:
        """The plan and the very pictures (height, width, 3) uint8 that the model would get; loads no weights."""
        check_request(request)
        with self._open(request) as reader:
            run = self._plan(reader, request, local=False)
            plan = run.plan
            resize_frame = family_of(run.task.spec).load_runtime().resize_frame

            size = (plan.run_config.height, plan.run_config.width)
            frames, times = list[Any](), list(plan.timestamps_seconds)
            for place, frame in enumerate(reader.frames(plan.indices)):
                times[place] = frame.timestamp_seconds  # its own, where it stands for one that cannot be decoded
                frames.append(resize_frame(frame.rgb, *size).permute(1, 2, 0).numpy())
            reader.check_coverage(plan.indices)
            return replace(plan, timestamps_seconds=tuple(times)), frames

    def load(self, request: Request) -> Iterator[Event]:
        """Plan and load the model as `ask` would, and answer nothing: a question that follows finds it there.

        Yields `Planned` first; the stage `load` counts bytes of the stored weights. Nothing else is told where
        the model is loaded already. What is kept of the last video stays.
        """
        check_limits(request)
        check_config(self.config)
        self._begin()
        return self._load_ahead(request)

    def ask(self, request: Request) -> Iterator[Event]:
        """Answer one question. Raises VidqaError children; closing the iterator frees what it held."""
        check_request(request)
        check_config(self.config)
        self._begin()
        return self._ask(request)

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """Answer several requests at once, each as `ask` would: yields (number of the request, event).

        The last event of each is `Answered`, or `Failed`: a bad video leaves the others. What does
        not fit together is answered in smaller groups.
        """
        for request in requests:
            check_request(request)
        check_config(self.config)
        self._begin()
        return self._ask_many(requests)

    def _begin(self) -> None:
        """A new question is not cancelled, from here on: not only once somebody reads its events."""
        if not self._flight.locked():
            self._cancelled.clear()

    def cancel(self) -> None:
        """Ask the running `ask` to stop at the next chunk or token; callable from any thread."""
        self._cancelled.set()

    def reconfigure(self, config: EngineConfig) -> None:
        """Go on with other settings; raises UsageError while a question runs.

        The model stays where `config` asks for the same model, device, weights and placement; else it is
        unloaded, and the next question loads what is asked for. What is kept of the last video goes
        with any change.
        """
        with self._alone():
            if config == self._config:
                return
            self.forget()
            if self._model.loaded is not None and not self._model.serves(config):
                from vidqa.devices.torch_device import release_cached_memory

                self._model.drop()
                release_cached_memory()
            self._model.forget_names()
            self._config = config

    def forget(self) -> None:
        """Let go of what is kept of the last video."""
        self._kept = None

    def close(self) -> None:
        """Let go of the model."""
        self.cancel()
        self.forget()
        self._model.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `ask` at a time."""
        if not self._flight.acquire(blocking=False):
            raise UsageError("This session is answering another question.", "Wait for it or cancel it.")
        try:
            yield
        finally:
            self._flight.release()

    def _ask(self, request: Request) -> Generator[Event, None, None]:
        with self._alone():
            yield from _light(self._answer(request))

    def _load_ahead(self, request: Request) -> Generator[Event, None, None]:
        with self._alone():
            yield from _light(self._planned_and_loaded(request))

    def _planned_and_loaded(self, request: Request) -> Generator[Event, None, None]:
        with self._open_unless_stopped(request) as reader:
            run = self._plan(reader, request, local=True)
        yield Planned(run.video, run.plan)
        while (yield from self._ran_out(run, self._load(run))):
            yield from self._lower(run)

    def _ask_many(self, requests: Sequence[Request]) -> Generator[tuple[int, Event], None, None]:
        from vidqa.engine.batch_session import BatchSession

        with self._alone():
            self.forget()
            yield from _light(BatchSession(self).answer(dict(enumerate(requests))))

    def _answer(self, request: Request) -> Generator[Event, None, None]:
        """Attempt after attempt, each with a smaller plan, until one gets through."""
        kept, self._kept = self._kept, None  # what this question does not need goes before it begins
        run = resume_from(kept, request, self.config, self._model.loaded) if kept and self._model.loaded else None
        del kept
        reader = None
        try:
            if run is None:
                reader = self._open_unless_stopped(request)
                run = self._plan(reader, request, local=True)
            while (yield from self._ran_out(run, self._attempt(run, reader))):
                if reader is not None:
                    reader.close()
                yield from self._lower(run)
                reader = None if run.visual else self._open_unless_stopped(request)
        finally:
            if reader is not None:
                reader.close()
            if run is not None and self._model.loaded is not None:
                self._kept = keep(run, self.config)

    def _open(self, request: Request, stopped: Callable[[], bool] = never) -> VideoReader:
        if self._opener is not None:
            return self._opener(request, stopped)
        config = self.config
        return open_video(
            request.video,
            isolated=config.isolate_decoder,
            deadline_seconds=config.decoder_deadline_seconds,
            clip_deadline_seconds=config.clip_deadline_seconds,
            stopped=stopped,
            stream=request.stream,
            pictures=request.picture_times,
        )

    def _open_unless_stopped(self, request: Request) -> VideoReader:
        return self._open(request, self._cancelled.is_set)

    def _plan(
        self, reader: VideoReader, request: Request, *, local: bool, config: EngineConfig | None = None
    ) -> RequestState:
        """The best plan of the named model, or of all that there are; `local` ones have their weights here."""
        config, there = config or self.config, self._model.checkpoint
        checkpoints = [there] if there else find_checkpoints(config.model, local=local)
        tasks = self._model.pin(tasks_for(checkpoints, reader.info, request, config, find_device(config.device)))
        place, plan = plan_best(tasks)
        return RequestState(request, video_cache_key(request), reader.info, checkpoints[place], tasks[place], plan)

    def _ran_out(self, run: RequestState, attempt: Generator[Event, None, object]) -> Generator[Event, None, bool]:
        """One attempt; whether it ran out of memory. What it held is free when this returns."""
        run.phase = "load"
        try:
            yield from attempt
        except Exception as error:
            from vidqa.devices.torch_device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return True
        return False

    def _lower(self, run: RequestState) -> Generator[Event, None, None]:
        """Look at the memory again and take the next smaller plan."""
        from vidqa.devices.torch_device import release_cached_memory

        run.read = None
        release_cached_memory()
        device, budget = as_used(reread(run.task.device), self.config), run.task.budget_bytes
        with suppress(UsageError):  # nothing free at all: the smaller plan is still worth its try
            budget = min(budget, budget_bytes(device, self.config))
        task = replace(run.task, device=device, budget_bytes=budget)
        if len(run.degraded) == MAX_STEPS:
            raise gave_up(task, run.plan, run.phase)
        lowered = lower(task, run.plan, run.phase)
        run.lower(lowered.task, lowered.plan)
        run.degraded.append(f"{run.phase} ran out of memory: {lowered.step}")
        yield Degraded(run.phase, lowered.step, lowered.plan)

    def _attempt(self, run: RequestState, reader: VideoReader | None) -> Generator[Event, None, None]:
        loaded, tracker = yield from self._load(run)
        from vidqa.engine import compile_cache  # torch: after the files were found good
        from vidqa.engine.answer_state import AnswerState
        from vidqa.engine.attempt import Attempt
        from vidqa.engine.stage_context import Hooks

        yield from self._settle_attention(run, loaded)
        prompt = prompt_of(run.request, loaded, self._cancelled.is_set)
        plan = self._plan_for(run, prompt, loaded)
        run.speech = run.speech or AnswerState(run.request)
        hooks = Hooks(self._cancelled.is_set, self._fault, run.enter)
        pipeline = Attempt(loaded, plan, prompt, run.speech, tracker, hooks, run.clock, run.visual, run.read)
        yield Planned(run.video, plan)
        compiled = compile_cache.pending(
            loaded.model.spec, loaded.model.device, loaded.model.dtype, plan.run_config.attention
        )
        told = (*dropped_turns(run), *run.task.device.notes, *closer_look(plan, run.request), *compiled.values())
        for note in told:
            yield from run.note(note)
        try:
            outcome = yield from pipeline.run(reader)
        except Interrupted:
            if not run.speech.tokens:
                raise
            outcome = pipeline.stopped()  # what was said before memory ran out is the answer
        finally:
            run.keep(pipeline)
        for key in compiled:
            compile_cache.remember(key, run.clock.watch.seconds())
        for note in reader.notes if reader else ():
            yield from run.note(note)
        memory = memory_use(run, loaded, tracker, outcome.kv_bytes, self._model.runtime_bytes)
        if self.config.remember:
            remember_peaks(run, memory)
        yield Answered(answer_of(run, outcome.plan, outcome.reason, memory))

    def _settle_attention(self, run: RequestState, loaded: "Loaded") -> Iterator[Event]:
        """Replace the expected rung of the attention ladder by the first one that really runs here."""
        if self.config.attention != "auto" or run.read is not None:
            return
        from vidqa.models.attention.selector import HeadLayout, select_kernel

        model = loaded.model
        *missed, rung = select_kernel(HeadLayout.of(model.spec), str(model.device), model.dtype)
        if rung.name != run.plan.run_config.attention:
            why = "; ".join(f"{one.name}: {one.reason}" for one in missed)
            yield from run.note(f"attention runs by the {rung.name} kernel ({why})")
            run.task = replace(run.task, config=replace(run.task.config, attention=rung.name))
            run.plan = plan_video(run.task)

    def _plan_for(self, run: RequestState, prompt: "PromptTokens", loaded: "Loaded") -> Plan:
        """The run's plan with the prompt's real length."""
        from vidqa.engine.prompt import layout_of, text_tokens

        around = len(prompt.head) + len(prompt.tail)
        if run.read is None and around > run.plan.run_config.text_tokens:  # a template longer than any known one
            run.task = replace(run.task, text_tokens=around)
            run.plan = plan_video(run.task)
        return replace(
            run.plan, prompt_tokens=run.plan.visual_tokens + text_tokens(layout_of(prompt, run.plan, loaded))
        )

    def _load(self, run: RequestState) -> Generator[Event, None, "tuple[Loaded, Tracker]"]:
        hooks = LoadHooks(self._cancelled.is_set, self._fault, lambda: self._look_again(run))
        return (yield from self._model.get(run, self.config, hooks, self._meter))

    def _look_again(self, run: RequestState) -> None:
        """Others may have taken memory since the plan was made: plan anew where it would no longer fit."""
        device = as_used(reread(run.task.device), self.config)
        budget = budget_bytes(device, self.config)
        if budget < run.plan.required_bytes:
            run.task = replace(run.task, device=device, budget_bytes=budget)
            run.plan = plan_video(run.task)


def _light(stage: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """A stage whose stop does not keep alive, by its traceback, the tensors that it was stopped among."""
    try:
        yield from stage
        return
    except Interrupted as error:
        stopped = (error.what, error.remedy)
    raise Interrupted(*stopped)
