"""Decode runners and caches for sections that time or compare decode steps."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vidqa.engine.decode import decode, decode_batch
from vidqa.engine.decode_runners import CudaGraphDecoder, DecodeRunner, EagerDecoder, capture_on
from vidqa.engine.kv_cache import KVCache, Storage
from vidqa.engine.sampler import Sampler
from vidqa.models.attention.selector import HeadLayout, Kernel, make_kernel, select_kernel
from vidqa.models.loader import Loaded


class Recorder(Sampler):
    """A greedy sampler that stores its logits (B, vocabulary). A captured step refills them with each replay."""

    def __init__(self, loaded: Loaded, sequences: int) -> None:
        super().__init__(0, 1, 0)
        self.logits = torch.zeros(sequences, loaded.model.spec.vocabulary, device=loaded.model.device)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        self.logits.copy_(logits)
        return super().choose(logits, uniform)


def make_step(
    kind: str, loaded: Loaded, caches: Sequence[KVCache], positions: Sequence[int], sampler: Sampler | None = None
) -> DecodeRunner:
    """Return the `captured` step for all sequences, or `plain`: that with plain layers. On a CPU it is not captured.

    Otherwise return the eager step of one sequence, with the engine's kernel (`eager`) or with the kernel `kind`.
    """
    model, greedy = loaded.model, sampler or Sampler(0, 1, 0)
    if kind == "plain":
        model = replace(model, fused=None)
    elif kind != "captured":
        kernel = kernel_of(loaded, None if kind == "eager" else kind)
        return EagerDecoder(model, caches[0], kernel, positions[0], greedy)
    return CudaGraphDecoder(model, caches, positions, [greedy] * len(caches), capture_on(model.device))


def kernel_of(loaded: Loaded, name: str | None = None) -> Kernel:
    """Return an attention kernel by name, or the one that the engine selects."""
    model = loaded.model
    return make_kernel(
        name or select_kernel(HeadLayout.of(model.spec), str(model.device), model.dtype)[-1].name, model.device
    )


def random_caches(loaded: Loaded, lengths: Sequence[int], room: int) -> list[KVCache]:
    """Return caches of several sequences with random keys and values, the same for every kind of step."""
    model = loaded.model
    tokens = max(lengths) + room
    storage = Storage.allocate(model.spec, tokens, model.dtype, model.device, sequences=len(lengths))
    torch.manual_seed(0)
    storage.store.normal_()
    return filled(storage, lengths)


def filled(storage: Storage, lengths: Sequence[int]) -> list[KVCache]:
    """Return a cache for each sequence of a storage that holds so many tokens already."""
    caches = [KVCache(storage, sequence) for sequence in range(len(lengths))]
    for cache, length in zip(caches, lengths, strict=True):
        cache.length = length
    return caches


@torch.no_grad()
def first_logits(loaded: Loaded) -> Tensor:
    """Return logits (1, vocabulary) to begin with."""
    model = loaded.model
    return model.score(torch.ones(1, model.spec.hidden, device=model.device, dtype=model.dtype))


def greedy_tokens(runner: DecodeRunner, loaded: Loaded, count: int) -> Iterator[int]:
    """Yield tokens of one sequence as the engine decodes them."""
    yield from decode(runner, first_logits(loaded), frozenset(), count)


def greedy_steps(runner: DecodeRunner, loaded: Loaded, sequences: int, count: int) -> Iterator[None]:
    """Yield once per step of several sequences."""
    logits = first_logits(loaded).expand(sequences, -1)
    for sequence, token in decode_batch(runner, logits, frozenset(), [count] * sequences):
        if sequence == 0 and not isinstance(token, str):
            yield


@torch.no_grad()
def logits_after(runner: DecodeRunner, recorder: Recorder, tokens: Tensor) -> Tensor:
    """Return logits (steps, B, vocabulary) after given tokens (steps, B), not after sampled ones."""
    made = []
    for step in tokens:
        runner.next(step)
        made.append(recorder.logits.clone())
    return torch.stack(made)
