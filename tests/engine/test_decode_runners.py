"""The step that works ahead of its reader gives the same answer, and leaves the same cache, as the one that waits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.test_parity import finish, prompt_tensors
from tests.tiny import pair, prefill_all, random_patches
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import CudaGraphDecoder, DecodeRunner, EagerDecoder
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.errors import ModelError
from vidqa.models.attention import make_kernel

CPU = torch.device("cpu")


def both(sampling: tuple[float, float, int] = (0, 1, 0)) -> dict[str, tuple[DecodeRunner, Tensor, KVCache]]:
    """An eager and a captured runner behind the same prompt, each with a cache of its own."""
    models, made = pair("2B"), {}
    for name in ("eager", "captured"):
        embeddings, places = prompt_tensors(models, random_patches(3, 6, 8), 6, 8)
        cache, kernel = make_cache(models.ours.spec, 128, torch.float32, CPU), make_kernel("flash", CPU)
        logits = prefill_all(models.ours, embeddings, places, cache, kernel, 64)
        position, sampler = int(places.max()) + 1, Sampler(*sampling)
        runner: DecodeRunner = EagerDecoder(models.ours, cache, kernel, position, sampler)
        if name == "captured":
            runner = CudaGraphDecoder(models.ours, [cache], [position], [sampler], None)
        made[name] = (runner, logits, cache)
    return made


@pytest.mark.parametrize("sampling", [(0, 1, 0), (0.8, 0.9, 3), (1.5, 1.0, 4)])
def test_both_write_the_same(sampling: tuple[float, float, int]) -> None:
    told = {
        name: finish(decode(runner, logits, frozenset(), 40)) for name, (runner, logits, _) in both(sampling).items()
    }
    assert told["eager"] == told["captured"]
    assert told["eager"][1] == "length" and len(told["eager"][0]) == 40
    assert len(set(told["eager"][0])) > 3


def test_a_stop_takes_the_step_back_that_was_queued_ahead() -> None:
    tokens = finish(decode(*both()["eager"][:2], frozenset(), 20))[0]
    stop = tokens[7]
    before = tokens.index(stop)
    lengths = {}
    for name, (runner, logits, cache) in both().items():
        start = cache.length
        assert finish(decode(runner, logits, frozenset((stop,)), 20)) == (tokens[:before], "stop")
        lengths[name] = cache.length - start
    assert lengths == {"eager": before, "captured": before}


def test_a_conversation_goes_on_behind_the_stop() -> None:
    """What the queued step wrote into the cache is overwritten: the next tokens are as if it had never run."""
    tokens = finish(decode(*both()["eager"][:2], frozenset(), 20))[0]
    models, after = pair("2B"), {}
    for name, (runner, logits, cache) in both().items():
        finish(decode(runner, logits, frozenset((tokens[7],)), 20))
        rows, places = models.ours.embed(torch.tensor([5, 6, 7])), text_positions(cache.length, 3)
        told = prefill_all(models.ours, rows, places, cache, make_kernel("flash", CPU), 64)
        again = EagerDecoder(models.ours, cache, make_kernel("flash", CPU), cache.length, Sampler(0, 1, 0))
        after[name] = finish(decode(again, told, frozenset(), 10))[0]
    assert after["eager"] == after["captured"]


def test_an_answer_that_is_left_half_way_has_cached_what_was_said() -> None:
    for name, (runner, logits, cache) in both().items():
        start, running = cache.length, decode(runner, logits, frozenset(), 20)
        for _ in range(5):
            next(running)
        running.close()
        assert cache.length - start == (5 if name == "captured" else 4)


@pytest.mark.parametrize("name", ["eager", "captured"])
def test_scores_that_overflow_end_the_answer_with_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, logits, _ = both()[name]
    head: Any = pair("2B").ours.model.lm_head
    real, calls = head.forward, []

    def overflowing(hidden: Tensor) -> Any:
        calls.append(hidden)
        return real(hidden) * (torch.inf if len(calls) > 3 else 1)

    monkeypatch.setattr(head, "forward", overflowing)
    written = []
    with pytest.raises(ModelError, match="not finite in float32"):
        for token in decode(runner, logits, frozenset(), 20):
            written.append(token)
    assert len(written) == 4
