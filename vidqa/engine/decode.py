"""The decode loop: one token after the other until a stop token or the limit."""

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
    runner: DecodeRunner, logits: Tensor, stop_ids: frozenset[int], max_tokens: int
) -> Generator[int, None, FinishReason]:
    """Yield token ids, the first one from the prefill's `logits` (1, vocabulary); return why the answer ended.

    Raises NotFinite if logits are not finite: a token chosen from them would mean nothing.
    """
    for _, token in decode_batch(runner, logits, stop_ids, [max_tokens]):
        if isinstance(token, str):
            return token
        yield token
    raise AssertionError("every sequence ends")


@no_grad_generator
def decode_batch(
    runner: DecodeRunner, logits: Tensor, stop_ids: frozenset[int], max_tokens: Sequence[int]
) -> Generator[tuple[int, int | FinishReason], None, None]:
    """Yield (sequence, token id), and at its end (sequence, finish reason), after the prefill's `logits` (B, vocab).

    A pipelined runner has its next step queued before a token is read, so the device never waits for the host; but the
    first token comes before anything is captured. Sequences with a limit of 0 are skipped. Raises NotFinite.
    """
    left = {sequence: limit for sequence, limit in enumerate(max_tokens) if limit}
    tokens, queued = runner.first(logits), False
    while left:
        read = _start_copy(tokens)
        if queued:
            tokens = runner.next(tokens)
        ids = read()
        for sequence in list(left):
            reason = _finish_reason(runner, ids[sequence], stop_ids)
            if reason is None:
                left[sequence] -= 1
                yield sequence, ids[sequence]
                reason = "length" if not left[sequence] else None
            if reason is not None:
                runner.finish(sequence, rollback=queued and reason == "stop")
                del left[sequence]
                yield sequence, reason
        if left and not queued:
            tokens = runner.next(tokens)
        queued = runner.pipelined and max(left.values(), default=0) > 1


def _finish_reason(runner: DecodeRunner, token: int, stop_ids: frozenset[int]) -> FinishReason | None:
    if token == NOT_A_NUMBER:
        raise NotFinite(
            f"The model's scores are not finite in {runner.dtype}: its numbers overflowed, or its weights are damaged.",
            "Use --weights bf16 or fp32 where the device has them, or fetch the model again with `vidqa pull`.",
        )
    return "stop" if token in stop_ids else None


def _start_copy(tokens: Tensor) -> Callable[[], list[int]]:
    """Start a copy to the host; the returned function waits for it, not for work that is queued later."""
    if not tokens.is_cuda:
        ids: list[int] = tokens.tolist()
        return lambda: ids
    copied = page_locked(tuple(tokens.shape), tokens.dtype, tokens.device)
    copied.copy_(tokens, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tokens.device))  # the copy's, whichever device is the current one

    def wait() -> list[int]:
        event.synchronize()
        read: list[int] = copied.tolist()
        return read

    return wait
