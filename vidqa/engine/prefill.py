"""Embeddings to filled KV caches, a chunk of tokens at a time, as they come.

Only the last token's hidden state leaves this stage. Knows chunks; knows no text and no video.
"""

from collections import deque
from collections.abc import Generator

import torch
from torch import Tensor

from vidqa.engine.no_grad import no_grad_generator, no_grad_scope
from vidqa.models.attention.selector import Kernel
from vidqa.models.vlm import SequenceChunk, TokenCache, VisionLanguageModel


class Prefill:
    """Takes rows in the order of their prompts and runs them through the model in chunks of one size.

    Rows of several sequences share a chunk: each attends to its own cache alone.
    """

    def __init__(self, model: VisionLanguageModel, kernel: Kernel, chunk: int) -> None:
        self._model, self._kernel, self._chunk = model, kernel, chunk
        self._waiting: deque[SequenceChunk] = deque()
        self._last: dict[TokenCache, Tensor] = {}

    @no_grad_generator
    def push(self, cache: TokenCache, embeddings: Tensor, positions: Tensor) -> Generator[int, None, None]:
        """Add rows (n, hidden) on the device at M-RoPE positions (3, n); yields `cache`'s tokens after each chunk."""
        self._waiting.append(SequenceChunk(embeddings, positions, cache))
        del embeddings
        while self._rows() >= self._chunk:
            self._run(self._chunk)
            yield cache.length

    @no_grad_generator
    def flush(self, cache: TokenCache) -> Generator[int, None, None]:
        """Run what waits for the rest of its chunk."""
        if rows := self._rows():
            self._run(rows)
            yield cache.length

    def forget(self, cache: TokenCache) -> None:
        """Drop the rows of a sequence that goes on no more."""
        self._waiting = deque(part for part in self._waiting if part.cache is not cache)

    @no_grad_scope()
    def logits(self, *caches: TokenCache) -> Tensor:
        """Scores (caches, vocabulary) of the tokens after the last rows; everything was flushed."""
        assert not self._waiting
        return self._model.score(torch.stack([self._last.pop(cache) for cache in caches]))

    def _rows(self) -> int:
        return sum(len(part.rows) for part in self._waiting)

    def _run(self, rows: int) -> None:
        parts = self._take(rows)
        for part, last in zip(parts, self._model.run(parts, self._kernel), strict=True):
            self._last[part.cache] = last.clone()  # a view would keep all parts'

    def _take(self, rows: int) -> list[SequenceChunk]:
        """The first rows that wait, one part for each sequence."""
        taken: list[SequenceChunk] = []
        while rows:
            part = self._waiting.popleft()
            mine = SequenceChunk(part.rows[:rows], part.positions[:, :rows], part.cache)
            if len(part.rows) > rows:
                self._waiting.appendleft(SequenceChunk(part.rows[rows:], part.positions[:, rows:], part.cache))
            rows -= len(mine.rows)
            if taken and taken[-1].cache is mine.cache:
                mine = _behind(taken.pop(), mine)
            taken.append(mine)
        return taken


def _behind(first: SequenceChunk, second: SequenceChunk) -> SequenceChunk:
    """Two pieces of one sequence as one."""
    rows = torch.cat((first.rows, second.rows))
    return SequenceChunk(rows, torch.cat((first.positions, second.positions), dim=1), first.cache)
