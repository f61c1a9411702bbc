"""Runs a prompt into the KV cache: from the video, from cached embeddings, or from the end of the cached prompt.

Each group of slices goes through the vision tower and on into the cache, so neither pixels nor embeddings pile up on
the device. If the tower has to leave the device first, all embeddings are stored on the host until then.
"""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from vidqa.engine.domain_check import DomainCheck
from vidqa.engine.frame_prefetcher import FramePrefetcher
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
from vidqa.engine.prompt import PromptCursor, text_positions, text_tokens
from vidqa.engine.timers import StageContext, TimedIterator
from vidqa.engine.token_pruning import TokenPruner, make_pruner, shortfall_note
from vidqa.engine.vision import GroupEncoder
from vidqa.events import Event, Noted, OutOfDomain, StageProgress, StageStarted
from vidqa.models.family import Segment, TextSegment
from vidqa.models.vlm import VisionLanguageModel
from vidqa.planner.activation_memory import drops_tokens
from vidqa.types import Plan
from vidqa.video.reader import VideoReader

Events = Generator[Event, None, None]


class PromptRunner:
    """Runs one prompt, whose last segment is text after the video.

    `vision_embeddings` and `cached_prompt` come from earlier prompts; afterwards they are this one's. `notes` are on
    the frames that were read. With a `row` of a batch the cache is that, and chunks are shared with the other rows.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        plan: Plan,
        layout: Sequence[Segment],
        prefill: Prefill,
        stages: StageContext,
        vision_embeddings: VisionEmbeddings | None = None,
        cached_prompt: CachedPrompt | None = None,
        row: KVCache | None = None,
    ) -> None:
        self._model, self._plan, self._stages = model, plan, stages
        *prefix, last = layout
        assert isinstance(last, TextSegment)
        self._prefix, self._tail = tuple(prefix), last.ids
        self._total = plan.visual_tokens + text_tokens(layout)
        self._prefill, self._row = prefill, row
        self.vision_embeddings, self.cached_prompt = vision_embeddings, cached_prompt
        self._pushed, self._cursor = 0, PromptCursor(model, self._prefix, plan)
        self._pruner: TokenPruner | None = None
        self.video_seconds = 0.0
        self.notes: tuple[str, ...] = ()

    @property
    def next_position(self) -> int:
        """The M-RoPE position of the first token after the prompt."""
        assert self.cached_prompt is not None
        return self.cached_prompt.position + len(self._tail)

    def run(self, reader: VideoReader | None) -> Generator[Event, None, Tensor]:
        """Fill the cache; return the logits (1, vocabulary). `reader` is read if embeddings are missing."""
        yield from self.push_prompt(reader)
        yield from self._progress(self._prefill.flush(self._cache))
        with self._stages.phase("prefill"):
            return self._prefill.logits(self._cache)

    def push_prompt(self, reader: VideoReader | None) -> Events:
        """Push the whole prompt; rows that do not fill a chunk stay in the prefill's buffer."""
        if self.vision_embeddings is not None and self.vision_embeddings.complete:
            yield from self._domain_event()
        common = self.cached_prompt.common_tokens(self._prefix, self._tail) if self.cached_prompt else None
        if common is None:
            yield from self._push_prefix(reader)
        cached = self.cached_prompt
        assert cached is not None
        if common is None:
            cached.prefix_tokens, cached.position = self._pushed, self._cursor.finish()
        else:
            cached.truncate(common)
            yield StageStarted("prefill", self._total)
        yield from self._push_text(self._tail[common or 0 :], cached.position + (common or 0))

    def copy_prefix_from(self, other: "PromptRunner") -> None:
        """Copy the cached segments through the video from another prompt, which is a row of the same storage."""
        source = other.cached_prompt
        assert source is not None and source.prefix_tokens is not None and self._row is not None
        self._row.copy_from(source.cache, source.prefix_tokens)
        self.cached_prompt = CachedPrompt(self._row, source.prefix, source.prefix_tokens, source.position)
        self.vision_embeddings, self.notes = other.vision_embeddings, other.notes

    @property
    def _cache(self) -> KVCache:
        assert self.cached_prompt is not None
        return self.cached_prompt.cache

    def _push_prefix(self, reader: VideoReader | None) -> Events:
        """Push the segments through the video, which is read and encoded if its embeddings are missing."""
        self.cached_prompt = None  # frees its memory before the new cache is made
        complete = self.vision_embeddings is not None and self.vision_embeddings.complete
        offloaded = self._plan.run_config.placement.vision_offloaded
        if not complete:
            assert reader is not None
            if not offloaded:
                yield from self._make_cache()
            yield from self.encode_video(reader, streaming=not offloaded)
        if offloaded:
            self._model.visual.to("cpu")
        if complete or offloaded:
            yield from self._make_cache()
            yield from self._push_text_before_video()
            assert self.vision_embeddings is not None
            yield from self._push_slices(self.vision_embeddings, self._plan.run_config.prefill_chunk)

    def _make_cache(self) -> Events:
        run_config = self._plan.run_config
        with self._stages.phase("prefill"):
            cache = self._row or make_cache(
                self._model.spec, self._plan.kv_capacity_tokens, self._model.dtype, self._model.device,
                quantized=run_config.kv == "int8", on_host=run_config.placement.kv_on_host,
            )  # fmt: skip
        self.cached_prompt = CachedPrompt(cache, self._prefix, frame_places=self._plan.frame_places)
        self._cursor, self._pushed = PromptCursor(self._model, self._prefix, self._plan), 0
        yield StageStarted("prefill", self._total)

    def encode_video(self, reader: VideoReader, *, streaming: bool, parked: VisionEmbeddings | None = None) -> Events:
        """Decode, resize and encode all frames, into `parked` if given; push each group if `streaming`."""
        model, total = self._model, len(self._plan.indices)
        model.visual.to(model.device)
        self.vision_embeddings = parked or VisionEmbeddings.reserve(self._plan.visual_tokens, model)
        self._pruner = make_pruner(self._plan, model.spec) if drops_tokens(self._plan.run_config) else None
        encoder = GroupEncoder(model, self._plan.run_config.vision_chunk)
        check = DomainCheck(model.domain, total) if model.domain else None
        prefetcher = FramePrefetcher(reader, self._plan, model, self._stop_in_video, self._stages.tracker.count)
        frames = TimedIterator(prefetcher)
        try:
            yield StageStarted("video", total)
            yield StageStarted("vision", total)
            if streaming:
                yield from self._push_text_before_video()
            for seen, frame in enumerate(frames, start=1):
                self._stop_in_video()
                yield StageProgress("video", seen, total)
                if check is not None:
                    check.add(np.from_dlpack(frame.pixels).transpose(1, 2, 0))  # no tensor that would be counted
                if encoder.push(frame):
                    yield from self._encode_group(encoder, seen, streaming)
            yield from self._encode_group(encoder, total, streaming)
        finally:
            prefetcher.close()
        self.video_seconds = frames.seconds
        reader.check_coverage(self._plan.indices)
        self.vision_embeddings.complete = True
        if check is not None:
            self.vision_embeddings.out_of_domain = check.out_of_domain
            yield from self._domain_event()
        self.notes = (*reader.notes, *(shortfall_note(self._pruner) if self._pruner else ()))
        yield from (Noted(text, "frames") for text in self.notes)
        self._pruner = None

    def _domain_event(self) -> Events:
        if self._model.domain and self.vision_embeddings and self.vision_embeddings.out_of_domain:
            yield OutOfDomain(self._model.domain.knows)

    def _stop_in_video(self) -> None:
        self._stages.stop_if_cancelled("while the video was read")

    def _encode_group(self, encoder: GroupEncoder, seen: int, streaming: bool) -> Events:
        assert self.vision_embeddings is not None
        with self._stages.phase("vision"):
            group = encoder.encode()
            if group is not None and self._pruner is not None:
                group = self._pruner.prune(group)
        if group is None:
            return
        self.vision_embeddings.add(group.embeddings, group.slices, group.timestamps_seconds, group.kept)
        yield StageProgress("vision", seen, len(self._plan.indices))
        self._stop_in_video()
        if streaming:
            rows = len(group.embeddings)
            encoded = VisionEmbeddings(group.embeddings, group.slices, filled=rows, kept=list(group.kept))
            yield from self._push_slices(encoded, rows)

    def _push_slices(self, embeddings: VisionEmbeddings, rows_at_once: int) -> Events:
        """Push the next slices, with the text between them."""
        done = 0
        for part in self._cursor.take(embeddings.slices):
            yield from self._push_text(*part.text)
            positions = embeddings.kept_positions(done, part.slices, part.positions)
            for rows in embeddings.chunks(done, part.slices, rows_at_once):
                yield from self._push(rows.to(self._model.device, non_blocking=True), positions[:, : len(rows)])
                positions = positions[:, len(rows) :]
            done += part.slices

    def _push_text_before_video(self) -> Events:
        yield from self._push_text(*self._cursor.text())
        if self._row is None:  # no other sequence shares the chunk; frames, or whole chunks, come next
            yield from self._progress(self._prefill.flush(self._cache))

    def _push_text(self, ids: Sequence[int], position: int) -> Events:
        chunk = self._plan.run_config.prefill_chunk  # the embeddings of a long text would exceed the planned memory
        for start in range(0, len(ids), chunk):
            part = torch.tensor(ids[start : start + chunk])
            yield from self._push(self._model.embed_prompt(part), text_positions(position + start, len(part)))

    def _push(self, embeddings: Tensor, positions: Tensor) -> Events:
        self._pushed += len(embeddings)
        yield from self._progress(self._prefill.push(self._cache, embeddings, positions))

    def _progress(self, chunks: Generator[int, None, None]) -> Events:
        """Run chunks one by one, with an event for each."""
        while True:
            with self._stages.phase("prefill"):
                done = next(chunks, None)
            if done is None:
                return
            yield StageProgress("prefill", done, self._total)
            self._stages.stop_if_cancelled("while the prompt was read")
