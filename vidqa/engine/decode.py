"""Logits to text: one token at a time until a stop token or the limit.

Knows tokens and characters; knows nothing of videos.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from vidqa.devices.torch_device import page_locked
from vidqa.engine.decode_runners import DecodeRunner
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.sampler import NOT_A_NUMBER
from vidqa.errors import NotFinite
from vidqa.types import FinishReason


@no_grad_generator
def decode(
    writer: DecodeRunner, logits: Tensor, stop_ids: frozenset[int], max_tokens: int
) -> Generator[int, None, FinishReason]:
    """Yield token ids, the first one from the prefill's `logits` (1, vocabulary); returns why it ended.

    Raises NotFinite where the logits are not finite: a token chosen from them would mean nothing.
    """
    running = decode_together(writer, logits, stop_ids, [max_tokens])
    for _, token in running:
        if isinstance(token, str):
            return token
        yield token
    raise AssertionError("every sequence ends")


@no_grad_generator
def decode_together(
    writer: DecodeRunner, logits: Tensor, stop_ids: frozenset[int], max_tokens: Sequence[int]
) -> Generator[tuple[int, int | FinishReason], None, None]:
    """Yield (sequence, token id), and at its end (sequence, why); the first tokens come from `logits` (B, vocabulary).

    A writer that works ahead has its next step queued before a token is read, so the device never
    waits for the host; but the first token comes before anything is captured. A sequence with a
    limit of 0 is passed over.
    """
    left = {sequence: limit for sequence, limit in enumerate(max_tokens) if limit}
    tokens, ahead = writer.first(logits), False
    while left:
        reading = _begin_reading(tokens)
        if ahead:
            tokens = writer.next(tokens)
        numbers = reading()
        for sequence in list(left):
            reason = _ending(writer, numbers[sequence], stop_ids)
            if reason is None:
                left[sequence] -= 1
                yield sequence, numbers[sequence]
                reason = "length" if not left[sequence] else None
            if reason is not None:
                writer.end(sequence, take_back=ahead and reason == "stop")
                del left[sequence]
                yield sequence, reason
        if left and not ahead:
            tokens = writer.next(tokens)
        ahead = writer.ahead and max(left.values(), default=0) > 1


def _ending(writer: DecodeRunner, number: int, stop_ids: frozenset[int]) -> FinishReason | None:
    """`stop` for a token that ends the answer; raises NotFinite for none at all."""
    if number == NOT_A_NUMBER:
        raise NotFinite(
            f"The model's scores are not finite in {writer.dtype}: its numbers overflowed, or its weights are damaged.",
            "Use --weights bf16 or fp32 where the device has them, or fetch the model again with `vidqa pull`.",
        )
    return "stop" if number in stop_ids else None


def _begin_reading(tokens: Tensor) -> Callable[[], list[int]]:
    """Start a copy to the host; the result waits for it, and not for what is queued behind it."""
    if not tokens.is_cuda:
        numbers: list[int] = tokens.tolist()
        return lambda: numbers
    copied = page_locked(tuple(tokens.shape), tokens.dtype, tokens.device)
    copied.copy_(tokens, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tokens.device))  # the copy's, whichever device is the current one

    def wait() -> list[int]:
        event.synchronize()
        read: list[int] = copied.tolist()
        return read

    return wait


class Detokenizer:
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
