"""Captured steps without a GPU: a scripted capture records the step and runs it when it is replayed."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.test_demo_parity import CLIP
from tests.engine.test_parity import finish, prompt_tensors
from tests.tiny import pair, prefill_all, random_patches
from vidqa import EngineConfig, Request, Session
from vidqa.engine import cuda_graph, decode_runners
from vidqa.engine.cuda_graph import CudaGraphStep
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import CudaGraphDecoder, DecodeRunner, EagerDecoder
from vidqa.engine.kv_cache import KVCache, make_cache
from vidqa.engine.sampler import Sampler
from vidqa.events import Answered
from vidqa.models.attention import make_kernel
from vidqa.types import Turn

CPU = torch.device("cpu")


@dataclass
class ScriptedCapture:
    """Does what a capture does: warm-ups that are undone, and a replay that ends with its graph."""

    captures: int = 0
    live: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)

    def __call__(self, step: cuda_graph.Step, snapshot: cuda_graph.Snapshot) -> cuda_graph.Step:
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
    cuda_graph._live.clear()
    yield ScriptedCapture()


def prompt(sampler: Sampler) -> tuple[KVCache, Tensor, int]:
    """A filled cache, the logits after it and the next position."""
    models = pair("2B")
    embeddings, places = prompt_tensors(models, random_patches(3, 6, 8), 6, 8)
    cache = make_cache(models.ours.spec, 600, torch.float32, CPU)
    logits = prefill_all(models.ours, embeddings, places, cache, make_kernel("flash", CPU), 64)
    return cache, logits, int(places.max()) + 1


def eager(count: int, sampling: tuple[float, float, int]) -> list[int]:
    sampler = Sampler(*sampling)
    cache, logits, position = prompt(sampler)
    runner = EagerDecoder(pair("2B").ours, cache, make_kernel("flash", CPU), position, sampler)
    return finish(decode(runner, logits, frozenset(), count))[0]


@pytest.mark.parametrize("sampling", [(0, 1, 0), (0.8, 0.9, 3)])
def test_replays_write_what_the_eager_step_writes(capture: ScriptedCapture, sampling: tuple[float, float, int]) -> None:
    sampler = Sampler(*sampling)
    cache, logits, position = prompt(sampler)
    runner = CudaGraphDecoder(pair("2B").ours, [cache], [position], [sampler], capture)
    assert finish(decode(runner, logits, frozenset(), 40))[0] == eager(40, sampling)
    assert capture.captures == 1


def test_a_longer_sequence_is_captured_again_with_another_block(
    capture: ScriptedCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_runners, "_GRAPH_BLOCK_TOKENS", 128)
    sampler = Sampler(0, 1, 0)
    cache, logits, position = prompt(sampler)
    runner = CudaGraphDecoder(pair("2B").ours, [cache], [position], [sampler], capture)
    start = cache.length
    assert finish(decode(runner, logits, frozenset(), 150))[0] == eager(150, (0, 1, 0))
    assert capture.captures == 1 + (start + 149 - 1) // 128 - start // 128
    assert len(capture.live) == 1


def test_two_interleaved_writers_share_one_live_graph(capture: ScriptedCapture) -> None:
    """Each is captured again whenever it goes on after the other, and both write what they would alone."""
    running = []
    for _ in range(2):
        sampler = Sampler(0, 1, 0)
        cache, logits, position = prompt(sampler)
        runner: DecodeRunner = CudaGraphDecoder(pair("2B").ours, [cache], [position], [sampler], capture)
        running.append(decode(runner, logits, frozenset(), 12))
    written: list[list[int]] = [[], []]
    for _ in range(12):
        for tokens, one in zip(written, running, strict=True):
            tokens.append(next(one))
            gc.collect()
            assert len(capture.live) <= 1
    assert written == [eager(12, (0, 1, 0))] * 2
    assert capture.captures == 2 * 10  # eleven steps each, of which the first two follow each other


def test_a_graph_ends_with_its_storage(capture: ScriptedCapture) -> None:
    sampler = Sampler(0, 1, 0)
    cache, logits, position = prompt(sampler)
    runner = CudaGraphDecoder(pair("2B").ours, [cache], [position], [sampler], capture)
    finish(decode(runner, logits, frozenset(), 3))
    storage = weakref.ref(cache.storage)
    assert len(cuda_graph._live) == 1
    # The scripted replay keeps its step, and so the storage; a CUDA graph keeps addresses alone.
    cuda_graph._live[CPU].release()
    del runner, cache
    gc.collect()
    assert storage() is None and len(cuda_graph._live) == 0


def test_a_released_graph_is_captured_again(capture: ScriptedCapture) -> None:
    graph, steps = CudaGraphStep(CPU, capture), []

    def run() -> None:
        graph.run(("key",), lambda: steps.append(1), lambda: lambda: None)

    run()
    run()
    assert (capture.captures, len(steps)) == (1, 2 + 2)
    graph.release()
    run()
    assert capture.captures == 2


def test_a_session_captures_once_for_a_conversation(capture: ScriptedCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_runners, "capture_on", lambda device: capture)
    config = EngineConfig(model="demo", isolate_decoder=False, remember=False, conversation_tokens=256)
    with Session(config) as session:
        history: tuple[Turn, ...] = ()
        answers = []
        for question in ("what happens?", "which color is it?", "what happens?"):
            answered = list(session.ask(Request(CLIP, question, history=history)))[-1]
            assert isinstance(answered, Answered)
            answers.append(answered.answer.text)
            history = (*history, Turn(question, answered.answer.text))
    assert answers[0] == "a red circle moves right." and "red" in answers[1]
    assert capture.captures == 1


def test_two_interleaved_sessions_answer_as_alone(capture: ScriptedCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_runners, "capture_on", lambda device: capture)
    config = EngineConfig(model="demo", isolate_decoder=False, remember=False)
    with Session(config) as one, Session(config) as other:
        streams = [session.ask(Request(CLIP, "what happens?")) for session in (one, other)]
        last: list[Any] = [None, None]
        while streams != [None, None]:
            for place, stream in enumerate(streams):
                event = next(stream, None) if stream else None
                if event is None:
                    streams[place] = None
                else:
                    last[place] = event
    assert [event.answer.text for event in last] == ["a red circle moves right."] * 2
    assert capture.captures > 2  # they took turns


@pytest.mark.needs_cuda
def test_two_interleaved_sessions_on_a_gpu() -> None:
    config = EngineConfig(model="demo", device="cuda", isolate_decoder=False, remember=False)
    with Session(config) as one, Session(config) as other:
        streams = [session.ask(Request(CLIP, "what happens?")) for session in (one, other)]
        events: list[list[Any]] = [[], []]
        for turn in zip_longest(*streams):
            for stored, event in zip(events, turn, strict=True):
                stored += [event] if event else []
    assert [stored[-1].answer.text for stored in events] == ["a red circle moves right."] * 2
