"""Decode runners write the same tokens and leave the same cache, whether steps are eager, static or replayed."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.asking import ANSWER, CLIP, CONFIG, QUESTION, ask
from tests.engine.test_parity import finish, prompt_tensors
from tests.tiny import pair, prefill_all, random_patches
from vidqa import Request, Session
from vidqa.engine import decode_runners
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import CudaGraphDecoder, CudaGraphStep, DecodeRunner, EagerDecoder, Snapshot, Step
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.errors import ModelError
from vidqa.models.attention.selector import make_kernel
from vidqa.types import Turn

CPU = torch.device("cpu")
GREEDY = (0, 1, 0)


@dataclass
class ScriptedCapture:
    """A capture without a GPU: warm-ups that are undone, and a replay that ends with its graph."""

    captures: int = 0
    live: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)

    def __call__(self, step: Step, snapshot: Snapshot) -> Step:
        self.captures += 1
        undo = snapshot()
        for _ in range(2):
            step()
            undo()

        class Graph:
            def replay(self) -> None:
                step()

        graph = Graph()
        self.live.add(graph)
        return graph.replay


@pytest.fixture
def capture() -> Iterator[ScriptedCapture]:
    decode_runners._live.clear()
    yield ScriptedCapture()


def prefilled(
    kind: str, sampling: tuple[float, float, int] = GREEDY, capture: ScriptedCapture | None = None
) -> tuple[DecodeRunner, Tensor, KVCache]:
    """A runner after the same prompt, the prompt's logits and its own cache."""
    model, sampler = pair("2B").ours, Sampler(*sampling)
    embeddings, positions = prompt_tensors(pair("2B"), random_patches(3, 6, 8), 6, 8)
    cache, kernel = make_cache(model.spec, 600, torch.float32, CPU), make_kernel("flash", CPU)
    logits, position = prefill_all(model, embeddings, positions, cache, kernel, 64), int(positions.max()) + 1
    if kind == "eager":
        return EagerDecoder(model, cache, kernel, position, sampler), logits, cache
    return CudaGraphDecoder(model, [cache], [position], [sampler], capture), logits, cache


def tokens_of(runner: DecodeRunner, logits: Tensor, count: int, *stop_ids: int) -> tuple[list[int], str]:
    return finish(decode(runner, logits, frozenset(stop_ids), count))


def eager(count: int, sampling: tuple[float, float, int] = GREEDY) -> list[int]:
    return tokens_of(*prefilled("eager", sampling)[:2], count)[0]


@pytest.mark.parametrize("sampling", [GREEDY, (0.8, 0.9, 3), (1.5, 1.0, 4)])
def test_static_and_replayed_steps_write_what_the_eager_one_writes(
    sampling: tuple[float, float, int], capture: ScriptedCapture
) -> None:
    expected = eager(40, sampling)
    assert len(expected) == 40 and len(set(expected)) > 3
    for one in (None, capture):
        assert tokens_of(*prefilled("static", sampling, one)[:2], 40) == (expected, "length")
    assert capture.captures == 1


def test_a_stop_rolls_back_the_queued_step_and_a_conversation_continues() -> None:
    tokens, model = eager(20), pair("2B").ours
    stop, lengths, after = tokens[7], {}, {}
    for kind in ("eager", "static"):
        runner, logits, cache = prefilled(kind)
        start = cache.length
        assert tokens_of(runner, logits, 20, stop) == (tokens[: tokens.index(stop)], "stop")
        lengths[kind] = cache.length - start
        rows, positions = model.embed(torch.tensor([5, 6, 7])), text_positions(cache.length, 3)
        logits = prefill_all(model, rows, positions, cache, make_kernel("flash", CPU), 64)
        again = EagerDecoder(model, cache, make_kernel("flash", CPU), cache.length, Sampler(*GREEDY))
        after[kind] = tokens_of(again, logits, 10)
    assert lengths == {"eager": tokens.index(stop), "static": tokens.index(stop)}
    assert after["eager"] == after["static"]


@pytest.mark.parametrize(("kind", "cached"), [("eager", 4), ("static", 5)])
def test_an_answer_that_is_left_half_way_has_cached_its_tokens(kind: str, cached: int) -> None:
    runner, logits, cache = prefilled(kind)
    start, running = cache.length, decode(runner, logits, frozenset(), 20)
    for _ in range(5):
        next(running)
    running.close()
    assert cache.length - start == cached


@pytest.mark.parametrize("kind", ["eager", "static"])
def test_logits_that_overflow_raise(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, logits, _ = prefilled(kind)
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


def test_a_longer_sequence_is_captured_again_with_another_block(
    capture: ScriptedCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_runners, "_GRAPH_BLOCK_TOKENS", 128)
    runner, logits, cache = prefilled("static", capture=capture)
    start = cache.length
    assert tokens_of(runner, logits, 150)[0] == eager(150)
    assert capture.captures == 1 + (start + 149 - 1) // 128 - start // 128
    assert len(capture.live) == 1


def test_two_interleaved_runners_share_one_live_graph(capture: ScriptedCapture) -> None:
    """Each is captured again when it continues after the other, and both write what they would alone."""
    running = [decode(*prefilled("static", capture=capture)[:2], frozenset(), 12) for _ in range(2)]
    written: list[list[int]] = [[], []]
    for _ in range(12):
        for tokens, one in zip(written, running, strict=True):
            tokens.append(next(one))
            gc.collect()
            assert len(capture.live) <= 1
    assert written == [eager(12)] * 2
    assert capture.captures == 2 * 10  # eleven steps each, of which the first two follow each other


def test_a_graph_ends_with_its_storage(capture: ScriptedCapture) -> None:
    runner, logits, cache = prefilled("static", capture=capture)
    tokens_of(runner, logits, 3)
    storage = weakref.ref(cache.storage)
    assert len(decode_runners._live) == 1
    # The scripted replay keeps its step, and so the storage; a CUDA graph keeps addresses alone.
    decode_runners._live[CPU].release()
    del runner, cache
    gc.collect()
    assert storage() is None and len(decode_runners._live) == 0


def test_a_released_graph_is_captured_again(capture: ScriptedCapture) -> None:
    graph, steps = CudaGraphStep(CPU, capture), list[int]()
    for release, captures, ran in ((False, 1, 3), (True, 1, 4), (False, 2, 7)):
        graph.run(("key",), lambda: steps.append(1), lambda: lambda: None)
        assert (capture.captures, len(steps)) == (captures, ran)
        if release:
            graph.release()


def test_a_session_captures_once_for_a_conversation(capture: ScriptedCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_runners, "capture_on", lambda device: capture)
    history: tuple[Turn, ...] = ()
    with Session(replace(CONFIG, conversation_tokens=256)) as session:
        for question in (QUESTION, "which color is it?", QUESTION):
            history += (Turn(question, ask(session, question=question, history=history).text),)
    assert history[0].answer == ANSWER and "red" in history[1].answer
    assert capture.captures == 1


def interleaved_answers(device: str = "auto") -> list[str]:
    config = replace(CONFIG, device=device)
    with Session(config) as one, Session(config) as other:
        streams = [session.ask(Request(CLIP, QUESTION)) for session in (one, other)]
        last: list[Any] = [None, None]
        for turn in zip_longest(*streams):
            last = [event or before for event, before in zip(turn, last, strict=True)]
    return [event.answer.text for event in last]


def test_two_interleaved_sessions_answer_as_alone(capture: ScriptedCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_runners, "capture_on", lambda device: capture)
    assert interleaved_answers() == [ANSWER] * 2
    assert capture.captures > 2  # they took turns


@pytest.mark.needs_cuda
def test_two_interleaved_sessions_on_a_gpu() -> None:
    assert interleaved_answers("cuda") == [ANSWER] * 2
