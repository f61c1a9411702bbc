"""One attempt to answer a request by one plan: prompt into the KV cache, then decode, as events."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import make_decode_runner
from vidqa.engine.detokenizer import AnswerState
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefill import Prefill
from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
from vidqa.engine.prompt import PromptTokens, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.timers import Callbacks, Clock, PhaseTimer, StageContext, Stopwatch
from vidqa.errors import NotFinite
from vidqa.events import Event, StageProgress, StageStarted, TextDelta
from vidqa.models.attention import Kernel, make_kernel
from vidqa.models.family import TextSegment
from vidqa.types import FinishReason, Plan
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The plan that ran, why the answer ended, and the KV cache's bytes."""

    plan: Plan
    reason: FinishReason
    kv_bytes: int


class Attempt:
    """Runs one request by one plan on a loaded model.

    `vision_embeddings` and `cached_prompt` come from a former question about the same frames; afterwards they are this
    one's.
    """

    def __init__(
        self,
        loaded: "Loaded",
        plan: Plan,
        prompt: PromptTokens,
        answer: AnswerState,
        tracker: Tracker,
        callbacks: Callbacks,
        clock: Clock,
        vision_embeddings: VisionEmbeddings | None = None,
        cached_prompt: CachedPrompt | None = None,
    ) -> None:
        self._loaded, self._plan, self._answer, self._clock = loaded, plan, answer, clock
        self._callbacks, self._compiled = callbacks, dict[str, str]()
        self._stages = StageContext(tracker, callbacks, PhaseTimer(str(loaded.model.device)))
        self._kernel: Kernel = make_kernel(plan.run_config.attention, loaded.model.device)
        *prefix, last = layout_of(prompt, plan, loaded)
        assert isinstance(last, TextSegment)
        self._tail = last.ids
        layout = (*prefix, TextSegment((*last.ids, *answer.tokens)))
        model = self._stages.with_cancel_check(loaded.model)
        prefill = Prefill(model, self._kernel, plan.run_config.prefill_chunk)
        self._prompt = PromptRunner(model, plan, layout, prefill, self._stages, vision_embeddings, cached_prompt)

    @property
    def kernel_name(self) -> str:
        """The name of the attention kernel."""
        return self._kernel.name

    @property
    def vision_embeddings(self) -> VisionEmbeddings | None:
        """The video's embeddings on the host."""
        return self._prompt.vision_embeddings

    @property
    def cached_prompt(self) -> CachedPrompt | None:
        """The KV cache and the prompt in it."""
        return self._prompt.cached_prompt

    def compile_notes(self) -> Iterable[str]:
        """Return a note for each kernel that has to be compiled first."""
        if self._plan.run_config.attention == "flex":
            from vidqa.engine.compile_cache import pending

            model = self._loaded.model
            self._compiled = pending(model.spec, model.device, model.dtype)
        return self._compiled.values()

    @no_grad_generator
    def run(self, reader: VideoReader | None) -> Generator[Event, None, AttemptResult]:
        """Yield the attempt's events, return its result. `reader` is read if embeddings are missing."""
        try:
            result = yield from self._stages.with_memory_samples(self._run(reader))
        except NotFinite:
            self._prompt.cached_prompt = None  # the cache may hold overflowed values
            raise
        finally:
            if self.cached_prompt is not None:
                self.cached_prompt.set_tail((*self._tail, *self._answer.tokens))
        if self._compiled:
            from vidqa.engine.compile_cache import remember

            for key in self._compiled:
                remember(key, self._clock.watch.seconds())
        return result

    def cancelled(self) -> AttemptResult:
        """Return the result of an attempt that was cancelled after an earlier one had begun to answer."""
        return AttemptResult(self._plan, "cancelled", 0)

    def _run(self, reader: VideoReader | None) -> Generator[Event, None, AttemptResult]:
        logits = yield from self._prompt.run(reader)
        timer = self._stages.timer
        self._clock.video += self._prompt.video_seconds
        self._clock.vision, self._clock.prefill = timer.seconds("vision"), timer.seconds("prefill")
        self._callbacks.on_phase("decode")
        with self._stages.tracker.phase("decode"):  # for all tokens: one is too short to measure around
            reason = yield from self._decode(logits)
        assert self.cached_prompt is not None
        return AttemptResult(plan_that_ran(self._plan, self.vision_embeddings), reason, self.cached_prompt.cache.bytes)

    def _decode(self, logits: Tensor) -> Generator[Event, None, FinishReason]:
        """Decode the rest of the answer; return why it ended."""
        assert self.cached_prompt is not None
        answer, limit = self._answer, self._plan.run_config.max_tokens
        runner = make_decode_runner(
            self._loaded.model, self.cached_prompt.cache, self._kernel, self._prompt.next_position, answer.sampler
        )
        tokens = decode(runner, logits, self._loaded.stop_ids, limit - len(answer.tokens))
        yield StageStarted("decode", limit)
        watch, before = Stopwatch(), self._clock.decode
        reason: FinishReason = "cancelled"
        while not self._callbacks.is_cancelled():
            self._callbacks.inject_fault("decode")
            try:
                token = next(tokens)
            except StopIteration as finished:
                reason = finished.value
                break
            text = answer.append(token, self._loaded.tokenizer)
            if len(answer.tokens) == 1:
                self._clock.first_token = self._clock.watch.seconds()
                watch = Stopwatch()  # decode speed counts from the first token
            self._clock.decode = before + watch.seconds()
            if text:
                yield TextDelta(text)
            yield StageProgress("decode", len(answer.tokens), limit)
        if text := answer.flush():
            yield TextDelta(text)
        return reason


def plan_that_ran(plan: Plan, vision_embeddings: VisionEmbeddings | None) -> Plan:
    """Return the plan with the frames that were really read: a damaged video gives fewer."""
    assert vision_embeddings is not None
    return replace(
        plan,
        run_config=replace(plan.run_config, frames=len(vision_embeddings.times)),
        timestamps_seconds=tuple(vision_embeddings.times),
        visual_tokens=vision_embeddings.filled,
        prompt_tokens=plan.prompt_tokens - plan.visual_tokens + vision_embeddings.filled,
    )
