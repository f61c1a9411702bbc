"""Chunked prefill: runs embeddings through the language model into KV caches, a chunk of tokens at a time."""

from collections import deque
from collections.abc import Generator

import torch
from torch import Tensor

from vidqa.engine.no_grad import no_grad_generator, no_grad_scope
from vidqa.models.attention.selector import Kernel
from vidqa.models.vlm import SequenceChunk, TokenCache, VisionLanguageModel


class Prefill:
    """Collects rows in the order of their prompts and runs them in chunks of one size.

    Rows of several sequences share a chunk: each attends to its own cache alone. Only the last hidden state of each
    sequence is retained.
    """

    def __init__(self, model: VisionLanguageModel, kernel: Kernel, chunk: int) -> None:
        self._model, self._kernel, self._chunk = model, kernel, chunk
        self._waiting: deque[SequenceChunk] = deque()
        self._last_hidden: dict[TokenCache, Tensor] = {}

    @no_grad_generator
    def push(self, cache: TokenCache, embeddings: Tensor, positions: Tensor) -> Generator[int, None, None]:
        """Add rows (n, hidden) on the device at M-RoPE positions (3, n); yield `cache`'s length after each chunk."""
        self._waiting.append(SequenceChunk(embeddings, positions, cache))
        del embeddings
        while self._waiting_rows() >= self._chunk:
            self._run(self._chunk)
            yield cache.length

    @no_grad_generator
    def flush(self, cache: TokenCache) -> Generator[int, None, None]:
        """Run the rows that do not fill a chunk."""
        if rows := self._waiting_rows():
            self._run(rows)
            yield cache.length

    def drop(self, cache: TokenCache) -> None:
        """Drop the waiting rows of a sequence."""
        self._waiting = deque(part for part in self._waiting if part.cache is not cache)

    @no_grad_scope()
    def logits(self, *caches: TokenCache) -> Tensor:
        """Return logits (caches, vocabulary) of the tokens that follow; call `flush` before."""
        assert not self._waiting
        return self._model.score(torch.stack([self._last_hidden.pop(cache) for cache in caches]))

    def _waiting_rows(self) -> int:
        return sum(len(part.rows) for part in self._waiting)

    def _run(self, rows: int) -> None:
        parts = self._take(rows)
        for part, last in zip(parts, self._model.run(parts, self._kernel), strict=True):
            self._last_hidden[part.cache] = last.clone()  # a view would keep all parts'

    def _take(self, rows: int) -> list[SequenceChunk]:
        """Remove the first `rows` that wait; return one part for each sequence."""
        taken: list[SequenceChunk] = []
        while rows:
            part = self._waiting.popleft()
            if len(part.rows) > rows:
                self._waiting.appendleft(SequenceChunk(part.rows[rows:], part.positions[:, rows:], part.cache))
                part = SequenceChunk(part.rows[:rows], part.positions[:, :rows], part.cache)
            rows -= len(part.rows)
            if taken and taken[-1].cache is part.cache:
                before = taken.pop()
                positions = torch.cat((before.positions, part.positions), dim=1)
                part = SequenceChunk(torch.cat((before.rows, part.rows)), positions, part.cache)
            taken.append(part)
        return taken
