"""Autograd records nothing, wherever a question is stopped and whatever its consumer does between events.

Every parameter requires grad here and autograd is on, as in a training script. The same question
on frozen parameters says what memory it may take; the same question without the scope shows
that these tests see a leak.
"""

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.asking import ANSWER, CLIP, QUESTION, ask
from tests.engine.test_no_grad_stages import Recorded
from vidqa import EngineConfig, Request, Session
from vidqa.devices.memory_tracker import TensorMeter, Tracker
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.engine import frame_prefetcher, no_grad
from vidqa.engine.timers import ignore_phase
from vidqa.events import Answered, Event, MemorySampled, StageProgress, StageStarted
from vidqa.models.family import family_of
from vidqa.models.registry import find_checkpoints
from vidqa.types import Turn

CONFIG = EngineConfig(isolate_decoder=False, remember=False, vision_chunk=1, prefill_chunk=8, conversation_tokens=256)
FIRST = Request(CLIP, QUESTION, frames=4, size=(84, 84))
FOLLOW_UP = replace(FIRST, question="what color is it?", history=(Turn(QUESTION, ANSWER),))
RUNTIME = family_of(find_checkpoints("demo", local=True)[0].spec).load_runtime()
Living = list[tuple[str, str, int]]  # (event, its stage, living bytes then)


class Watched:
    """A session with a loaded model, its living tensors counted."""

    def __init__(self) -> None:
        self.live, self.fault = TensorCounter("cpu"), ignore_phase
        self.session = Session(CONFIG, meter=TensorMeter(self.live), fault=lambda phase: self.fault(phase))

    def require_grad(self, required: bool = True) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(required)

    @property
    def model(self) -> nn.Module:
        assert self.session.loaded is not None
        model: nn.Module = self.session.loaded.model.model
        return model

    def kept(self) -> list[Tensor]:
        """Every tensor that outlives its question."""
        previous = self.session._caches.question
        assert previous is not None
        embeddings, prompt = previous.vision_embeddings, previous.cached_prompt
        assert embeddings is not None and prompt is not None
        storage = prompt.cache.storage
        every = (embeddings.rows, storage.store, storage.scales, storage.scratch)
        return [tensor for tensor in every if tensor is not None]

    def follow(self, request: Request | list[Request]) -> tuple[Living, list[str]]:
        """Living bytes at every event that does not hang on a clock, and the answers. The mode stays what it was."""
        seen, answers, before = [], {}, modes()
        events = self.session.ask_many(request) if isinstance(request, list) else enumerate_one(self.session, request)
        for number, event in events:
            assert modes() == before
            if not isinstance(event, MemorySampled):
                seen.append((type(event).__name__, getattr(event, "stage", ""), self.live.now))
            if isinstance(event, Answered):
                answers[number] = event.answer.text
        return seen, [answers[number] for number in sorted(answers)]


def enumerate_one(session: Session, request: Request) -> Iterator[tuple[int, Event]]:
    for event in session.ask(request):
        yield 0, event


def modes() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@pytest.fixture(scope="module")
def loaded() -> Iterator[Watched]:
    watched, threads = Watched(), torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small are slower when they are shared out
    with watched.session as session:
        ask(session, frames=2, max_tokens=1)
        watched.live.count_model(watched.model)
        yield watched
    torch.set_num_threads(threads)


@pytest.fixture
def watched(loaded: Watched) -> Iterator[Watched]:
    """All parameters require grad, nothing is kept, and no garbage collector helps."""
    loaded.session.forget()
    loaded.session.reconfigure(CONFIG)
    loaded.require_grad()
    gc.collect()
    gc.disable()
    try:
        with loaded.live:
            yield loaded
    finally:
        gc.enable()
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def text_of(event: Event) -> str:
    assert isinstance(event, Answered)
    return event.answer.text


def ask_twice(watched: Watched) -> tuple[Living, list[str]]:
    """A question and a follow-up to it: what lived at every event, and the answers."""
    watched.session.forget()
    first, seen = watched.follow(FIRST)
    second, then = watched.follow(FOLLOW_UP)
    return first + second, seen + then


@pytest.fixture
def unscoped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine as it would be if its generators did not scope their consumption."""
    monkeypatch.setattr(no_grad, "no_grad_scope", nullcontext)


@pytest.mark.parametrize("kv", [None, "int8"])
def test_memory_is_that_of_frozen_parameters_at_every_event(watched: Watched, kv: str | None) -> None:
    watched.session.reconfigure(replace(CONFIG, vision_chunk=1, prefill_chunk=16, conversation_tokens=256, kv=kv))
    watched.require_grad(False)
    frozen = ask_twice(watched)
    watched.require_grad()
    with Recorded() as recorded:
        trained = ask_twice(watched)
    assert trained == frozen
    assert len(frozen[0]) > 30 and frozen[1] == [ANSWER, "red."]
    assert recorded.calls == []
    for tensor in watched.kept():
        assert tensor.grad_fn is None and not tensor.requires_grad and not tensor.is_inference()


@pytest.mark.usefixtures("unscoped")
def test_without_the_scope_memory_grows_and_caches_hold_a_graph(watched: Watched) -> None:
    """So the test above can fail: the chunks' hidden states pile up behind the cache that they were written to."""
    watched.require_grad(False)
    resting = watched.live.now
    frozen, _ = ask_twice(watched)
    watched.require_grad()
    with Recorded() as recorded:
        grown, answers = ask_twice(watched)
    assert answers == [ANSWER, "red."]  # a leak is silent
    assert {"linear", "embedding"} <= set(recorded.calls)
    extra = [
        more[2] - less[2]
        for more, less in zip(grown, frozen, strict=True)
        if (more[0], more[1]) == ("StageProgress", "prefill")
    ]
    assert all(one < another for one, another in pairwise(extra))  # with every chunk
    held = [seen[-1][2] - resting for seen in (grown, frozen)]
    assert held[0] > 2.5 * held[1]  # and it is still there when the question is answered
    assert any(tensor.grad_fn is not None for tensor in watched.kept())
    watched.session.forget()


def test_nothing_is_left_wherever_the_consumer_stops(watched: Watched) -> None:
    baseline, seen = watched.live.now, len(watched.follow(FIRST)[0])
    stops = range(1, seen, 3)
    for stop_after in stops:
        watched.session.forget()
        events: Any = watched.session.ask(FIRST)
        for _ in range(stop_after):
            next(events)
        held = watched.live.now
        events.close()
        assert torch.is_grad_enabled()
        assert not [thread for thread in threading.enumerate() if thread.name == "vidqa-frames"]
        watched.session.forget()
        assert watched.live.now == baseline, stop_after
        assert held > baseline or stop_after < 3
    assert len(stops) > 8


def test_a_question_that_is_dropped_instead_of_closed_frees_the_same(watched: Watched) -> None:
    baseline = watched.live.now
    for stage in ("video", "vision", "prefill", "decode"):
        for event in watched.session.ask(FIRST):
            if isinstance(event, StageProgress) and event.stage == stage:
                break
        del event
        watched.session.forget()
        assert watched.live.now == baseline, stage


def test_what_a_stopped_question_leaves_to_the_next_has_no_graph(watched: Watched) -> None:
    for event in watched.session.ask(FIRST):
        if isinstance(event, StageStarted) and event.stage == "decode":
            break
    del event
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in watched.kept())
    with Recorded() as recorded:
        _, answer = watched.follow(FOLLOW_UP)
    assert (answer, recorded.calls) == (["red."], [])


@pytest.mark.parametrize("phase", ["vision", "prefill", "decode"])
def test_an_error_leaves_the_mode_and_no_memory(watched: Watched, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = watched.live.now

    def fault(entered: str) -> None:
        assert not torch.is_grad_enabled() or entered == "load"
        if entered == phase:
            raise ValueError(f"planted in {phase}")

    monkeypatch.setattr(watched, "fault", fault)
    with pytest.raises(ValueError, match="planted"):
        list(watched.session.ask(FIRST))
    assert torch.is_grad_enabled()
    watched.session.forget()
    gc.collect()  # pytest's record of the error leads back to the frames that raised it
    assert watched.live.now == baseline


BATCH = [FIRST, replace(FIRST, question="what color is it?"), replace(FIRST, size=(112, 84))]


def test_several_requests_at_once_record_nothing_in_any_mode(watched: Watched) -> None:
    watched.require_grad(False)
    frozen = watched.follow(BATCH)
    watched.require_grad()
    with Recorded() as recorded:
        assert watched.follow(BATCH) == frozen
        with torch.inference_mode():
            assert watched.follow(BATCH)[1] == frozen[1]
    assert recorded.calls == []
    assert frozen[1] == [ANSWER, "red.", ANSWER]


@pytest.mark.usefixtures("unscoped")
def test_without_the_scope_several_requests_record(watched: Watched) -> None:
    with Recorded() as recorded:
        watched.follow(BATCH)
    assert {"linear", "embedding"} <= set(recorded.calls)


def test_several_requests_that_are_left_half_way_leave_nothing(watched: Watched) -> None:
    baseline, seen = watched.live.now, len(watched.follow(BATCH)[0])
    for stop_after in range(1, seen, 8):
        events: Any = watched.session.ask_many(BATCH)
        for _ in range(stop_after):
            next(events)
        events.close()
        assert torch.is_grad_enabled()
        assert watched.live.now == baseline, stop_after
    assert seen > 40


def test_the_consumer_trains_between_events(watched: Watched) -> None:
    """A graph that is open across events, a backward, and one through the very model that answers."""
    weight = nn.Parameter(torch.arange(4.0))
    table: Any = watched.model.get_parameter("model.language_model.embed_tokens.weight")
    open_graph, events = weight.sum() * 0, 0
    with torch.enable_grad():
        for event in watched.session.ask(FIRST):
            if isinstance(event, MemorySampled):
                continue
            assert torch.is_grad_enabled()
            events += 1
            open_graph = open_graph + (weight * 3).sum()
            if events % 5 == 0:
                open_graph.backward()
                open_graph = weight.sum() * 0
                nn.functional.embedding(torch.tensor([7]), table).sum().backward()
    rounds = events // 5
    assert rounds > 5 and text_of(event) == ANSWER
    assert weight.grad is not None and weight.grad.tolist() == [15.0 * rounds] * 4
    assert table.grad[7].eq(rounds).all() and table.grad.count_nonzero() == table.shape[1]
    table.grad = None


def test_a_mode_that_changes_while_a_question_runs(watched: Watched) -> None:
    """Every step in another mode, and the end in yet another: what is made in one is written to in the next."""
    every = (torch.inference_mode, torch.enable_grad, torch.no_grad)
    events = watched.session.ask(FIRST)
    with Recorded() as recorded:
        for turn in range(30):
            with every[turn % 3]():
                before = modes()
                next(events)
                assert modes() == before
        *_, last = events
    assert text_of(last) == ANSWER and recorded.calls == []


def test_caches_made_in_inference_mode_are_reusable_outside_of_it() -> None:
    """Model, cache and embeddings that were made there are ordinary tensors: a follow-up writes to them."""
    watched = Watched()
    with watched.session as session:
        with torch.inference_mode():
            assert ask(session, FIRST).text == ANSWER
        assert not any(tensor.is_inference() for tensor in (*watched.kept(), *watched.model.parameters()))
        assert watched.follow(FOLLOW_UP)[1] == ["red."]
        watched.require_grad()
        table: Any = watched.model.get_parameter("model.language_model.embed_tokens.weight")
        (table * 2).sum().backward()
        assert table.grad.eq(2).all()


def test_a_question_continues_in_another_thread(watched: Watched) -> None:
    """Begun here, read there, closed here: a thread's mode is its own, and stays so."""
    events: Any = watched.session.ask(FIRST)
    next(events)
    clean: list[bool] = []

    def read() -> None:
        with Recorded() as recorded:
            for _ in range(20):
                next(events)
                clean.append(torch.is_grad_enabled() and not recorded.calls)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert clean == [True] * 20
    next(events)
    events.close()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("scoped", [True, False])
def test_the_thread_of_frames_sets_its_own_mode(
    watched: Watched, scoped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its own scope it would record, whatever the consumer's mode is."""
    real, seen = RUNTIME.resize_frame, set()
    weight = nn.Parameter(torch.ones(()))  # stands for a transform with parameters

    def resize(*frame: Any) -> Tensor:
        picture = real(*frame)
        seen.add((threading.current_thread().name, (picture.float() * weight).requires_grad))
        return picture

    monkeypatch.setattr(RUNTIME, "resize_frame", resize)
    if not scoped:
        monkeypatch.setattr(frame_prefetcher, "no_grad_scope", nullcontext)
    with torch.no_grad():  # reaches this thread alone
        *_, last = watched.session.ask(FIRST)
    assert text_of(last) == ANSWER
    assert seen == {("vidqa-frames", not scoped)}


def test_an_error_in_the_thread_of_frames_leaves_no_picture(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the error, nor the queue, nor the frames that raised keep each other alive."""
    real, alive = RUNTIME.resize_frame, []

    def resize(*frame: Any) -> Tensor:
        if len(alive) == 3:
            raise ValueError("planted")
        picture = real(*frame)
        alive.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(RUNTIME, "resize_frame", resize)
    try:
        list(watched.session.ask(FIRST))
    except ValueError as error:
        assert str(error) == "planted"
    assert len(alive) == 3
    assert [one for one in alive if one() is not None] == []


def test_an_error_between_two_events_stops_the_thread_of_frames_at_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the error is looked at: its traceback holds the stages that it came through."""

    def lost(tracker: Tracker) -> None:
        if [thread for thread in threading.enumerate() if thread.name == "vidqa-frames"]:
            raise ValueError("planted")

    monkeypatch.setattr(Tracker, "sample", lost)
    try:
        list(watched.session.ask(replace(FIRST, frames=16)))
    except ValueError as error:
        assert str(error) == "planted"
        assert not [thread for thread in threading.enumerate() if thread.name == "vidqa-frames"]
    else:
        raise AssertionError("the thread was never seen")
    assert torch.is_grad_enabled()
