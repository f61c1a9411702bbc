"""What is kept of a video after its question, so that the next one starts at once.

Vision embeddings are kept on the host. The KV cache stays where it is, with the prompt that it holds: the next prompt
goes on behind the longest common prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidqa.devices.torch_device import page_locked
from vidqa.engine.kv_cache import KVCache
from vidqa.models.family import Segment


@dataclass(slots=True)
class VisionEmbeddings:
    """Embeddings (tokens, width) of a video's slices on the host, filled as they come, and their frames' times."""

    rows: Tensor
    slices: int = 0
    times: list[float] = field(default_factory=list)
    filled: int = 0
    complete: bool = False

    @classmethod
    def reserve(cls, tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> "VisionEmbeddings":
        """Make room for so many tokens; page-locked where a device copies into it without waiting."""
        return cls(page_locked((tokens, width), dtype, device))

    def add(self, embeddings: Tensor, slices: int, times: Sequence[float]) -> None:
        """Copy a group's embeddings (tokens, width) to the host."""
        end = self.filled + len(embeddings)
        self.rows[self.filled : end].copy_(embeddings, non_blocking=True)
        self.filled, self.slices = end, self.slices + slices
        self.times += times

    def chunks(self, first_slice: int, slices: int, tokens: int) -> Iterator[Tensor]:
        """Yield the embeddings of so many slices, `tokens` at a time, on the host."""
        each = self.filled // self.slices
        yield from torch.split(self.rows[first_slice * each : (first_slice + slices) * each], tokens)


@dataclass(slots=True)
class CachedPrompt:
    """A KV cache and the prompt that it holds: segments through the video, and `tail`, the ids behind it.

    `prefix_tokens` and `position`, of the first id of `tail`, are set once all of the video is in the cache.
    """

    cache: KVCache
    prefix: tuple[Segment, ...]
    prefix_tokens: int | None = None
    position: int = 0
    tail: tuple[int, ...] = ()

    def shared(self, prefix: tuple[Segment, ...], tail: Sequence[int]) -> int | None:
        """Return how many ids of `tail` are cached; None where the video is not, or not behind the same prefix.

        At least one is left over: the answer needs the last one's logits.
        """
        if self.prefix_tokens is None or self.prefix != prefix:
            return None
        pairs = zip(tail[:-1], self.tail, strict=False)
        return next(
            (place for place, (one, other) in enumerate(pairs) if one != other), min(len(tail) - 1, len(self.tail))
        )

    def cut(self, same: int) -> None:
        """Drop all but the prefix and `same` ids behind it."""
        assert self.prefix_tokens is not None
        self.cache.truncate(self.prefix_tokens + same)
        self.tail = self.tail[:same]

    def note(self, tail: Sequence[int]) -> None:
        """Remember which ids behind the video are cached: as many as the cache is long."""
        if self.prefix_tokens is not None:
            self.tail = tuple(tail[: max(self.cache.length - self.prefix_tokens, 0)])
