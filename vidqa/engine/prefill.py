"""Embeddings to a filled KV cache, a chunk of tokens at a time.

Only the last token's hidden state leaves this stage. Knows chunks; knows no text.
"""

from collections.abc import Generator

from torch import Tensor

from vidqa.engine.kv_cache import KVCache
from vidqa.engine.scope import without_grad
from vidqa.models.attention import Kernel
from vidqa.models.qwen2_vl import Qwen2VL


@without_grad
def prefill(
    model: Qwen2VL, embeddings: Tensor, positions: Tensor, cache: KVCache, kernel: Kernel, chunk: int
) -> Generator[int, None, Tensor]:
    """Run (n, hidden) embeddings at (3, n) positions through the model in chunks.

    Yields the number of tokens done after each chunk; returns the logits (vocabulary,) of
    the last token.
    """
    total = embeddings.shape[0]
    for start in range(0, total, chunk):
        end = min(start + chunk, total)
        hidden = model.run(embeddings[start:end], positions[:, start:end], cache, kernel)
        yield end
    return model.score(hidden)
