"""A prompt into the KV cache: from the video, from embeddings that wait, or from where the cache already is.

A group of slices goes through the vision tower and straight on into the cache, so neither
pixels nor embeddings pile up on the device; only where the tower has to leave it first do
all embeddings wait on the host. Knows the order of a prompt; knows no text.
"""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from vidqa.engine.frame_prefetcher import FramePrefetcher
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prefix_cache import CachedPrompt, VisionEmbeddings
from vidqa.engine.prompt import position_after_video, text_positions, video_positions
from vidqa.engine.stage_context import StageContext
from vidqa.engine.timers import Timed
from vidqa.engine.vision import GroupEncoder
from vidqa.events import Event, Noted, StageProgress, StageStarted
from vidqa.models.families.qwen2_vl.model import Qwen2VL
from vidqa.planner.memory_model import GROUPS_AHEAD
from vidqa.types import Plan
from vidqa.video.reader import VideoReader

Events = Generator[Event, None, None]


class PromptRunner:
    """One prompt of ids `head`, a video, and ids `tail` on its way into the cache.

    `visual` and `read` are what is there already; afterwards they are what this prompt left. With a
    `row` of a batch the cache is that, and chunks are shared with the other rows.
    """

    def __init__(
        self,
        model: Qwen2VL,
        plan: Plan,
        head: Sequence[int],
        tail: Sequence[int],
        prefill: Prefill,
        stages: StageContext,
        visual: VisionEmbeddings | None = None,
        read: CachedPrompt | None = None,
        row: KVCache | None = None,
    ) -> None:
        self._model, self._plan, self._stages = model, plan, stages
        self._head, self._tail = tuple(head), tuple(tail)
        self._total = len(self._head) + plan.visual_tokens + len(self._tail)
        self._prefill, self._row = prefill, row
        self.visual, self.read = visual, read
        self.video_seconds = 0.0

    def run(self, reader: VideoReader | None) -> Generator[Event, None, Tensor]:
        """Fill the cache; returns the logits (1, vocabulary). `reader` is asked where the video is not there yet."""
        yield from self.fill(reader)
        yield from self._told(self._prefill.flush(self._cache))
        with self._stages.phase("prefill"):
            return self._prefill.logits(self._cache)

    def fill(self, reader: VideoReader | None) -> Events:
        """Hand over the whole prompt; what does not fill a chunk still waits."""
        same = self.read.shared(self._head, self._tail) if self.read else None
        if same is None:
            yield from self._read_video(reader)
        else:
            yield from self._go_on(same)
        yield from self._text(self._tail[same or 0 :], self.position_after_video() + (same or 0))

    def copy_prefix_from(self, other: "PromptRunner") -> None:
        """Take over the head and the video that another prompt has read, in a row of the same storage."""
        assert other.read is not None and other.read.visual_tokens is not None and self._row is not None
        self._row.copy_from(other.read.cache, len(other.read.head) + other.read.visual_tokens)
        self.read = CachedPrompt(self._row, other.read.head, other.read.visual_tokens)
        self.visual = other.visual

    @property
    def _cache(self) -> KVCache:
        assert self.read is not None
        return self.read.cache

    def position_after_video(self) -> int:
        """The M-RoPE position of the first id behind the video."""
        assert self.visual is not None
        return position_after_video(len(self._head), self.visual.slices, *self._grid())

    def _go_on(self, same: int) -> Events:
        """The cache has the video and `same` ids behind it: only the rest is new."""
        assert self.read is not None
        self.read.cut(same)
        yield StageStarted("prefill", self._total)

    def _read_video(self, reader: VideoReader | None) -> Events:
        self.read = None  # its memory goes before the new cache is made
        there = self.visual is not None and self.visual.complete
        offloaded = self._plan.run_config.placement.vision_offloaded
        if not there:
            assert reader is not None
            if not offloaded:
                yield from self._begin()
            yield from self._see(reader, streaming=not offloaded)
        if offloaded:
            self._model.visual.to("cpu")
        if there or offloaded:
            yield from self._begin()
            yield from self._read_waiting()
        self._note_video()

    def _note_video(self) -> None:
        """The cache has all of the video now."""
        assert self.read is not None and self.visual is not None
        self.read.visual_tokens = self.visual.filled

    def _begin(self) -> Events:
        """Make the cache."""
        run_config = self._plan.run_config
        with self._stages.phase("prefill"):
            cache = self._row or make_cache(
                self._model.spec, self._plan.kv_capacity_tokens, self._model.dtype, self._model.device,
                quantized=run_config.kv == "int8", on_host=run_config.placement.kv_on_host,
            )  # fmt: skip
        self.read = CachedPrompt(cache, self._head)
        yield StageStarted("prefill", self._total)

    def _see(self, reader: VideoReader, *, streaming: bool) -> Events:
        """Decode, resize and encode all frames, and read each group where it streams."""
        run_config, total = self._plan.run_config, len(self._plan.indices)
        self._model.visual.to(self._model.device)
        self.visual = VisionEmbeddings.reserve(
            self._plan.visual_tokens, self._model.spec.hidden, self._model.dtype, self._model.device
        )
        encoder = GroupEncoder(self._model, run_config.vision_chunk)
        room = GROUPS_AHEAD * run_config.vision_chunk * self._model.spec.vision.temporal_patch
        ahead = FramePrefetcher(
            reader, self._plan.indices, (run_config.height, run_config.width), min(room, total), self._stop_in_video,
            self._stages.tracker.count,
        )  # fmt: skip
        pictures = Timed(ahead)
        try:
            yield StageStarted("video", total)
            yield StageStarted("vision", total)
            if streaming:
                yield from self._read_head()
            for seen, picture in enumerate(pictures, start=1):
                self._stop_in_video()
                yield StageProgress("video", seen, total)
                if encoder.push(picture):
                    yield from self._encode(encoder, seen, streaming)
            yield from self._encode(encoder, total, streaming)
        finally:
            ahead.close()
        self.video_seconds = pictures.seconds
        reader.check_coverage(self._plan.indices)
        self.visual.complete = True
        for note in reader.notes:
            yield Noted(note)

    def _stop_in_video(self) -> None:
        self._stages.stop_if_cancelled("while the video was read")

    def _encode(self, encoder: GroupEncoder, seen: int, streaming: bool) -> Events:
        """Encode a group, keep it on the host, and read it."""
        assert self.visual is not None
        with self._stages.phase("vision"):
            group = encoder.encode()
        if group is None:
            return
        first = self.visual.slices
        self.visual.add(group)
        yield StageProgress("vision", seen, len(self._plan.indices))
        self._stop_in_video()
        if streaming:
            positions = video_positions(len(self._head), group.slices, *self._grid(), first)
            yield from self._push(group.embeddings, positions)

    def _read_waiting(self) -> Events:
        """Read the embeddings that wait on the host, and the ids before them."""
        assert self.visual is not None
        yield from self._read_head()
        positions = video_positions(len(self._head), self.visual.slices, *self._grid())
        for rows in self.visual.chunks(self._plan.run_config.prefill_chunk):
            yield from self._push(rows.to(self._model.device, non_blocking=True), positions[:, : len(rows)])
            positions = positions[:, len(rows) :]

    def _read_head(self) -> Events:
        """Read the ids before the video."""
        yield from self._text(self._head, 0)
        if self._row is None:  # alone there is nothing to share the chunk with; frames, or whole chunks, come next
            yield from self._told(self._prefill.flush(self._cache))

    def _text(self, ids: Sequence[int], position: int) -> Events:
        chunk = self._plan.run_config.prefill_chunk  # a long text's embeddings would outgrow what is planned for one
        for start in range(0, len(ids), chunk):
            some = torch.tensor(ids[start : start + chunk])
            yield from self._push(self._model.embed(some), text_positions(position + start, len(some)))

    def _push(self, embeddings: Tensor, positions: Tensor) -> Events:
        yield from self._told(self._prefill.push(self._cache, embeddings, positions))

    def _told(self, chunks: Generator[int, None, None]) -> Events:
        """Run chunks one by one, telling of each."""
        while True:
            with self._stages.phase("prefill"):
                done = next(chunks, None)
            if done is None:
                return
            yield StageProgress("prefill", done, self._total)
            self._stages.stop_if_cancelled("while the prompt was read")

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a slice."""
        factor = self._model.spec.pixel_factor
        return self._plan.run_config.height // factor, self._plan.run_config.width // factor
