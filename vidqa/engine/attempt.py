"""One attempt at one question through all stages: frames → vision → prefill → decode, as events.

Knows their order; knows no files and no terminal.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.answer_state import AnswerState
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import make_decode_runner
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefill import Prefill
from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
from vidqa.engine.prompt import PromptTokens, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.stage_context import Hooks, StageContext
from vidqa.engine.timers import Clock, Sections, Stopwatch
from vidqa.errors import NotFinite
from vidqa.events import Event, StageProgress, StageStarted, TextDelta
from vidqa.models.attention.selector import Kernel, make_kernel
from vidqa.models.family import TextSegment
from vidqa.types import FinishReason, Plan
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished attempt leaves: the plan that ran, why the answer ended, and the cache's bytes."""

    plan: Plan
    reason: FinishReason
    kv_bytes: int


class Attempt:
    """Runs one request by one plan on a loaded model.

    `visual` and `read` are what a former question about the same pictures left; afterwards they
    are what this one leaves.
    """

    def __init__(
        self,
        loaded: "Loaded",
        plan: Plan,
        prompt: PromptTokens,
        speech: AnswerState,
        tracker: Tracker,
        hooks: Hooks,
        clock: Clock,
        visual: VisionEmbeddings | None = None,
        read: CachedPrompt | None = None,
    ) -> None:
        self._loaded, self._plan, self._speech, self._clock = loaded, plan, speech, clock
        self._hooks = hooks
        self._stages = StageContext(tracker, hooks, Sections(str(loaded.model.device)))
        self._kernel: Kernel = make_kernel(plan.run_config.attention, loaded.model.device)
        *prefix, last = layout_of(prompt, plan, loaded)
        assert isinstance(last, TextSegment)
        self._tail = last.ids
        layout = (*prefix, TextSegment((*last.ids, *speech.tokens)))
        model = self._stages.heeded_by(loaded.model)
        prefill = Prefill(model, self._kernel, plan.run_config.prefill_chunk)
        self._filling = PromptRunner(model, plan, layout, prefill, self._stages, visual, read)

    @property
    def kernel_name(self) -> str:
        """The attention kernel that runs."""
        return self._kernel.name

    @property
    def visual(self) -> VisionEmbeddings | None:
        """The video's embeddings on the host."""
        return self._filling.visual

    @property
    def read(self) -> CachedPrompt | None:
        """The KV cache and what it holds."""
        return self._filling.read

    @no_grad_generator
    def run(self, reader: VideoReader | None) -> Generator[Event, None, Outcome]:
        """Yield the events of one attempt; returns how it went. `reader` is asked where embeddings are missing."""
        try:
            return (yield from self._stages.sampled(self._run(reader)))
        except NotFinite:
            self._filling.read = None  # what is cached may hold what overflowed
            raise
        finally:
            if self.read is not None:
                self.read.note((*self._tail, *self._speech.tokens))

    def stopped(self) -> Outcome:
        """What is left of an attempt that was stopped after an earlier one had begun to answer."""
        return Outcome(self._plan, "cancelled", 0)

    def _run(self, reader: VideoReader | None) -> Generator[Event, None, Outcome]:
        logits = yield from self._filling.run(reader)
        sections = self._stages.sections
        self._clock.video += self._filling.video_seconds
        self._clock.vision, self._clock.prefill = sections.seconds("vision"), sections.seconds("prefill")
        self._hooks.enter("decode")
        with self._stages.tracker.phase("decode"):  # one visit: a token is too short to measure around
            reason = yield from self._write(logits)
        assert self.read is not None
        return Outcome(plan_that_ran(self._plan, self.visual), reason, self.read.cache.bytes)

    def _write(self, logits: Tensor) -> Generator[Event, None, FinishReason]:
        """Decode the rest of the answer; returns why it ended."""
        assert self.read is not None
        speech, limit = self._speech, self._plan.run_config.max_tokens
        writer = make_decode_runner(
            self._loaded.model, self.read.cache, self._kernel, self._filling.next_position, speech.sampler
        )
        tokens = decode(writer, logits, self._loaded.stop_ids, limit - len(speech.tokens))
        yield StageStarted("decode", limit)
        watch, before = Stopwatch(), self._clock.decode
        reason: FinishReason = "cancelled"
        while not self._hooks.cancelled():
            self._hooks.fault("decode")
            try:
                token = next(tokens)
            except StopIteration as finished:
                reason = finished.value
                break
            text = speech.say(token, self._loaded.tokenizer)
            if len(speech.tokens) == 1:
                self._clock.first_token = self._clock.watch.seconds()
                watch = Stopwatch()  # decode speed starts after the first token
            self._clock.decode = before + watch.seconds()
            if text:
                yield TextDelta(text)
            yield StageProgress("decode", len(speech.tokens), limit)
        if text := speech.finish():
            yield TextDelta(text)
        return reason


def plan_that_ran(plan: Plan, visual: VisionEmbeddings | None) -> Plan:
    """The plan with what was really seen: a damaged video gives fewer frames."""
    assert visual is not None
    return replace(
        plan,
        run_config=replace(plan.run_config, frames=len(visual.times)),
        timestamps_seconds=tuple(visual.times),
        visual_tokens=visual.filled,
        prompt_tokens=plan.prompt_tokens - plan.visual_tokens + visual.filled,
    )
