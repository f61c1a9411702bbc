"""The decode step that can be captured: the same tokens as the cache that grows, for one sequence and for many."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.test_parity import prompt_tensors
from tests.tiny import Pair, pair, prefill_all, random_patches
from vidqa.engine import static_decode_step
from vidqa.engine.kv_cache import KVCache, Storage
from vidqa.engine.prompt import text_positions
from vidqa.engine.static_decode_step import DecodeState, next_logits
from vidqa.models.attention.selector import make_kernel
from vidqa.models.vlm import SequenceChunk

CPU = torch.device("cpu")
GRIDS = ((3, 6, 8), (1, 4, 4), (4, 10, 8))


def prefilled(models: Pair, storage: Storage) -> tuple[list[KVCache], list[int], list[Tensor]]:
    """A prompt of its own in every sequence: the caches, the next positions, and the logits."""
    caches, positions, logits = [], [], []
    for sequence, grid in enumerate(GRIDS[: storage.sequences]):
        embeddings, places = prompt_tensors(models, random_patches(*grid), *grid[1:])
        cache = KVCache(storage, sequence)
        logits.append(prefill_all(models.ours, embeddings, places, cache, make_kernel("flash", CPU), 64)[0])
        caches.append(cache)
        positions.append(int(places.max()) + 1)
    return caches, positions, logits


def room(models: Pair, sequences: int, *, quantized: bool = False, **how: Any) -> Storage:
    spec = models.ours.spec
    return Storage.allocate(spec, 200, torch.float32, CPU, sequences=sequences, quantized=quantized, **how)


@torch.no_grad()
def eager_tokens(models: Pair, storage: Storage, count: int) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy tokens of every sequence, one after the other, by the path that slices the cache."""
    kernel, found, last = make_kernel("flash", CPU), [], []
    for cache, position, logits in zip(*prefilled(models, storage), strict=True):
        tokens = [int(logits.argmax())]
        for number in range(count):
            embedded = models.ours.embed(torch.tensor(tokens[-1:]))
            part = SequenceChunk(embedded, text_positions(position + number, 1), cache)
            logits = models.ours.score(models.ours.run([part], kernel))[0]
            tokens.append(int(logits.argmax()))
        found.append(tokens)
        last.append(logits)
    return found, last


@torch.no_grad()
def static_tokens(
    models: Pair, storage: Storage, count: int, visible: int | None = None
) -> tuple[list[list[int]], Tensor]:
    """The same by the step of fixed shapes, all sequences together."""
    caches, positions, logits = prefilled(models, storage)
    decode_state = DecodeState.of([cache.length for cache in caches], positions, CPU)
    current, tokens = torch.stack(logits), [torch.stack(logits).argmax(-1)]
    for _ in range(count):
        current = next_logits(
            models.ours, models.ours.embed(tokens[-1]), storage, decode_state, visible or storage.capacity
        )
        tokens.append(current.argmax(-1))
    assert decode_state.lengths.tolist() == [cache.length + count for cache in caches]
    return torch.stack(tokens).T.tolist(), current


@pytest.mark.parametrize(
    ("layout", "sequences", "quantized"),
    [("2B", 1, False), ("2B", 3, False), ("7B", 1, False), ("7B", 3, False), ("2B", 2, True)],
)
def test_fixed_shapes_give_the_same_tokens(layout: str, sequences: int, quantized: bool) -> None:
    models = pair(layout)
    expected, logits = eager_tokens(models, room(models, sequences, quantized=quantized), 40)
    ours, last = static_tokens(models, room(models, sequences, quantized=quantized), 40)
    assert ours == expected
    assert torch.allclose(last, torch.stack(logits), atol=1e-3 if quantized else 1e-4, rtol=0)


def test_int8_is_16_bit_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pair("2B")
    whole = static_tokens(models, room(models, 2, quantized=True), 20)
    monkeypatch.setattr(static_decode_step, "INT8_BLOCK_TOKENS", 128)
    blocks = static_tokens(models, room(models, 2, quantized=True), 20)
    assert blocks[0] == whole[0]
    assert torch.allclose(blocks[1], whole[1], atol=1e-5, rtol=0)


def test_a_step_does_not_look_behind_the_filled_part() -> None:
    """NaN behind the blocks that are read would spread through any product."""
    models = pair("7B")
    expected, _ = eager_tokens(models, room(models, 1), 40)
    storage = room(models, 1)
    storage.store[:, :, :, :, 128:] = torch.nan
    assert static_tokens(models, storage, 40, visible=128)[0] == expected


def test_what_lies_behind_a_sequence_is_never_read() -> None:
    """The tail of the cache may hold anything finite: another answer's rest, for one."""
    models = pair("2B")
    expected, _ = eager_tokens(models, room(models, 2), 10)
    dirty = room(models, 2)
    dirty.store.fill_(1e4)
    assert static_tokens(models, dirty, 10)[0] == expected
