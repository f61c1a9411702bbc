"""Several requests of one session, answered together where they fit, in smaller groups where they do not.

Opens, plans and loads as the session does for one; a request that fails is told as failed.
"""

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from vidqa.config import EngineConfig
from vidqa.engine.answer_state import AnswerState
from vidqa.engine.attempt import plan_that_ran
from vidqa.engine.batch_runner import BatchItem, BatchRunner
from vidqa.engine.decode_runners import why_not_captured
from vidqa.engine.metrics import memory_use
from vidqa.engine.prompt import layout_of, text_tokens
from vidqa.engine.request_state import RequestState, prompt_of, video_cache_key
from vidqa.engine.stage_context import Hooks, StageContext
from vidqa.engine.timers import Sections
from vidqa.errors import DoesNotFit, Interrupted, VideoError, VidqaError
from vidqa.events import Answered, Event, Failed, Planned
from vidqa.types import Answer, MemoryUse, Placement, Request, Timing, VideoInfo
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker
    from vidqa.engine.session import Session
    from vidqa.models.loader import Loaded

Result = TypeVar("Result")
Tagged = Generator[tuple[int, Event], None, None]


class BatchSession:
    """Runs groups of requests on a session's model."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def answer(self, requests: Mapping[int, Request]) -> Tagged:
        """Yield (number, event) until every request has its last event."""
        if len(requests) == 1:
            yield from self._alone(*next(iter(requests.items())))
            return
        ways = {(request.temperature, request.top_p) for request in requests.values()}
        if len(ways) > 1:  # the step's sampling is one for all
            for way in sorted(ways):
                yield from self.answer({n: r for n, r in requests.items() if (r.temperature, r.top_p) == way})
            return
        left = dict(requests)
        try:
            for number, event in self._group(requests):
                if isinstance(event, Answered | Failed):
                    left.pop(number, None)
                yield number, event
        except DoesNotFit:
            pass
        except Exception as error:
            from vidqa.devices.torch_device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
        if left:  # together they were too many
            from vidqa.devices.torch_device import release_cached_memory

            release_cached_memory()
            numbers = sorted(left)
            for half in (numbers[: (len(numbers) + 1) // 2], numbers[(len(numbers) + 1) // 2 :]):
                if half:
                    yield from self.answer({number: left[number] for number in half})

    def _alone(self, number: int, request: Request) -> Tagged:
        try:
            for event in self._session._answer(request):
                yield number, event
        except Interrupted:
            raise
        except VidqaError as error:
            yield number, Failed(error)

    def _group(self, requests: Mapping[int, Request]) -> Tagged:
        """All at once; raises DoesNotFit where they do not fit together."""
        with ExitStack() as files:
            readers: dict[int, VideoReader] = {}
            for number, request in requests.items():
                try:
                    readers[number] = files.enter_context(self._session._open_unless_stopped(request))
                except VideoError as error:
                    yield number, Failed(error)
            if readers:
                yield from self._opened({number: requests[number] for number in readers}, readers)

    def _opened(self, requests: Mapping[int, Request], readers: Mapping[int, VideoReader]) -> Tagged:
        """Plan all for the memory that they share, load as the first one's plan says, and run."""
        session = self._session
        # Nothing that a step or another row would have to wait for: alone each of them may.
        config = replace(session.config, batch=len(requests), placement=session.config.placement or Placement())
        loaded, tracker, runs = None, None, dict[int, RequestState]()
        for number, request in requests.items():
            try:
                like = next((run for run in runs.values() if _is_alike(run, readers[number].info, request)), None)
                if like is None:
                    runs[number] = session._plan(readers[number], request, local=True, config=config)
                else:
                    runs[number] = _planned_like(like, readers[number].info, request)
            except DoesNotFit:
                raise
            except VidqaError as error:
                yield number, Failed(error)
                continue
            if loaded is None:  # the first one settles how all are run
                loaded, tracker = yield from _tagged(number, self._loaded_for(runs[number]))
                config = _as_settled(config, runs[number])
        if loaded is None or tracker is None:
            return
        leading = next(iter(runs.values()))
        members = [_member(run, readers[number], loaded) for number, run in runs.items()]
        hooks = Hooks(session._cancelled.is_set, session._fault, leading.enter)
        stages = StageContext(tracker, hooks, Sections(str(loaded.model.device)))
        for number, member in zip(runs, members, strict=True):
            yield number, Planned(runs[number].video, member.plan)
        together = BatchRunner(loaded, members, stages)
        numbers = list(runs)
        for place, event in stages.counted(together.run()):
            yield numbers[place], event
        for number, member in zip(runs, members, strict=True):
            if member.error is None:
                memory = memory_use(runs[number], loaded, tracker, together.kv_bytes, session._model.runtime_bytes)
                yield number, Answered(_answer(runs[number], member, memory))

    def _loaded_for(self, run: RequestState) -> "Generator[Event, None, tuple[Loaded, Tracker]]":
        """The model as a plan says; raises DoesNotFit where it cannot write several answers at once."""
        loaded, tracker = yield from self._session._load(run)
        if loaded.model.device.type == "cuda" and (why := why_not_captured(loaded.model)):
            raise DoesNotFit(f"Several answers at once need a captured step, and {why}.", "Ask one by one.")
        return loaded, tracker


def _is_alike(run: RequestState, video: VideoInfo, request: Request) -> bool:
    """Whether a plan for the one is a plan for the other: the same times and sizes, and the same question."""
    there = run.video
    same = (there.width, there.height, there.coded_width, there.coded_height, there.lead_seconds) == (
        video.width, video.height, video.coded_width, video.coded_height, video.lead_seconds,
    )  # fmt: skip
    return same and there.pts_seconds == video.pts_seconds and replace(run.request, video=request.video) == request


def _planned_like(run: RequestState, video: VideoInfo, request: Request) -> RequestState:
    """Another request that is run as this one is, without planning anew."""
    task = replace(run.task, video=video, request=request)
    return RequestState(request, video_cache_key(request), video, run.checkpoint, task, run.plan)


def _as_settled(config: EngineConfig, run: RequestState) -> EngineConfig:
    """The config with what one plan chose and all must share."""
    run_config = run.plan.run_config
    kv = "int8" if run_config.kv == "int8" else "native"
    return replace(config, kv=kv, placement=run_config.placement, attention=run_config.attention)


def _tagged(number: int, stage: Generator[Event, None, Result]) -> Generator[tuple[int, Event], None, Result]:
    """A stage's events with the number of their request."""
    while True:
        try:
            event = next(stage)
        except StopIteration as finished:
            result: Result = finished.value
            return result
        yield number, event


def _member(run: RequestState, reader: VideoReader, loaded: "Loaded") -> BatchItem:
    prompt = prompt_of(run.request, loaded)
    tokens = text_tokens(layout_of(prompt, run.plan, loaded))
    plan = replace(run.plan, prompt_tokens=run.plan.visual_tokens + tokens)
    return BatchItem(run.scene, reader, plan, prompt, AnswerState(run.request))


def _answer(run: RequestState, member: BatchItem, memory: MemoryUse) -> Answer:
    clock, speech = member.clock, member.speech
    assert member.reason is not None and member.filling is not None
    return Answer(
        text=speech.text,
        finish_reason=member.reason,
        question=run.request.question,
        video=run.video,
        plan=plan_that_ran(member.plan, member.filling.visual),
        timing=Timing(0.0, clock.video, 0.0, clock.prefill, clock.first_token, clock.decode, len(speech.tokens)),
        memory=memory,
        notes=tuple(member.reader.notes),
    )
