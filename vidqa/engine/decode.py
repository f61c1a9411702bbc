"""Logits to text: one token at a time until a stop token or the limit.

Knows tokens and characters; knows nothing of videos.
"""

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from vidqa.engine.sampler import NOT_A_NUMBER
from vidqa.engine.scope import without_grad
from vidqa.engine.writers import Writer
from vidqa.errors import ModelError
from vidqa.types import FinishReason


@without_grad
def decode(
    writer: Writer, logits: Tensor, stop_ids: frozenset[int], max_tokens: int
) -> Generator[int, None, FinishReason]:
    """Yield token ids, the first one from the prefill's `logits` (vocabulary,); returns why it ended.

    A writer that works ahead has its next step queued before a token is read, so the device never
    waits for the host. Raises ModelError where the logits are not finite: a token chosen from them
    would mean nothing.
    """
    token = writer.first(logits)
    for left in reversed(range(max_tokens)):
        reading = _begin_reading(token)
        ahead = writer.ahead and left > 0
        if ahead:
            token = writer.next(token)
        number = reading()
        if number == NOT_A_NUMBER:
            raise _overflow(writer)
        if number in stop_ids:
            if ahead:
                writer.take_back()
            return "stop"
        yield number
        if left and not ahead:
            token = writer.next(token)
    return "length"


def _begin_reading(token: Tensor) -> Callable[[], int]:
    """Start a copy to the host; the result waits for it, and not for what is queued behind it."""
    if not token.is_cuda:
        return lambda: int(token)
    import torch

    copied = torch.empty(token.shape, dtype=token.dtype, pin_memory=True)
    copied.copy_(token, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> int:
        event.synchronize()
        return int(copied)

    return wait


def _overflow(writer: Writer) -> ModelError:
    return ModelError(
        f"The model's scores are not finite in {writer.dtype}: its numbers overflowed, or its weights are damaged.",
        "Use --weights bf16 or fp32 where the device has them, or fetch the model again with `vidqa pull`.",
    )


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
