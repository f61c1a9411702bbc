"""One question through all stages: frames → vision → prefill → decode, as events.

The video is decoded by its own process, ahead of the stages that consume it; the stages
are passive and this file drives them. Knows their order; knows no files and no terminal.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidqa.engine.decode import TextStream, decode
from vidqa.engine.kv_cache import KVCache
from vidqa.engine.planning import Draft, check_context
from vidqa.engine.prefill import prefill
from vidqa.engine.prompt import Prompt, build_prompt, position_after_video, text_positions, video_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.timing import Stopwatch, Timed
from vidqa.engine.vision import EncodedGroup, GroupEncoder, Picture
from vidqa.errors import Interrupted
from vidqa.events import Answered, Event, Noted, Planned, StageProgress, StageStarted, TextDelta
from vidqa.memory.tracker import DevicePeak, host_peak_bytes
from vidqa.models.attention import Kernel, make_kernel
from vidqa.types import Answer, FinishReason, MemoryUse, Plan, Request, Timing
from vidqa.video.decode import VideoReader
from vidqa.video.patches import resize_frame

if TYPE_CHECKING:
    from vidqa.models.loader import Loaded


@dataclass(slots=True)
class _Clock:
    """Seconds per stage, filled in as the stages end."""

    watch: Stopwatch
    video: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0


class Pipeline:
    """Runs one request on a loaded model; `cancelled` is asked between units of work."""

    def __init__(
        self,
        loaded: "Loaded",
        reader: VideoReader,
        draft: Draft,
        request: Request,
        attention: str,
        cancelled: Callable[[], bool],
        watch: Stopwatch,
    ) -> None:
        self._loaded, self._reader, self._draft, self._request = loaded, reader, draft, request
        self._model, self._spec = loaded.model, loaded.model.spec
        self._cancelled = cancelled
        self._clock = _Clock(watch)
        self._peak = DevicePeak(self._model.device)
        self._kernel: Kernel = make_kernel(attention)
        self._prompt: Prompt = build_prompt(loaded.tokenizer, self._spec.video_token, request.question, request.system)

    def run(self, model_name: str, load_seconds: float) -> Generator[Event, None, None]:
        """Yield the events of one question; the last is Answered."""
        prompt_tokens = len(self._prompt.head) + self._draft.visual_tokens + len(self._prompt.tail)
        check_context(self._spec, self._draft, prompt_tokens, self._request.max_tokens)
        cache = KVCache(self._spec, prompt_tokens + self._request.max_tokens, self._model.dtype, self._model.device)
        plan = self._plan(model_name, prompt_tokens, cache)
        yield Planned(self._reader.info, plan)
        groups = yield from self._see()
        plan = self._plan_that_ran(plan, groups)
        logits, position = yield from self._read(groups, cache)
        text, tokens, reason = yield from self._write(logits, position, cache)
        timing = self._timing(load_seconds, tokens)
        memory = MemoryUse(self._model.weights_bytes, cache.bytes, host_peak_bytes(), self._peak.read())
        yield Answered(
            Answer(
                text=text,
                finish_reason=reason,
                question=self._request.question,
                video=self._reader.info,
                plan=plan,
                timing=timing,
                memory=memory,
                notes=self._reader.notes,
            )
        )

    def _see(self) -> Generator[Event, None, list[EncodedGroup]]:
        """Decode, resize and encode all frames."""
        draft, total = self._draft, len(self._draft.indices)
        pictures = Timed(
            Picture(resize_frame(frame.rgb, draft.height, draft.width), frame.timestamp_seconds)
            for frame in self._reader.frames(draft.indices)
        )
        watch, encoder = Stopwatch(), GroupEncoder(self._model, draft.vision_chunk)
        groups: list[EncodedGroup] = []
        yield StageStarted("video", total)
        yield StageStarted("vision", total)
        for seen, picture in enumerate(pictures, start=1):
            self._stop_if_cancelled("while the video was read")
            yield StageProgress("video", seen, total)
            if group := encoder.push(picture):
                groups.append(group)
                yield StageProgress("vision", seen, total)
        if group := encoder.flush():
            groups.append(group)
            yield StageProgress("vision", total, total)
        self._reader.check_coverage(draft.indices)
        for note in self._reader.notes:
            yield Noted(note)
        self._clock.video = pictures.seconds
        self._clock.vision = watch.seconds() - pictures.seconds
        return groups

    def _read(self, groups: list[EncodedGroup], cache: KVCache) -> Generator[Event, None, tuple[Tensor, int]]:
        """Prefill the prompt; returns the first logits and the position after the prompt."""
        watch = Stopwatch()
        embeddings, positions = self._assemble(groups)
        total = embeddings.shape[0]
        yield StageStarted("prefill", total)
        chunks = prefill(self._model, embeddings, positions, cache, self._kernel, self._draft.prefill_chunk)
        while True:
            try:
                done = next(chunks)
            except StopIteration as finished:
                logits: Tensor = finished.value
                break
            yield StageProgress("prefill", done, total)
            self._stop_if_cancelled("while the prompt was read")
        self._clock.prefill = watch.seconds()
        return logits, int(positions.max()) + 1

    @torch.no_grad()
    def _assemble(self, groups: list[EncodedGroup]) -> tuple[Tensor, Tensor]:
        """Embeddings (n, hidden) and M-RoPE positions (3, n) of the whole prompt."""
        head, tail = self._prompt.head, self._prompt.tail
        slices = sum(group.slices for group in groups)
        rows = self._draft.height // self._spec.pixel_factor
        columns = self._draft.width // self._spec.pixel_factor
        after = position_after_video(len(head), slices, rows, columns)
        embeddings = torch.cat(
            [self._model.embed(torch.tensor(head))]
            + [group.embeddings for group in groups]
            + [self._model.embed(torch.tensor(tail))]
        )
        positions = torch.cat(
            (
                text_positions(0, len(head)),
                video_positions(len(head), slices, rows, columns),
                text_positions(after, len(tail)),
            ),
            dim=1,
        )
        return embeddings, positions

    def _write(
        self, logits: Tensor, position: int, cache: KVCache
    ) -> Generator[Event, None, tuple[str, int, FinishReason]]:
        """Decode the answer; returns its text, its tokens and why it ended."""
        request = self._request
        sampler = Sampler(request.temperature, request.top_p, request.seed)
        stream, parts, count = TextStream(self._loaded.tokenizer), [], 0
        yield StageStarted("decode", request.max_tokens)
        watch = Stopwatch()
        tokens = decode(
            self._model, logits, position, cache, self._kernel, sampler, self._loaded.stop_ids, request.max_tokens
        )
        reason: FinishReason = "cancelled"
        while not self._cancelled():
            try:
                token = next(tokens)
            except StopIteration as finished:
                reason = finished.value
                break
            count += 1
            if count == 1:
                self._clock.first_token = self._clock.watch.seconds()
                watch = Stopwatch()  # decode speed starts after the first token
            if text := stream.push(token):
                parts.append(text)
                yield TextDelta(text)
            yield StageProgress("decode", count, request.max_tokens)
        self._clock.decode = watch.seconds()
        if text := stream.flush():
            parts.append(text)
            yield TextDelta(text)
        return "".join(parts).strip(), count, reason

    def _stop_if_cancelled(self, when: str) -> None:
        if self._cancelled():
            raise Interrupted(f"Stopped {when}.", "Nothing was answered yet.")

    def _plan(self, model_name: str, prompt_tokens: int, cache: KVCache) -> Plan:
        draft, info = self._draft, self._reader.info
        return Plan(
            model=model_name,
            device=str(self._model.device),
            dtype=str(self._model.dtype).removeprefix("torch."),
            frames=len(draft.indices),
            height=draft.height,
            width=draft.width,
            visual_tokens=draft.visual_tokens,
            prompt_tokens=prompt_tokens,
            timestamps_seconds=tuple(info.pts_seconds[index] - info.start_seconds for index in draft.indices),
            attention=self._kernel.name,
            vision_chunk=draft.vision_chunk,
            prefill_chunk=draft.prefill_chunk,
            kv_capacity_tokens=cache.capacity,
            kv_bytes=cache.bytes,
        )

    def _plan_that_ran(self, plan: Plan, groups: list[EncodedGroup]) -> Plan:
        """The plan with what was really seen: a damaged video gives fewer frames."""
        times = tuple(time for group in groups for time in group.timestamps_seconds)
        tokens = sum(group.embeddings.shape[0] for group in groups)
        return replace(
            plan,
            frames=len(times),
            timestamps_seconds=times,
            visual_tokens=tokens,
            prompt_tokens=plan.prompt_tokens - plan.visual_tokens + tokens,
        )

    def _timing(self, load_seconds: float, tokens: int) -> Timing:
        clock = self._clock
        return Timing(
            load_seconds=load_seconds,
            video_seconds=clock.video,
            vision_seconds=clock.vision,
            prefill_seconds=clock.prefill,
            first_token_seconds=clock.first_token,
            decode_seconds=clock.decode,
            tokens=tokens,
        )
