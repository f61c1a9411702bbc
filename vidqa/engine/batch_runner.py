"""Several requests answered by one model at once: their prompts share prefill chunks, their answers decode steps.

Each sequence has its row in one KV cache and attends to that alone, so an answer is what it would be alone. Prompts
about the same frames share their prefix. Groups that do not fit into memory are split.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vidqa.config import EngineConfig
from vidqa.engine.decode import decode_batch
from vidqa.engine.decode_runners import CudaGraphDecoder, DecodeRunner, capture_on, why_not_captured
from vidqa.engine.detokenizer import AnswerState
from vidqa.engine.domain_warning import with_advice
from vidqa.engine.kv_cache import KVCache, Storage
from vidqa.engine.model_manager import ModelManager
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import PromptTokens, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.request_state import RequestState, prompt_of, video_cache_key
from vidqa.engine.scan_stage import plan_with_scan
from vidqa.engine.timers import PhaseTimer, StageContext, Stopwatch, flat_mapped
from vidqa.errors import DoesNotFit, Interrupted, ModelError, NotFinite, VideoError, VidqaError
from vidqa.events import Answered, Event, Failed, Noted, OutOfDomain, Planned, StageStarted, TextDelta
from vidqa.messages import out_of_domain_text
from vidqa.models.attention.selector import make_kernel
from vidqa.planner.explain import subtitle_note
from vidqa.types import Answer, FinishReason, Placement, Plan, Request, VideoInfo
from vidqa.utils.metrics import MemoryUse
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker
    from vidqa.models.loader import Loaded

Result = TypeVar("Result")
TaggedEvents = Generator[tuple[int, Event], None, None]


class BatchScheduler:
    """Answers requests in groups that fit into memory; a request that fails does not fail the others.

    `open_video` opens the video of a request, `answer_one` answers one request alone.
    """

    def __init__(
        self,
        config: EngineConfig,
        models: ModelManager,
        open_video: Callable[[Request], VideoReader],
        answer_one: Callable[[Request], Generator[Event, None, None]],
    ) -> None:
        self._config, self._models = config, models
        self._open_video, self._answer_one = open_video, answer_one

    def answer(self, requests: Mapping[int, Request]) -> TaggedEvents:
        """Yield (index, event) until every request has its last event."""
        if len(requests) == 1:
            yield from self._answer_alone(*next(iter(requests.items())))
            return
        sampling = {(request.temperature, request.top_p) for request in requests.values()}
        if len(sampling) > 1:  # one step samples all sequences in the same way
            for one in sorted(sampling):
                yield from self.answer({n: r for n, r in requests.items() if (r.temperature, r.top_p) == one})
            return
        left = dict(requests)
        try:
            for number, event in self._answer_group(requests):
                if isinstance(event, Answered | Failed):
                    left.pop(number, None)
                yield number, event
        except (DoesNotFit, NotFinite):  # each half is answered by itself, and at last the one that fails
            pass
        except Exception as error:
            from vidqa.devices.torch_device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
        if left:
            from vidqa.devices.torch_device import release_cached_memory

            release_cached_memory()
            numbers = sorted(left)
            middle = (len(numbers) + 1) // 2
            for half in filter(None, (numbers[:middle], numbers[middle:])):
                yield from self.answer({number: left[number] for number in half})

    def _answer_alone(self, number: int, request: Request) -> TaggedEvents:
        """Answer one request; raises ModelError where the model can answer none."""
        try:
            for event in self._answer_one(request):
                yield number, event
        except Interrupted:
            raise
        except VidqaError as error:
            if isinstance(error, ModelError) and not isinstance(error, NotFinite):
                raise
            yield number, Failed(error)

    def _answer_group(self, requests: Mapping[int, Request]) -> TaggedEvents:
        """Answer all at once; raises DoesNotFit if they do not fit together."""
        with ExitStack() as files:
            readers: dict[int, VideoReader] = {}
            for number, request in requests.items():
                try:
                    readers[number] = files.enter_context(self._open_video(request))
                except VideoError as error:
                    yield number, Failed(error)
            alone: list[int] = []
            if readers:
                yield from self._run_group({number: requests[number] for number in readers}, readers, alone)
        for number in alone:
            yield from self._answer_alone(number, requests[number])

    def _run_group(
        self, requests: Mapping[int, Request], readers: Mapping[int, VideoReader], alone: list[int]
    ) -> TaggedEvents:
        """Plan all for the memory that they share, load the model as the first plan says, and run.

        Those whose question selects frames go to `alone` instead: each scores its own candidates.
        """
        # No placement that every step or row would wait for; a request alone may choose one.
        config = replace(self._config, batch=len(requests), placement=self._config.placement or Placement())
        loaded, tracker, states = None, None, dict[int, RequestState]()
        for number, request in requests.items():
            try:
                planning = self._plan(readers[number], request, config, list(states.values()))
                planned = yield from _tagged(number, planning)
            except (DoesNotFit, ModelError):
                raise
            except VidqaError as error:
                yield number, Failed(error)
                continue
            if planned.plan.candidates:
                alone.append(number)
                continue
            states[number] = planned
            if loaded is None:  # the first plan decides how all are run
                loaded, tracker = yield from _tagged(number, self._ensure_loaded(states[number]))
                config = _shared_config(config, states[number])
        if loaded is None or tracker is None:
            return
        items = [BatchItem.of(state, readers[number], loaded) for number, state in states.items()]
        stages = StageContext(tracker, self._models.callbacks, PhaseTimer(str(loaded.model.device)))
        for number, item in zip(states, items, strict=True):
            yield number, Planned(item.state.video, item.plan)
        batch = BatchRunner(loaded, items, stages, self._warn)
        numbers = list(states)
        for row, event in stages.with_tensor_count(batch.run()):
            yield numbers[row], event
        for number, item in zip(states, items, strict=True):
            if item.error is None:
                memory = item.state.memory_use(loaded, tracker, batch.kv_bytes, self._models.runtime_bytes)
                yield number, Answered(item.finished_answer(memory))

    def _warn(self, event: OutOfDomain, state: RequestState) -> OutOfDomain:
        return with_advice(event, state, self._config, self._models.forecast)

    def _plan(
        self, reader: VideoReader, request: Request, config: EngineConfig, planned: Sequence[RequestState]
    ) -> Generator[Event, None, RequestState]:
        """Plan a request, or reuse the plan of one with the same question, times and size."""
        for state in planned:
            if request.sample == "uniform" and _is_alike(state, reader.info, request):
                problem = replace(state.problem, video=reader.info, request=request)
                key = video_cache_key(request)
                return RequestState(request, key, reader.info, state.checkpoint, problem, state.plan)
        return (yield from plan_with_scan(self._models, reader, request, config, local=True))

    def _ensure_loaded(self, state: RequestState) -> "Generator[Event, None, tuple[Loaded, Tracker]]":
        """Load the planned model; raises DoesNotFit if it cannot decode several sequences at once."""
        loaded, tracker = yield from self._models.ensure_loaded(state, self._config)
        if loaded.model.device.type == "cuda" and (why := why_not_captured(loaded.model)):
            raise DoesNotFit(f"Several answers at once need a captured step, and {why}.", "Ask one by one.")
        return loaded, tracker


def _is_alike(state: RequestState, video: VideoInfo, request: Request) -> bool:
    """Return whether a plan for one serves the other: the same frame times and sizes, and the same question."""
    return _geometry(state.video) == _geometry(video) and replace(state.request, video=request.video) == request


def _geometry(video: VideoInfo) -> tuple[object, ...]:
    return (
        video.width, video.height, video.coded_width, video.coded_height, video.lead_seconds, video.pts_seconds,
        video.subtitles,
    )  # fmt: skip


def _shared_config(config: EngineConfig, state: RequestState) -> EngineConfig:
    """Return the config with those choices of a plan that all rows of a batch must share."""
    run_config = state.plan.run_config
    kv = "int8" if run_config.kv == "int8" else "native"
    return replace(config, kv=kv, placement=run_config.placement, attention=run_config.attention)


def _tagged(number: int, stage: Generator[Event, None, Result]) -> Generator[tuple[int, Event], None, Result]:
    """Yield a stage's events with the number of their request."""
    return flat_mapped(stage, lambda event: ((number, event),))


@dataclass(slots=True)
class BatchItem:
    """One request of a batch, and its result: a finish reason or an error."""

    state: RequestState
    reader: VideoReader
    plan: Plan
    prompt: PromptTokens
    answer: AnswerState
    prompt_runner: PromptRunner | None = None
    reason: FinishReason | None = None
    error: VideoError | None = None
    warning: str = ""
    timer: PhaseTimer | None = None  # of the prompt
    prompt_seconds: float = 0.0

    @classmethod
    def of(cls, state: RequestState, reader: VideoReader, loaded: "Loaded") -> "BatchItem":
        """Build the prompt of a planned request."""
        prompt = prompt_of(state.request, loaded)
        state.answer = AnswerState(state.request)
        return cls(state, reader, state.plan_with(prompt, loaded), prompt, state.answer)

    def finished_answer(self, memory: MemoryUse) -> Answer:
        """Return the answer, with the plan that ran; loading counts for no request of a batch."""
        assert self.reason and self.prompt_runner and self.prompt_runner.vision_embeddings
        warning = (self.warning,) if self.warning else ()
        texts = dict.fromkeys((*self.reader.notes, *self.prompt_runner.notes, *subtitle_note(self.plan), *warning))
        self.state.load_seconds, self.state.notes = 0.0, [Noted(text) for text in texts]
        clock, vision = self.state.clock, self.timer.seconds("vision") if self.timer else 0.0
        clock.video, clock.vision = self.prompt_runner.video_seconds, vision
        clock.prefill = max(self.prompt_seconds - clock.video - vision, 0.0)
        self.state.vision_embeddings = self.prompt_runner.vision_embeddings
        plan = self.state.vision_embeddings.plan_that_ran(self.plan)
        return self.state.finished_answer(plan, self.reason, memory)

    def prefix_key(self) -> tuple[object, ...]:
        """Return what must be equal for two prompts to begin with the same keys and values."""
        run_config = self.plan.run_config
        pruning = (run_config.visual_share, run_config.drop_repeats)
        size = (run_config.height, run_config.width)
        return self.state.video_key, self.plan.indices, *size, *pruning, self.prompt.head, self.plan.subtitles


class BatchRunner:
    """Runs items by their plans, which differ in frames and size alone.

    `warn` completes the warning that a video is out of the model's domain, or raises VideoOutOfDomain.
    """

    def __init__(
        self,
        loaded: "Loaded",
        items: Sequence[BatchItem],
        stages: StageContext,
        warn: Callable[[OutOfDomain, RequestState], OutOfDomain],
    ) -> None:
        self._loaded, self._items, self._stages = loaded, items, stages
        self._warn = warn
        run_config = items[0].plan.run_config
        self._storage = Storage.allocate(
            loaded.model.spec, max(item.plan.kv_capacity_tokens for item in items), loaded.model.dtype,
            loaded.model.device, sequences=len(items), quantized=run_config.kv == "int8",
        )  # fmt: skip
        self._rows = [KVCache(self._storage, row) for row in range(len(items))]
        chunk = min(item.plan.run_config.prefill_chunk for item in items)
        self._model = stages.with_cancel_check(loaded.model)
        self._prefill = Prefill(self._model, make_kernel(run_config.attention, loaded.model.device), chunk)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache of all rows."""
        return self._storage.bytes

    @no_grad_generator
    def run(self) -> TaggedEvents:
        """Yield (row, event) until every item has its reason or its error."""
        watch = Stopwatch()
        for row, item in enumerate(self._items):
            try:
                for event in self._push_prompt(row, item):
                    if isinstance(event, OutOfDomain):
                        event = self._warn(event, item.state)
                        item.warning = out_of_domain_text(event.knows, event.advice)
                    yield row, event
            except VideoError as error:
                item.error = error
                self._prefill.drop(self._rows[row])
                yield row, Failed(error)
        active = [row for row, item in enumerate(self._items) if item.error is None]
        if active:
            yield from self._decode(active, self._logits(active), watch)

    def _push_prompt(self, row: int, item: BatchItem) -> Iterator[Event]:
        watch, plan = Stopwatch(), item.plan
        item.timer = PhaseTimer(str(self._loaded.model.device))  # read at the end: it waits for the device
        stages = replace(self._stages, timer=item.timer)
        layout = layout_of(item.prompt, plan, self._loaded)
        runner = PromptRunner(self._model, plan, layout, self._prefill, stages, row=self._rows[row])
        if (earlier := self._row_with_prefix(row, item)) is not None:
            source = self._items[earlier].prompt_runner
            assert source is not None
            self._flush(earlier)  # what is copied has to be in the cache
            runner.copy_prefix_from(source)
        item.prompt_runner = runner
        yield from runner.push_prompt(item.reader)
        item.prompt_seconds = watch.seconds()

    def _row_with_prefix(self, row: int, item: BatchItem) -> int | None:
        """Return an earlier row with the same text before the same frames."""
        for earlier, other in enumerate(self._items[:row]):
            if other.error is None and other.prefix_key() == item.prefix_key():
                return earlier
        return None

    def _flush(self, row: int) -> None:
        for _ in self._prefill.flush(self._rows[row]):
            pass

    def _logits(self, active: Sequence[int]) -> Tensor:
        """Return logits (B, vocabulary) after every prompt; zeros for items that failed."""
        self._flush(active[0])
        found = self._prefill.logits(*(self._rows[row] for row in active))
        logits = torch.zeros(len(self._items), found.shape[1], device=found.device)
        logits[list(active)] = found
        return logits

    def _decode(self, active: Sequence[int], logits: Tensor, watch: Stopwatch) -> TaggedEvents:
        """Decode all rows; `watch` runs since the first prompt, so a first token includes the other rows' prompts."""
        positions, limits = [0] * len(self._items), [0] * len(self._items)
        for row in active:
            item = self._items[row]
            assert item.prompt_runner is not None
            positions[row], limits[row] = item.prompt_runner.next_position, item.plan.run_config.max_tokens
            yield row, StageStarted("decode", limits[row])
        samplers = [item.answer.sampler for item in self._items]
        model = self._loaded.model
        runner: DecodeRunner = CudaGraphDecoder(model, self._rows, positions, samplers, capture_on(model.device))
        for row in set(range(len(self._items))) - set(active):
            runner.finish(row, rollback=False)
        with self._stages.tracker.phase("decode"):
            for row, token in decode_batch(runner, logits, self._loaded.stop_ids, limits):
                self._stages.stop_if_cancelled("while several answers were written")
                item = self._items[row]
                clock, seconds = item.state.clock, watch.seconds()
                clock.first_token = clock.first_token or seconds
                clock.decode = seconds - clock.first_token
                if text := self._append(item, token):
                    yield row, TextDelta(text)

    def _append(self, item: BatchItem, token: int | FinishReason) -> str:
        if isinstance(token, int):
            return item.answer.append(token, self._loaded.tokenizer)
        item.reason = token
        return item.answer.flush()
