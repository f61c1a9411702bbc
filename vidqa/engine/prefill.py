"""Embeddings to a filled KV cache, a chunk of tokens at a time.

Only the last token's hidden state leaves this stage. Knows chunks; knows no text.
"""

from collections.abc import Generator
from typing import Protocol

from torch import Tensor

from vidqa.engine.kv_cache import KVCache
from vidqa.engine.scope import without_grad
from vidqa.models.attention import Kernel
from vidqa.models.qwen2_vl import Qwen2VL


class Rows(Protocol):
    """Embeddings of a prompt, fetched a slice of rows at a time: (n, hidden) on the device."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@without_grad
def prefill(
    model: Qwen2VL, embeddings: Rows, positions: Tensor, cache: KVCache, kernel: Kernel, chunk: int
) -> Generator[int, None, Tensor]:
    """Run embeddings at (3, n) positions through the model, `chunk` tokens at a time.

    Yields the number of tokens done after each chunk; returns the logits (vocabulary,) of
    the last token.
    """
    total = positions.shape[1]
    for start in range(0, total, chunk):
        end = min(start + chunk, total)
        hidden = model.run(embeddings[start:end], positions[:, start:end], cache, kernel)
        yield end
    return model.score(hidden)
