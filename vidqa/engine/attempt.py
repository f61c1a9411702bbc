"""One attempt to answer a request by one plan: prompt into the KV cache, then decode, as events."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vidqa.devices.memory_tracker import Tracker
from vidqa.engine import compile_cache
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import make_decode_runner
from vidqa.engine.detokenizer import AnswerState
from vidqa.engine.frame_focus import FrameFocus, QuestionTokens
from vidqa.engine.kv_cache import KVCache
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefill import Prefill
from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
from vidqa.engine.prompt import PromptTokens, fit_subtitles, layout_of, with_prompt_length
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.timers import Callbacks, Clock, PhaseTimer, StageContext, Stopwatch
from vidqa.errors import NotFinite
from vidqa.events import Event, Noted, StageProgress, StageStarted, TextDelta
from vidqa.models.attention.selector import Kernel, make_kernel
from vidqa.models.family import TextSegment
from vidqa.planner.explain import subtitle_note
from vidqa.types import FinishReason, Plan
from vidqa.utils.cues import Cue
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
    one's. Where the question selects the frames, the embeddings are those of all candidates, and `asked` has its
    tokens; it is None where the selection is even. Of `cues`, all subtitles of the requested part, those near the
    selected frames are read.
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
        asked: QuestionTokens | None = None,
        cues: Sequence[Cue] = (),
    ) -> None:
        self._loaded, self._plan, self._answer, self._clock = loaded, plan, answer, clock
        self._callbacks, self._compiled = callbacks, dict[str, str]()
        self._stages = StageContext(tracker, callbacks, PhaseTimer(str(loaded.model.device)))
        self.kernel: Kernel = make_kernel(plan.run_config.attention, loaded.model.device)
        self._prompt, self._cues, self._model = prompt, cues, self._stages.with_cancel_check(loaded.model)
        self._focus: FrameFocus | None = None
        self._earlier_prompt: CachedPrompt | None = None  # of the last question, until the frames are selected
        if plan.candidates:
            self._focus = FrameFocus(loaded, plan, asked, self.kernel, self._stages, vision_embeddings)
            self._earlier_prompt, vision_embeddings, cached_prompt = cached_prompt, None, None
        self.prompt_runner = self._runner(plan, vision_embeddings, cached_prompt)

    @property
    def vision_embeddings(self) -> VisionEmbeddings | None:
        """The embeddings that the next question can reuse: where it selects frames, those of all candidates."""
        return self._focus.embeddings if self._focus else self.prompt_runner.vision_embeddings

    @property
    def cached_prompt(self) -> CachedPrompt | None:
        """The KV cache and the prompt in it."""
        return self._earlier_prompt or self.prompt_runner.cached_prompt

    def _runner(
        self, plan: Plan, vision_embeddings: VisionEmbeddings | None, cached_prompt: CachedPrompt | None
    ) -> PromptRunner:
        *prefix, last = layout_of(self._prompt, plan, self._loaded)
        assert isinstance(last, TextSegment)
        self._tail = last.ids
        layout = (*prefix, TextSegment((*last.ids, *self._answer.tokens)))
        prefill = Prefill(self._model, self.kernel, plan.run_config.prefill_chunk)
        return PromptRunner(self._model, plan, layout, prefill, self._stages, vision_embeddings, cached_prompt)

    def compile_notes(self) -> Iterable[str]:
        """Return a note for each kernel that has to be compiled first."""
        if self._plan.run_config.attention == "flex":
            model = self._loaded.model
            self._compiled = compile_cache.pending(model.spec, model.device, model.dtype)
        return self._compiled.values()

    @no_grad_generator
    def run(self, reader: VideoReader | None) -> Generator[Event, None, AttemptResult]:
        """Yield the attempt's events, return its result. `reader` is read if embeddings are missing."""
        try:
            result = yield from self._stages.with_memory_samples(self._run(reader))
        except NotFinite:
            self.prompt_runner.cached_prompt = None  # the cache may hold overflowed values
            raise
        finally:
            if (cached := self.prompt_runner.cached_prompt) is not None:
                cached.set_tail((*self._tail, *self._answer.tokens))
        for key in self._compiled:
            compile_cache.remember(key)
        return result

    def _run(self, reader: VideoReader | None) -> Generator[Event, None, AttemptResult]:
        plan, timer = self._plan, self._stages.timer
        if self._focus:
            plan = yield from self._select(self._focus, reader)
        prompt = self.prompt_runner
        logits = yield from prompt.run(reader)
        self._clock.video += self._focus.video_seconds if self._focus else prompt.video_seconds
        self._clock.vision += timer.seconds("vision")
        self._clock.prefill += timer.seconds("prefill")
        assert prompt.cached_prompt is not None and prompt.vision_embeddings is not None
        cache = prompt.cached_prompt.cache
        self._callbacks.on_phase("decode")
        with self._stages.tracker.phase("decode"):  # for all tokens: one is too short to measure around
            reason = yield from self._decode(logits, cache)
        return AttemptResult(prompt.vision_embeddings.plan_that_ran(plan), reason, cache.bytes)

    def _select(self, focus: FrameFocus, reader: VideoReader | None) -> Generator[Event, None, Plan]:
        """Select the frames; return their plan, with the subtitles near them and the prompt's exact length.

        A cached prompt stays if it has the same frames.
        """
        plan = fit_subtitles(self._prompt, (yield from focus.run(reader)), self._cues, self._loaded)
        plan = with_prompt_length(self._prompt, plan, self._loaded)
        cached, self._earlier_prompt = self._earlier_prompt, None
        if cached is not None and cached.frame_places != plan.frame_places:
            cached = None
        if cached is None:
            yield from (Noted(text, "plan") for text in subtitle_note(plan))
        self.prompt_runner = self._runner(plan, focus.selected(plan), cached)
        return plan

    def _decode(self, logits: Tensor, cache: KVCache) -> Generator[Event, None, FinishReason]:
        """Decode the rest of the answer; return why it ended."""
        answer, limit, position = self._answer, self._plan.run_config.max_tokens, self.prompt_runner.next_position
        runner = make_decode_runner(self._loaded.model, cache, self.kernel, position, answer.sampler)
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
