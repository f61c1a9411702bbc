"""Logits to text: one token at a time until a stop token or the limit.

Knows tokens and characters; knows nothing of videos.
"""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from vidqa.engine.kv_cache import KVCache
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.scope import without_grad
from vidqa.models.attention import Kernel
from vidqa.models.qwen2_vl import Qwen2VL
from vidqa.types import FinishReason


@without_grad
def decode(
    model: Qwen2VL,
    logits: Tensor,
    position: int,
    cache: KVCache,
    kernel: Kernel,
    sampler: Sampler,
    stop_ids: frozenset[int],
    max_tokens: int,
) -> Generator[int, None, FinishReason]:
    """Yield token ids, the first one from the prefill's `logits`; returns why it ended.

    `position` is the M-RoPE position of the first new token.
    """
    for count in range(max_tokens):
        token = sampler.choose(logits)
        if token in stop_ids:
            return "stop"
        yield token
        if count + 1 < max_tokens:
            embedded = model.embed(torch.tensor([token]))
            logits = model.score(model.run(embedded, text_positions(position + count, 1), cache, kernel))
    return "length"


class TextStream:
    """Turns token ids into whole characters: never half of a UTF-8 sequence."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._before = ""  # text of the ids that stay only as context for the next ones
        self._context = 0

    def push(self, token: int) -> str:
        """Take one id; returns the text that is now certain (often empty or a word)."""
        self._pending.append(token)
        text = self._decode()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""  # perhaps half of a character: wait for the rest
        return self._emit(text)

    def flush(self) -> str:
        """What is left at the end; a character that was never finished shows as U+FFFD."""
        return self._emit(self._decode())

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._pending, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _emit(self, text: str) -> str:
        fresh = text[len(self._before) :]
        # Keep the last emitted ids as context: some decoders join words by what came before.
        self._pending = self._pending[self._context :]
        self._context = len(self._pending)
        self._before = self._decode()
        return fresh
