"""One attempt at one question through all stages: frames → vision → prefill → decode, as events.

The video is decoded by its own process, ahead of the stages that consume it; the stages
are passive and this file drives them, exactly as the plan says. Knows their order; knows
no files and no terminal.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vidqa.engine.decode import decode
from vidqa.engine.embeddings import PromptEmbeddings
from vidqa.engine.kv_cache import KVCache
from vidqa.engine.prefill import prefill
from vidqa.engine.prompt import Prompt, position_after_video, text_positions, video_positions
from vidqa.engine.speech import Speech
from vidqa.engine.timing import Clock, Stopwatch, Timed
from vidqa.engine.vision import EncodedGroup, GroupEncoder, Picture
from vidqa.errors import Interrupted
from vidqa.events import Event, Noted, StageProgress, StageStarted, TextDelta
from vidqa.memory.tracker import Tracker
from vidqa.models.attention import Kernel, make_kernel
from vidqa.types import FinishReason, Plan
from vidqa.video.decode import VideoReader
from vidqa.video.patches import resize_frame

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an attempt asks and tells around it: whether to stop, (in tests) whether a phase fails now, which it is."""

    cancelled: Callable[[], bool]
    fault: Callable[[str], None]
    enter: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished attempt leaves: the plan that ran, why the answer ended, and the cache's bytes."""

    plan: Plan
    reason: FinishReason
    kv_bytes: int


class Pipeline:
    """Runs one request by one plan on a loaded model."""

    def __init__(
        self,
        loaded: "Loaded",
        reader: VideoReader,
        plan: Plan,
        prompt: Prompt,
        speech: Speech,
        tracker: Tracker,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._loaded, self._reader, self._plan = loaded, reader, plan
        self._model, self._spec = loaded.model, loaded.model.spec
        self._prompt, self._speech, self._tracker, self._hooks, self._clock = prompt, speech, tracker, hooks, clock
        self._kernel: Kernel = make_kernel(plan.draft.attention)
        self._rows: PromptEmbeddings | None = None
        self._slices, self._times = 0, list[float]()

    @property
    def kernel_name(self) -> str:
        """The attention kernel that runs."""
        return self._kernel.name

    def run(self) -> Generator[Event, None, Outcome]:
        """Yield the events of one attempt; returns how it went."""
        yield from self._measured("vision", self._see())
        logits, position, cache = yield from self._measured("prefill", self._read())
        reason = yield from self._measured("decode", self._write(logits, position, cache))
        return Outcome(self._plan_that_ran(), reason, cache.bytes)

    def stopped(self) -> Outcome:
        """What is left of an attempt that was stopped after an earlier one had begun to answer."""
        return Outcome(self._plan, "cancelled", 0)

    def _measured(self, phase: str, stage: Generator[Event, None, Result]) -> Generator[Event, None, Result]:
        """Run a stage as a phase of the tracker, with samples of memory between its events."""
        self._hooks.enter(phase)
        with self._tracker.phase(phase):
            while True:
                try:
                    event = next(stage)
                except StopIteration as finished:
                    result: Result = finished.value
                    return result
                yield event
                if sample := self._tracker.sample():
                    yield sample

    def _see(self) -> Generator[Event, None, None]:
        """Decode, resize and encode all frames."""
        draft, total = self._plan.draft, len(self._plan.indices)
        self._model.visual.to(self._model.device)
        head, tail = self._prompt.head, (*self._prompt.tail, *self._speech.tokens)
        self._rows = PromptEmbeddings(
            self._model, head, self._plan.visual_tokens, tail, on_host=draft.placement.visual_on_host
        )
        pictures = Timed(
            Picture(resize_frame(frame.rgb, draft.height, draft.width), frame.timestamp_seconds)
            for frame in self._reader.frames(self._plan.indices)
        )
        watch, encoder = Stopwatch(), GroupEncoder(self._model, draft.vision_chunk)
        yield StageStarted("video", total)
        yield StageStarted("vision", total)
        for seen, picture in enumerate(pictures, start=1):
            self._stop_if_cancelled("while the video was read")
            self._hooks.fault("vision")
            yield StageProgress("video", seen, total)
            if self._encoded(encoder.push(picture)):
                yield StageProgress("vision", seen, total)
        if self._encoded(encoder.flush()):
            yield StageProgress("vision", total, total)
        self._reader.check_coverage(self._plan.indices)
        for note in self._reader.notes:
            yield Noted(note)
        self._clock.video = pictures.seconds
        self._clock.vision = watch.seconds() - pictures.seconds

    def _encoded(self, group: EncodedGroup | None) -> bool:
        """Keep a finished group's embeddings and times; whether there was one."""
        if group is None:
            return False
        assert self._rows is not None
        self._rows.add(group.embeddings)
        self._slices += group.slices
        self._times += group.timestamps_seconds
        return True

    def _read(self) -> Generator[Event, None, tuple[Tensor, int, KVCache]]:
        """Prefill the prompt; returns the first logits, the position after the prompt, and the cache."""
        draft, watch, rows = self._plan.draft, Stopwatch(), self._rows
        assert rows is not None
        if draft.placement.vision_offloaded:
            self._model.visual.to("cpu")
        self._hooks.fault("prefill")
        cache = KVCache(
            self._spec, self._plan.kv_capacity_tokens, self._model.dtype, self._model.device,
            quantized=draft.kv == "int8", on_host=draft.placement.kv_on_host,
        )  # fmt: skip
        positions = self._positions(len(self._prompt.tail) + len(self._speech.tokens))
        total = positions.shape[1]
        yield StageStarted("prefill", total)
        chunks = prefill(self._model, rows, positions, cache, self._kernel, draft.prefill_chunk)
        while True:
            try:
                done = next(chunks)
            except StopIteration as finished:
                logits: Tensor = finished.value
                break
            yield StageProgress("prefill", done, total)
            self._stop_if_cancelled("while the prompt was read")
            self._hooks.fault("prefill")
        self._rows = None
        self._clock.prefill = watch.seconds()
        return logits, int(positions.max()) + 1, cache

    def _positions(self, tail_tokens: int) -> Tensor:
        """M-RoPE positions (3, n) of the whole prompt."""
        head = len(self._prompt.head)
        rows = self._plan.draft.height // self._spec.pixel_factor
        columns = self._plan.draft.width // self._spec.pixel_factor
        after = position_after_video(head, self._slices, rows, columns)
        return torch.cat(
            (
                text_positions(0, head),
                video_positions(head, self._slices, rows, columns),
                text_positions(after, tail_tokens),
            ),
            dim=1,
        )

    def _write(self, logits: Tensor, position: int, cache: KVCache) -> Generator[Event, None, FinishReason]:
        """Decode the rest of the answer; returns why it ended."""
        speech, limit = self._speech, self._plan.draft.max_tokens
        left = limit - len(speech.tokens)
        self._hooks.fault("decode")
        yield StageStarted("decode", limit)
        watch, before = Stopwatch(), self._clock.decode
        tokens = decode(self._model, logits, position, cache, self._kernel, speech.sampler, self._loaded.stop_ids, left)
        reason: FinishReason = "cancelled"
        while not self._hooks.cancelled():
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
            self._hooks.fault("decode")
        if text := speech.finish():
            yield TextDelta(text)
        return reason

    def _stop_if_cancelled(self, when: str) -> None:
        if self._hooks.cancelled():
            raise Interrupted(f"Stopped {when}.", "Nothing was answered yet.")

    def _plan_that_ran(self) -> Plan:
        """The plan with what was really seen: a damaged video gives fewer frames."""
        plan, draft = self._plan, self._plan.draft
        slice_tokens = self._spec.visual_tokens(2, draft.height, draft.width)
        tokens = self._slices * slice_tokens
        return replace(
            plan,
            draft=replace(draft, frames=len(self._times)),
            timestamps_seconds=tuple(self._times),
            visual_tokens=tokens,
            prompt_tokens=plan.prompt_tokens - plan.visual_tokens + tokens,
        )
