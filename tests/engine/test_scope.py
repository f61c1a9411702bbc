"""Gradients are off around consumption, and only there."""

import gc
import weakref
from collections.abc import Generator

import torch

from tests.engine.test_parity import prompt_tensors
from tests.tiny import pair, random_patches
from vidqa.engine.decode import decode
from vidqa.engine.kv_cache import make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.sampler import Sampler
from vidqa.engine.scope import without_grad
from vidqa.engine.vision import GroupEncoder, Picture
from vidqa.engine.writers import make_writer
from vidqa.models.attention import make_kernel


def test_no_tensor_of_any_stage_has_a_grad_fn_and_the_consumer_keeps_its_mode() -> None:
    models = pair("2B")
    encoder, groups = GroupEncoder(models.ours, 1), []
    for index in range(5):
        picture = Picture(torch.randint(0, 255, (3, 56, 84), dtype=torch.uint8), float(index))
        groups += [group for group in (encoder.encode() if encoder.push(picture) else None,) if group]
        assert torch.is_grad_enabled()
    groups += [group for group in (encoder.encode(),) if group]
    assert [group.timestamps_seconds for group in groups] == [(0, 1), (2, 3), (4, 4)]
    assert all(group.embeddings.grad_fn is None for group in groups)

    embeddings, positions = prompt_tensors(models, random_patches(3, 6, 8), 6, 8)
    cache, kernel = (
        make_cache(models.ours.spec, 256, torch.float32, torch.device("cpu")),
        make_kernel("flash", torch.device("cpu")),
    )
    prefill, nothing = Prefill(models.ours, kernel, 16), torch.zeros(0, 2, 16)
    for stage in (prefill.push(cache, embeddings, positions), prefill.flush(cache)):
        for _ in stage:
            assert torch.is_grad_enabled()
            assert not cache.write(0, nothing, nothing).requires_grad
    assert cache.length == 45  # two chunks of 16 and the rest
    logits = prefill.logits(cache)
    assert logits.grad_fn is None
    writer = make_writer(models.ours, cache, kernel, int(positions.max()) + 1, Sampler(0, 1, 0))
    for _ in decode(writer, logits, frozenset(), 4):
        assert torch.is_grad_enabled()


class Tracked:
    """Something whose end can be watched."""


def test_closing_a_half_read_stage_frees_what_it_held() -> None:
    alive: list[weakref.ref[Tracked]] = []

    @without_grad
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
    cache = make_cache(models.ours.spec, 256, torch.float32, torch.device("cpu"))
    watched = weakref.ref(cache)
    prefill = Prefill(models.ours, make_kernel("flash", torch.device("cpu")), 8)
    stage = prefill.push(cache, embeddings, positions)
    next(stage)
    stage.close()
    del cache, stage, prefill
    gc.collect()
    assert watched() is None


def test_a_stage_returns_and_raises_through_the_scope() -> None:
    @without_grad
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
