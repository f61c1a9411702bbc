"""Embeddings to a filled KV cache, a chunk of tokens at a time, as they come.

Only the last token's hidden state leaves this stage. Knows chunks; knows no text and no video.
"""

from collections import deque
from collections.abc import Generator

import torch
from torch import Tensor

from vidqa.engine.kv_cache import KVCache
from vidqa.engine.scope import unrecorded, without_grad
from vidqa.models.attention import Kernel
from vidqa.models.qwen2_vl import Qwen2VL


class Prefill:
    """Takes rows in the order of the prompt and runs them through the model in chunks of one size."""

    def __init__(self, model: Qwen2VL, cache: KVCache, kernel: Kernel, chunk: int) -> None:
        self._model, self._cache, self._kernel, self._chunk = model, cache, kernel, chunk
        self._waiting: deque[tuple[Tensor, Tensor]] = deque()
        self._last: Tensor | None = None

    @without_grad
    def push(self, embeddings: Tensor, positions: Tensor) -> Generator[int, None, None]:
        """Add rows (n, hidden) on the device at M-RoPE positions (3, n); yields the cached tokens after each chunk."""
        self._waiting.append((embeddings, positions))
        del embeddings
        while self._rows() >= self._chunk:
            yield self._run(self._chunk)

    @without_grad
    def flush(self) -> Generator[int, None, None]:
        """Run what waits for the rest of its chunk."""
        if rows := self._rows():
            yield self._run(rows)

    @unrecorded()
    def logits(self) -> Tensor:
        """Scores (vocabulary,) of the token after the last row; everything was flushed."""
        assert self._last is not None and not self._waiting
        return self._model.score(self._last)

    def _rows(self) -> int:
        return sum(len(embeddings) for embeddings, _ in self._waiting)

    def _run(self, rows: int) -> int:
        self._last = self._model.run(*self._take(rows), self._cache, self._kernel)
        return self._cache.length

    def _take(self, rows: int) -> tuple[Tensor, Tensor]:
        """The first rows that wait, with their positions."""
        parts, places = [], []
        while rows:
            embeddings, positions = self._waiting.popleft()
            parts.append(embeddings[:rows])
            places.append(positions[:, :rows])
            if len(embeddings) > rows:
                self._waiting.appendleft((embeddings[rows:], positions[:, rows:]))
            rows -= len(parts[-1])
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), torch.cat(places, dim=1)
