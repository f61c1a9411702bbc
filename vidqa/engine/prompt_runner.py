"""Runs a prompt into the KV cache: from the video, from kept embeddings, or from where the cache already is.

A group of slices goes through the vision tower and straight on into the cache, so neither pixels nor embeddings pile up
on the device. Where the tower has to leave the device first, all embeddings are kept on the host until then.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidqa.engine.frame_prefetcher import FramePrefetcher
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
from vidqa.engine.prompt import text_positions
from vidqa.engine.stage_context import StageContext
from vidqa.engine.timers import Timed
from vidqa.engine.vision import GroupEncoder
from vidqa.events import Event, Noted, StageProgress, StageStarted
from vidqa.models.family import Segment, TextSegment, VisionGrid
from vidqa.models.vlm import VisionLanguageModel
from vidqa.planner.memory_model import GROUPS_AHEAD
from vidqa.types import Plan
from vidqa.video.reader import VideoReader

Events = Generator[Event, None, None]


class PromptRunner:
    """Runs one prompt, whose last segment is text behind the video.

    `visual` and `read` are what earlier prompts left; afterwards they are what this one leaves. With a `row` of a batch
    the cache is that, and chunks are shared with the other rows.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        plan: Plan,
        layout: Sequence[Segment],
        prefill: Prefill,
        stages: StageContext,
        visual: VisionEmbeddings | None = None,
        read: CachedPrompt | None = None,
        row: KVCache | None = None,
    ) -> None:
        self._model, self._plan, self._stages = model, plan, stages
        *prefix, last = layout
        assert isinstance(last, TextSegment)
        self._prefix, self._tail = tuple(prefix), last.ids
        self._total = plan.visual_tokens + sum(len(one.ids) for one in layout if isinstance(one, TextSegment))
        self._prefill, self._row = prefill, row
        self.visual, self.read = visual, read
        self._pushed, self._cursor = 0, _Cursor(model, self._prefix, self._grid())
        self.video_seconds = 0.0

    @property
    def next_position(self) -> int:
        """The M-RoPE position of the first token behind the prompt."""
        assert self.read is not None
        return self.read.position + len(self._tail)

    def run(self, reader: VideoReader | None) -> Generator[Event, None, Tensor]:
        """Fill the cache; return the logits (1, vocabulary). `reader` is read where embeddings are missing."""
        yield from self.fill(reader)
        yield from self._progress(self._prefill.flush(self._cache))
        with self._stages.phase("prefill"):
            return self._prefill.logits(self._cache)

    def fill(self, reader: VideoReader | None) -> Events:
        """Push the whole prompt; what does not fill a chunk stays in the prefill's buffer."""
        same = self.read.shared(self._prefix, self._tail) if self.read else None
        if same is None:
            yield from self._read_video(reader)
        else:
            assert self.read is not None
            self.read.cut(same)
            yield StageStarted("prefill", self._total)
        assert self.read is not None
        yield from self._text(self._tail[same or 0 :], self.read.position + (same or 0))

    def copy_prefix_from(self, other: "PromptRunner") -> None:
        """Take over the segments through the video that another prompt has run, in a row of the same storage."""
        source = other.read
        assert source is not None and source.prefix_tokens is not None and self._row is not None
        self._row.copy_from(source.cache, source.prefix_tokens)
        self.read = CachedPrompt(self._row, source.prefix, source.prefix_tokens, source.position)
        self.visual = other.visual

    @property
    def _cache(self) -> KVCache:
        assert self.read is not None
        return self.read.cache

    def _read_video(self, reader: VideoReader | None) -> Events:
        self.read = None  # its memory is freed before the new cache is made
        complete = self.visual is not None and self.visual.complete
        offloaded = self._plan.run_config.placement.vision_offloaded
        if not complete:
            assert reader is not None
            if not offloaded:
                yield from self._begin()
            yield from self._encode_video(reader, streaming=not offloaded)
        if offloaded:
            self._model.visual.to("cpu")
        if complete or offloaded:
            yield from self._begin()
            yield from self._push_kept()
        self._end_prefix()

    def _end_prefix(self) -> None:
        """All of the video is in the cache, or in the prefill's buffer before the text behind it."""
        assert self.read is not None
        self.read.prefix_tokens, self.read.position = self._pushed, self._cursor.finish()

    def _begin(self) -> Events:
        """Make the cache."""
        run_config = self._plan.run_config
        with self._stages.phase("prefill"):
            cache = self._row or make_cache(
                self._model.spec, self._plan.kv_capacity_tokens, self._model.dtype, self._model.device,
                quantized=run_config.kv == "int8", on_host=run_config.placement.kv_on_host,
            )  # fmt: skip
        self.read = CachedPrompt(cache, self._prefix)
        self._cursor, self._pushed = _Cursor(self._model, self._prefix, self._grid()), 0
        yield StageStarted("prefill", self._total)

    def _encode_video(self, reader: VideoReader, *, streaming: bool) -> Events:
        """Decode, resize and encode all frames, and push each group where it streams."""
        run_config, total, spec = self._plan.run_config, len(self._plan.indices), self._model.spec
        self._model.visual.to(self._model.device)
        self.visual = VisionEmbeddings.reserve(
            self._plan.visual_tokens, spec.embedding_width, self._model.dtype, self._model.device
        )
        encoder = GroupEncoder(self._model, run_config.vision_chunk)
        room = GROUPS_AHEAD * run_config.vision_chunk * spec.vision.temporal_patch
        prefetcher = FramePrefetcher(
            reader, self._plan.indices, (run_config.height, run_config.width), min(room, total),
            self._model.family.resize_frame, self._stop_in_video, self._stages.tracker.count,
        )  # fmt: skip
        frames = Timed(prefetcher)
        try:
            yield StageStarted("video", total)
            yield StageStarted("vision", total)
            if streaming:
                yield from self._text_before_video()
            for seen, frame in enumerate(frames, start=1):
                self._stop_in_video()
                yield StageProgress("video", seen, total)
                if encoder.push(frame):
                    yield from self._encode(encoder, seen, streaming)
            yield from self._encode(encoder, total, streaming)
        finally:
            prefetcher.close()
        self.video_seconds = frames.seconds
        reader.check_coverage(self._plan.indices)
        self.visual.complete = True
        for note in reader.notes:
            yield Noted(note)

    def _stop_in_video(self) -> None:
        self._stages.stop_if_cancelled("while the video was read")

    def _encode(self, encoder: GroupEncoder, seen: int, streaming: bool) -> Events:
        """Encode a group, keep it on the host, and push it."""
        assert self.visual is not None
        with self._stages.phase("vision"):
            group = encoder.encode()
        if group is None:
            return
        self.visual.add(group.embeddings, group.slices, group.timestamps_seconds)
        yield StageProgress("vision", seen, len(self._plan.indices))
        self._stop_in_video()
        if streaming:
            each = len(group.embeddings) // group.slices
            done = 0
            for part in self._cursor.take(group.slices):
                yield from self._text(*part.text)
                yield from self._push(group.embeddings[done * each : (done + part.slices) * each], part.positions)
                done += part.slices

    def _push_kept(self) -> Events:
        """Push the embeddings that are kept on the host, and the text before and between them."""
        assert self.visual is not None
        yield from self._text_before_video()
        done = 0
        for part in self._cursor.take(self.visual.slices):
            yield from self._text(*part.text)
            positions = part.positions
            for rows in self.visual.chunks(done, part.slices, self._plan.run_config.prefill_chunk):
                yield from self._push(rows.to(self._model.device, non_blocking=True), positions[:, : len(rows)])
                positions = positions[:, len(rows) :]
            done += part.slices

    def _text_before_video(self) -> Events:
        yield from self._text(*self._cursor.text())
        if self._row is None:  # alone there is nothing to share the chunk with; frames, or whole chunks, come next
            yield from self._progress(self._prefill.flush(self._cache))

    def _text(self, ids: Sequence[int], position: int) -> Events:
        chunk = self._plan.run_config.prefill_chunk  # a long text's embeddings would outgrow what is planned for one
        for start in range(0, len(ids), chunk):
            some = torch.tensor(ids[start : start + chunk])
            yield from self._push(self._model.embed_prompt(some), text_positions(position + start, len(some)))

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

    def _grid(self) -> VisionGrid:
        """One slice in tokens, and the seconds from one to the next."""
        spec, run_config = self._model.spec, self._plan.run_config
        rows, columns = run_config.height // spec.pixel_factor, run_config.width // spec.pixel_factor
        return VisionGrid(1, rows, columns, self._plan.interval_seconds * spec.vision.temporal_patch)


@dataclass(frozen=True, slots=True)
class _Slices:
    """Slices of one vision segment: ids and position of the text before them, how many, and positions (3, tokens)."""

    text: tuple[tuple[int, ...], int]
    slices: int
    positions: Tensor


class _Cursor:
    """Walks through the segments of a prompt up to its last text, and counts M-RoPE positions."""

    def __init__(self, model: VisionLanguageModel, prefix: Sequence[Segment], slice_grid: VisionGrid) -> None:
        self._model, self._grid = model, slice_grid
        self._segments = deque(prefix)
        self._position = self._start = 0
        self._left = self._done = 0  # slices of the segment that is being read

    def text(self) -> tuple[tuple[int, ...], int]:
        """Return the ids of the text that comes next, if any, and their position."""
        ids: tuple[int, ...] = ()
        while self._segments and isinstance(self._segments[0], TextSegment):
            ids += self._segments.popleft().ids  # type: ignore[union-attr]
        position, self._position = self._position, self._position + len(ids)
        return ids, position

    def take(self, slices: int) -> Iterator[_Slices]:
        """Yield the next slices, cut where text stands between them."""
        while slices:
            text: tuple[tuple[int, ...], int] = ((), 0)
            if not self._left:
                text = self._next_segment()
            count = min(slices, self._left)
            grid = replace(self._grid, slices=count)
            yield _Slices(
                text, count, self._model.family.vision_positions(self._model.spec, self._start, grid, self._done)
            )
            self._done, self._left, slices = self._done + count, self._left - count, slices - count

    def _next_segment(self) -> tuple[tuple[int, ...], int]:
        self._end_segment()
        text = self.text()
        segment = self._segments.popleft()
        assert not isinstance(segment, TextSegment)
        self._start, self._left = self._position, segment.slices
        return text

    def finish(self) -> int:
        """Return the position behind the slices that were read; a damaged video gives fewer than were planned."""
        self._end_segment()
        return self._position

    def _end_segment(self) -> None:
        if self._done:
            grid = replace(self._grid, slices=self._done)
            self._position = self._model.family.position_after(self._model.spec, self._start, grid)
        self._done = 0
