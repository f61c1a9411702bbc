"""What stays of a video after its question, so that the next one starts at once.

The vision embeddings wait on the host; the KV cache stays where it is, together with the
token ids that it holds. The next prompt goes on where it first differs from them, whatever
it is: a follow-up, another question, the same one again. Knows ids; knows no text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidqa.devices.torch_device import page_locked
from vidqa.engine.kv_cache import KVCache

if TYPE_CHECKING:
    from vidqa.engine.vision import EncodedGroup


@dataclass(slots=True)
class VisionEmbeddings:
    """Embeddings (tokens, hidden) of a video's slices on the host, filled as they come, and their frames' times."""

    rows: Tensor
    slices: int = 0
    times: list[float] = field(default_factory=list)
    filled: int = 0
    complete: bool = False

    @classmethod
    def reserve(cls, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> "VisionEmbeddings":
        """Room for so many tokens; page-locked where a device copies into it without waiting."""
        return cls(page_locked((tokens, hidden), dtype, device))

    def add(self, group: "EncodedGroup") -> None:
        """Copy a group's embeddings to the host."""
        end = self.filled + len(group.embeddings)
        self.rows[self.filled : end].copy_(group.embeddings, non_blocking=True)
        self.filled, self.slices = end, self.slices + group.slices
        self.times += group.timestamps_seconds

    def chunks(self, tokens: int) -> Iterator[Tensor]:
        """The embeddings, so many tokens at a time, on the host."""
        yield from torch.split(self.rows[: self.filled], tokens)


@dataclass(slots=True)
class CachedPrompt:
    """A KV cache and the ids that it holds: `head`, the video, and `tail` behind it.

    `visual_tokens` is None until all of the video was read.
    """

    cache: KVCache
    head: tuple[int, ...]
    visual_tokens: int | None = None
    tail: tuple[int, ...] = ()

    def shared(self, head: Sequence[int], tail: Sequence[int]) -> int | None:
        """How many ids of `tail` are there already; None where the video is not, or not behind this head.

        At least one is left over: the answer needs the last one's logits.
        """
        if self.visual_tokens is None or self.head != tuple(head):
            return None
        pairs = zip(tail[:-1], self.tail, strict=False)
        return next(
            (place for place, (one, other) in enumerate(pairs) if one != other), min(len(tail) - 1, len(self.tail))
        )

    def cut(self, same: int) -> None:
        """Forget all but the head, the video and `same` ids behind it."""
        assert self.visual_tokens is not None
        self.cache.truncate(len(self.head) + self.visual_tokens + same)
        self.tail = self.tail[:same]

    def note(self, tail: Sequence[int]) -> None:
        """Remember which ids behind the video are cached: as many as the cache is long."""
        if self.visual_tokens is not None:
            self.tail = tuple(tail[: max(self.cache.length - len(self.head) - self.visual_tokens, 0)])
