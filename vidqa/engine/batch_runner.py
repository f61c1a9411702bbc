"""Several requests by one model at once: their prompts share prefill chunks, their answers decode steps.

Each sequence has its row in one cache and attends to that alone, so an answer is what it would be
by itself. Questions about the same pictures read them once. A video that fails leaves the others.
Knows requests and rows; knows no files.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidqa.engine.answer_state import AnswerState
from vidqa.engine.cuda_graph import capture_on
from vidqa.engine.decode import decode_together
from vidqa.engine.decode_runners import CudaGraphDecoder, DecodeRunner
from vidqa.engine.kv_cache import KVCache, Storage
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import PromptTokens, layout_of
from vidqa.engine.prompt_runner import PromptRunner
from vidqa.engine.request_state import Scene
from vidqa.engine.stage_context import StageContext
from vidqa.engine.timers import Clock, Stopwatch
from vidqa.errors import VideoError
from vidqa.events import Event, Failed, StageStarted, TextDelta
from vidqa.models.attention.selector import make_kernel
from vidqa.types import FinishReason, Plan
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded

Tagged = Generator[tuple[int, Event], None, None]


@dataclass(slots=True)
class BatchItem:
    """One request of a batch: how it is run, and what became of it."""

    scene: Scene
    reader: VideoReader
    plan: Plan
    prompt: PromptTokens
    speech: AnswerState
    filling: PromptRunner | None = None
    reason: FinishReason | None = None
    error: VideoError | None = None
    clock: Clock = field(default_factory=Clock)


class BatchRunner:
    """Runs members by their plans, which differ in frames and size alone."""

    def __init__(self, loaded: "Loaded", members: Sequence[BatchItem], stages: StageContext) -> None:
        self._loaded, self._members, self._stages = loaded, members, stages
        run_config = members[0].plan.run_config
        self._storage = Storage.allocate(
            loaded.model.spec, max(member.plan.kv_capacity_tokens for member in members), loaded.model.dtype,
            loaded.model.device, sequences=len(members), quantized=run_config.kv == "int8",
        )  # fmt: skip
        self._rows = [KVCache(self._storage, row) for row in range(len(members))]
        chunk = min(member.plan.run_config.prefill_chunk for member in members)
        self._model = stages.heeded_by(loaded.model)
        self._prefill = Prefill(self._model, make_kernel(run_config.attention, loaded.model.device), chunk)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache of all."""
        return self._storage.bytes

    @no_grad_generator
    def run(self) -> Tagged:
        """Yield (member, event) until every member has its reason or its error."""
        for place, member in enumerate(self._members):
            try:
                for event in self._fill(place, member):
                    yield place, event
            except VideoError as error:
                member.error = error
                self._prefill.forget(self._rows[place])
                yield place, Failed(error)
        alive = [place for place, member in enumerate(self._members) if member.error is None]
        if alive:
            yield from self._decode(alive, self._logits(alive))

    def _fill(self, place: int, member: BatchItem) -> Iterator[Event]:
        watch, model, prompt = Stopwatch(), self._model, member.prompt
        filling = PromptRunner(
            model,
            member.plan,
            layout_of(prompt, member.plan, self._loaded),
            self._prefill,
            self._stages,
            row=self._rows[place],
        )
        before = self._same_pictures(place, member)
        if before is not None:
            source = self._members[before].filling
            assert source is not None
            for _ in self._prefill.flush(self._rows[before]):
                pass  # what is copied has to be there
            filling.copy_prefix_from(source)
        member.filling = filling
        yield from filling.fill(member.reader)
        member.clock.video, member.clock.prefill = filling.video_seconds, watch.seconds() - filling.video_seconds

    def _same_pictures(self, place: int, member: BatchItem) -> int | None:
        """An earlier member that has read the same pictures behind the same text."""
        for earlier, other in enumerate(self._members[:place]):
            if other.error is None and _pictures(other) == _pictures(member):
                return earlier
        return None

    def _logits(self, alive: Sequence[int]) -> Tensor:
        """Scores (B, vocabulary) behind every prompt; zeros for members that failed."""
        for _ in self._prefill.flush(self._rows[alive[0]]):
            pass
        found = self._prefill.logits(*(self._rows[place] for place in alive))
        logits = torch.zeros(len(self._members), found.shape[1], device=found.device)
        for place, row in zip(alive, found, strict=True):
            logits[place] = row
        return logits

    def _decode(self, alive: Sequence[int], logits: Tensor) -> Tagged:
        positions, limits = [0] * len(self._members), [0] * len(self._members)
        for place in alive:
            member = self._members[place]
            assert member.filling is not None
            positions[place] = member.filling.next_position
            limits[place] = member.plan.run_config.max_tokens
            yield place, StageStarted("decode", limits[place])
        samplers = [member.speech.sampler for member in self._members]
        model = self._loaded.model
        writer: DecodeRunner = CudaGraphDecoder(model, self._rows, positions, samplers, capture_on(model.device))
        for place in set(range(len(self._members))) - set(alive):
            writer.end(place, take_back=False)
        watch = Stopwatch()
        with self._stages.tracker.phase("decode"):
            for place, token in decode_together(writer, logits, self._loaded.stop_ids, limits):
                self._stages.stop_if_cancelled("while several answers were written")
                member = self._members[place]
                member.clock.decode = watch.seconds()
                if said := self._said(member, token):
                    yield place, TextDelta(said)

    def _said(self, member: BatchItem, token: int | FinishReason) -> str:
        if isinstance(token, int):
            return member.speech.say(token, self._loaded.tokenizer)
        member.reason = token
        return member.speech.finish()


def _pictures(member: BatchItem) -> tuple[object, ...]:
    """What must be equal for two prompts to begin with the same keys and values."""
    run_config = member.plan.run_config
    return member.scene, member.plan.indices, run_config.height, run_config.width, member.prompt.head
