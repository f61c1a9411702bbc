"""Each stage alone runs with autograd off, and its consumer with it on."""

import gc
import weakref
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.engine.test_parity import prompt_tensors
from tests.tiny import pair, random_patches
from vidqa.engine.decode import decode_batch
from vidqa.engine.decode_runners import CudaGraphDecoder, EagerDecoder
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.no_grad import no_grad_generator
from vidqa.engine.prefill import Prefill
from vidqa.engine.sampler import Sampler
from vidqa.engine.vision import GroupEncoder, PreparedFrame
from vidqa.models.attention.selector import make_kernel

CPU = torch.device("cpu")


class Recorded(TorchFunctionMode):
    """Names the calls of this thread whose results autograd remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, Tensor) and part.grad_fn is not None:
                self.calls.append(getattr(func, "__name__", str(func)))
        return result


class Tracked:
    """Something whose end can be watched."""


def test_closing_a_half_read_stage_frees_what_it_held() -> None:
    alive: list[weakref.ref[Tracked]] = []

    @no_grad_generator
    def stage() -> Generator[int, None, None]:
        held = Tracked()
        alive.append(weakref.ref(held))
        yield from range(100)

    running = stage()
    assert next(running) == 0
    assert alive[0]() is not None
    running.close()
    gc.collect()
    assert alive[0]() is None
    assert torch.is_grad_enabled()


def test_a_half_read_prefill_frees_its_cache() -> None:
    models = pair("2B")
    embeddings, positions = prompt_tensors(models, random_patches(3, 6, 8), 6, 8)
    cache = make_cache(models.ours.spec, 256, torch.float32, CPU)
    watched = weakref.ref(cache)
    prefill = Prefill(models.ours, make_kernel("flash", CPU), 8)
    stage = prefill.push(cache, embeddings, positions)
    next(stage)
    stage.close()
    del cache, stage, prefill
    gc.collect()
    assert watched() is None


def test_a_stage_returns_and_raises_through_the_scope() -> None:
    @no_grad_generator
    def stage() -> Generator[bool, None, str]:
        yield torch.is_grad_enabled()
        return "done"

    running = stage()
    assert next(running) is False
    assert torch.is_grad_enabled()
    try:
        next(running)
    except StopIteration as finished:
        assert finished.value == "done"


# Each stage by itself, as benchmarks and tests use it: consumed with autograd on, and what it would do unscoped.


def tiny_prompt() -> tuple[Any, Tensor, Tensor, KVCache]:
    """A tiny model whose parameters require grad, a prompt and a cache."""
    models = pair("2B")
    assert all(parameter.requires_grad for parameter in models.ours.model.parameters())
    embeddings, positions = prompt_tensors(models, random_patches(3, 6, 8), 6, 8)
    return models.ours, embeddings.detach(), positions, make_cache(models.ours.spec, 128, torch.float32, CPU)


def run_encoder(bare: bool) -> None:
    model, *_ = tiny_prompt()
    encoder, groups = GroupEncoder(model, 1), []
    call: Any = GroupEncoder.encode
    for index in range(3):
        if encoder.push(PreparedFrame(torch.zeros(3, 56, 84, dtype=torch.uint8), float(index))) or index == 2:
            groups.append((call.__wrapped__ if bare else call)(encoder))
    assert [group.timestamps_seconds for group in groups] == [(0, 1), (2, 2)]


def run_prefill(bare: bool) -> None:
    model, embeddings, positions, cache = tiny_prompt()
    prefill, push, flush = Prefill(model, make_kernel("flash", CPU), 16), Prefill.push, Prefill.flush
    stages: tuple[Any, Any] = (push, flush)
    first, rest = (stage.__wrapped__ for stage in stages) if bare else stages
    for _ in first(prefill, cache, embeddings, positions):
        assert torch.is_grad_enabled()
    for _ in rest(prefill, cache):
        assert torch.is_grad_enabled()
    score: Any = Prefill.logits
    assert (score.__wrapped__ if bare else score)(prefill, cache).requires_grad is bare


def run_decode(bare: bool, captured: bool) -> None:
    model, embeddings, positions, cache = tiny_prompt()
    kernel, sampler, position = make_kernel("flash", CPU), Sampler(0.7, 0.9, 0), int(positions.max()) + 1
    prefill = Prefill(model, kernel, 64)
    for _ in (*prefill.push(cache, embeddings, positions), *prefill.flush(cache)):
        pass
    runner: Any = EagerDecoder(model, cache, kernel, position, sampler)
    if captured:
        runner = CudaGraphDecoder(model, [cache], [position], [sampler], None)
    stage: Any = decode_batch
    running = (stage.__wrapped__ if bare else stage)(runner, prefill.logits(cache), frozenset(), [6])
    for _ in running:
        assert torch.is_grad_enabled()
    assert cache.storage.store.requires_grad is bare


STAGES = {
    "vision": run_encoder,
    "prefill": run_prefill,
    "decode": lambda bare: run_decode(bare, captured=False),
    "captured decode": lambda bare: run_decode(bare, captured=True),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_by_itself_records_nothing_and_would_without_its_scope(name: str) -> None:
    with Recorded() as recorded:
        STAGES[name](bare=False)  # type: ignore[operator]
    assert recorded.calls == []
    with Recorded() as recorded:
        STAGES[name](bare=True)  # type: ignore[operator]
    assert "linear" in recorded.calls
