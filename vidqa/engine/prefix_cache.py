"""The caches of a video that the next question reuses: vision embeddings on the host, and the KV cache with its prompt.

The next prompt is prefilled from the end of the longest common prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidqa.devices.torch_device import page_locked, register
from vidqa.engine.kv_cache import KVCache
from vidqa.models.family import Segment
from vidqa.models.vlm import VisionLanguageModel
from vidqa.types import Plan


def common_length(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return how many ids are equal before the first that differs."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(ids), len(others)))


@dataclass(slots=True)
class VisionEmbeddings:
    """Embeddings (tokens, width) of a video's slices on the host, and the times of their frames in seconds.

    `kept` has the places of each slice's kept tokens (kept,), if some were dropped; it is empty if all are there.
    If a question selected slices, `places` are their places in `rows`, which has those of all candidates.
    `out_of_domain` is whether the pictures are unlike those that the model knows; None for a model of real videos.
    """

    rows: Tensor
    slices: int = 0
    times: list[float] = field(default_factory=list)
    filled: int = 0
    complete: bool = False
    kept: list[Tensor] = field(default_factory=list)
    places: tuple[int, ...] = ()
    out_of_domain: bool | None = None

    @classmethod
    def park(cls, tokens: int, model: VisionLanguageModel) -> "VisionEmbeddings":
        """Allocate rows for `tokens` of many candidates: page-locked in place, where `reserve` rounds the size up."""
        rows = torch.empty((tokens, model.spec.embedding_width), dtype=model.dtype)
        register(rows, model.device)
        return cls(rows)

    @classmethod
    def reserve(cls, tokens: int, model: VisionLanguageModel) -> "VisionEmbeddings":
        """Allocate rows for `tokens`; page-locked for a CUDA device, so that copies do not wait."""
        return cls(page_locked((tokens, model.spec.embedding_width), model.dtype, model.device))

    def add(self, embeddings: Tensor, slices: int, times: Sequence[float], kept: Sequence[Tensor] = ()) -> None:
        """Copy a group's embeddings (tokens, width) to the host; `kept` are the places of the kept ones by slice."""
        end = self.filled + len(embeddings)
        self.rows[self.filled : end].copy_(embeddings, non_blocking=True)
        self.filled, self.slices = end, self.slices + slices
        self.times += times
        self.kept += kept

    def chunks(self, first_slice: int, slices: int, tokens: int) -> Iterator[Tensor]:
        """Yield the embeddings of some slices on the host, at most `tokens` at a time."""
        if self.places:  # of candidates, no token is dropped
            each = self.filled // self.slices
            for place in self.places[first_slice : first_slice + slices]:
                yield from torch.split(self.rows[place * each : (place + 1) * each], tokens)
            return
        start, end = self._first_row(first_slice), self._first_row(first_slice + slices)
        yield from torch.split(self.rows[start:end], tokens)

    def kept_positions(self, first_slice: int, slices: int, positions: Tensor) -> Tensor:
        """Return the positions (3, kept) of some slices' tokens, from those of their whole grid."""
        if not self.kept:
            return positions
        each, kept = positions.shape[1] // slices, self.kept[first_slice : first_slice + slices]
        return positions[:, torch.cat([places + number * each for number, places in enumerate(kept)])]

    def _first_row(self, slice_index: int) -> int:
        if self.kept:
            return sum(map(len, self.kept[:slice_index]))
        return slice_index * (self.filled // self.slices)

    def select(self, places: Sequence[int], frames_per_slice: int) -> "VisionEmbeddings":
        """Return the embeddings of some slices, in the same memory."""
        times = [time for place in places for time in self.times[place * frames_per_slice :][:frames_per_slice]]
        filled = self.filled // self.slices * len(places)
        return VisionEmbeddings(
            self.rows, len(places), times, filled, complete=True, places=tuple(places), out_of_domain=self.out_of_domain
        )

    def plan_that_ran(self, plan: Plan) -> Plan:
        """Return the plan with the frames that were really read: a damaged video gives fewer."""
        return replace(
            plan,
            run_config=replace(plan.run_config, frames=len(self.times)),
            timestamps_seconds=tuple(self.times),
            visual_tokens=self.filled,
            prompt_tokens=plan.prompt_tokens - plan.visual_tokens + self.filled,
            video_tokens=self.slices * len(self.kept[0]) if self.kept else self.filled,  # the first slice is whole
            kept_tokens=tuple(map(len, self.kept)),
        )


@dataclass(slots=True)
class CachedPrompt:
    """A KV cache and the prompt in it: segments through the video, and `tail`, the ids after it.

    `prefix_tokens` and `position`, of the first id of `tail`, are set once all of the video is in the cache.
    `frame_places` are those of its plan.
    """

    cache: KVCache
    prefix: tuple[Segment, ...]
    prefix_tokens: int | None = None
    position: int = 0
    tail: tuple[int, ...] = ()
    frame_places: tuple[int, ...] = ()

    def common_tokens(self, prefix: tuple[Segment, ...], tail: Sequence[int]) -> int | None:
        """Return how many ids of `tail` are cached, except the last; None if the prefix or the video is not cached."""
        if self.prefix_tokens is None or self.prefix != prefix:
            return None
        return common_length(tail[:-1], self.tail)  # the last id has to run: its logits are needed

    def truncate(self, tokens: int) -> None:
        """Drop all but the prefix and `tokens` ids after it."""
        assert self.prefix_tokens is not None
        self.cache.truncate(self.prefix_tokens + tokens)
        self.tail = self.tail[:tokens]

    def set_tail(self, tail: Sequence[int]) -> None:
        """Record the ids after the video: those that the cache's length includes.

        After a stop, part of the prefix may have been left in the prefill's buffer: then none of it counts as cached.
        """
        if self.prefix_tokens is not None and self.cache.length < self.prefix_tokens:
            self.prefix_tokens = None
        if self.prefix_tokens is not None:
            self.tail = tuple(tail[: max(self.cache.length - self.prefix_tokens, 0)])
