"""A question is cancelled at its next layer, chunk or token, and leaves caches that the next one can use."""

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.asking import ANSWER, CLIP, QUESTION, ask
from vidqa import EngineConfig, Request, Session, Turn
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.errors import Interrupted, UsageError
from vidqa.events import Answered, Event, TextDelta
from vidqa.types import Answer
from vidqa.video.reader import DecoderProcess, Decoding, open_video

CONFIG = EngineConfig(
    isolate_decoder=False, remember=False, conversation_tokens=256, vision_chunk=1, prefill_chunk=16, weights="fp32"
)
FIRST = Request(CLIP, QUESTION, max_tokens=32)
NEXT = "what color is it?"


class Stopper:
    """Cancels the session at the n-th unit of a phase, if it is armed."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.at: tuple[str, int] | None = None

    def __call__(self, phase: str) -> None:
        if self.at is None or self.at[0] != phase:
            return
        self.at = (phase, self.at[1] - 1)
        if self.at[1] == 0:
            assert self.session is not None
            self.session.cancel()


@pytest.fixture(scope="module")
def stoppable() -> Iterator[tuple[Session, Stopper]]:
    stopper = Stopper()
    with Session(CONFIG, fault=stopper) as session:
        stopper.session = session
        list(session.load(FIRST))
        yield session, stopper


def stopped_answer(session: Session, stopper: Stopper, request: Request, at: tuple[str, int]) -> Answer | None:
    """What a question that is stopped there leaves: its partial answer, if it has one."""
    stopper.at = at
    try:
        answer = ask(session, request)
    except Interrupted as stopped:
        assert "Nothing was answered yet" in stopped.remedy
        return None
    finally:
        assert stopper.at is not None and stopper.at[1] <= 0  # the moment came
        stopper.at = None
    assert answer.finish_reason == "cancelled"
    return answer


MOMENTS = [("vision", 1), ("vision", 2), ("prefill", 1), ("prefill", 3), ("decode", 1), ("decode", 4)]


@pytest.mark.parametrize("at", MOMENTS)
def test_what_follows_a_stop_is_as_if_it_were_new(stoppable: tuple[Session, Stopper], at: tuple[str, int]) -> None:
    session, stopper = stoppable
    session.forget()
    partial = stopped_answer(session, stopper, FIRST, at)
    assert (partial is not None) == (at[0] == "decode")
    history = (Turn(QUESTION, partial.text),) if partial is not None and partial.text else ()
    then = replace(FIRST, question=NEXT, history=history)
    kept = ask(session, then)
    session.forget()
    fresh = ask(session, then)
    assert (kept.text, kept.finish_reason) == (fresh.text, fresh.finish_reason)
    assert (kept.timing.video_seconds == 0) == (at[0] == "decode")  # its pictures are still there


@pytest.mark.parametrize("at", [("prefill", 1), ("decode", 2)])
def test_a_stopped_follow_up_leaves_the_conversation(stoppable: tuple[Session, Stopper], at: tuple[str, int]) -> None:
    session, stopper = stoppable
    session.forget()
    history = (Turn(QUESTION, ask(session, FIRST).text),)
    then = replace(FIRST, question=NEXT, history=history)
    stopped_answer(session, stopper, then, at)
    again = ask(session, then)
    assert again.timing.video_seconds == 0  # neither the video nor the first turn is read again
    session.forget()
    assert again.text == ask(session, then).text


def test_a_stop_gives_the_memory_back(stoppable: tuple[Session, Stopper]) -> None:
    session, stopper = stoppable
    live = TensorCounter("cpu")
    held: list[Interrupted] = []
    gc.disable()
    try:
        with live:
            session.forget()
            ask(session, FIRST)
            session.forget()
            baseline = live.now
            for at in MOMENTS:
                stopper.at = at
                try:
                    ask(session, FIRST)
                except Interrupted as stopped:
                    held.append(stopped)  # a face may keep the error: it must not keep tensors
                session.forget()
                assert live.now == baseline, at
    finally:
        gc.enable()
    assert len(held) == 4


def hooked(module: Any, action: Callable[[], None]) -> Any:
    return module.register_forward_hook(lambda *_: action())


@pytest.mark.parametrize("part", ["vision", "prefill"])
def test_a_chunk_is_left_at_the_next_layer(part: str) -> None:
    with Session(replace(CONFIG, prefill_chunk=1024, vision_chunk=8)) as session:
        list(session.load(FIRST))
        assert session.loaded is not None
        model = session.loaded.model
        layers = model.visual.blocks if part == "vision" else model.language_model.layers  # type: ignore[union-attr]
        ran: list[int] = []
        hooks = [hooked(layer.mlp, lambda n=n: ran.append(n)) for n, layer in enumerate(layers)]  # type: ignore[misc,union-attr]
        hooks.append(hooked(layers[1].mlp, session.cancel))  # type: ignore[index]
        with pytest.raises(Interrupted):
            list(session.ask(FIRST))
        for hook in hooks:
            hook.remove()
        assert ran == [0, 1]
        assert ask(session, FIRST).text == ANSWER


def test_a_stop_between_two_tokens_keeps_the_text() -> None:
    with Session(CONFIG) as session:
        events: list[Event] = []
        for event in session.ask(FIRST):
            events.append(event)
            if isinstance(event, TextDelta) and sum(isinstance(one, TextDelta) for one in events) == 2:
                session.cancel()
        last = events[-1]
        assert isinstance(last, Answered) and last.answer.finish_reason == "cancelled"
        assert last.answer.text == "".join(one.text for one in events if isinstance(one, TextDelta))
        assert ANSWER.startswith(last.answer.text)


HANGS = "import time\ntime.sleep(60)"
STARTS_TO_ANSWER = "import sys, time\nsys.stdout.buffer.write(b'\\0\\0')\nsys.stdout.flush()\ntime.sleep(60)"


@pytest.mark.parametrize("script", [HANGS, STARTS_TO_ANSWER])
def test_opening_stops_without_waiting_for_the_decoder(script: str) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="while the video was opened"):
        DecoderProcess((sys.executable, "-c", script), Decoding(), stop.is_set).open(__file__)
    assert time.monotonic() - began < 10  # the deadline would be 60


def test_a_stop_after_opening_does_not_disturb_the_reader() -> None:
    stop = threading.Event()
    with open_video(CLIP, stopped=stop.is_set) as reader:
        stop.set()
        assert len(list(reader.frames((0, 1, 2)))) == 3


def test_a_question_stops_while_its_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "hang.py"
    script.write_text(HANGS)
    monkeypatch.setattr("vidqa.video.reader._COMMAND", (sys.executable, str(script)))
    with Session(replace(CONFIG, isolate_decoder=True)) as session:
        for begin in (session.ask, session.load):
            threading.Timer(0.3, session.cancel).start()
            with pytest.raises(Interrupted, match="while the video was opened"):
                list(begin(FIRST))
    assert not [name for name in os.listdir("/proc") if name.isdecimal() and _runs(name, str(script))]


def _runs(process: str, script: str) -> bool:
    try:
        return script.encode() in Path("/proc", process, "cmdline").read_bytes()
    except OSError:
        return False


def test_settings_change_between_questions_and_keep_the_model_where_they_can() -> None:
    with Session(CONFIG) as session:
        asked = ask(session, FIRST)
        loaded = session.loaded
        session.reconfigure(replace(CONFIG, quality="fast", kv="int8", prefill_chunk=32, max_wait_seconds=60.0))
        assert session.loaded is loaded
        again = ask(session, FIRST)
        assert (
            session.loaded is loaded
            and again.plan.run_config.kv == "int8"
            and again.plan.run_config.prefill_chunk == 32
        )
        assert again.text == asked.text
        session.reconfigure(replace(CONFIG, weights="bf16"))
        assert session.loaded is None
        lighter = ask(session, FIRST)
        assert (lighter.plan.run_config.weights, lighter.text) == ("bf16", asked.text)
        assert lighter.memory.weights_bytes * 2 == asked.memory.weights_bytes


def test_settings_do_not_change_while_a_question_runs() -> None:
    with Session(CONFIG) as session:
        events = session.ask(FIRST)
        next(events)
        with pytest.raises(UsageError, match="answering another"):
            session.reconfigure(replace(CONFIG, quality="fast"))
        assert session.config == CONFIG
        list(events)
        session.reconfigure(replace(CONFIG, quality="fast"))
        assert session.config.quality == "fast"


@pytest.mark.parametrize("chunk", [64, 1024])
def test_a_stop_in_the_last_prefill_pass_leaves_nothing_that_misleads_the_next_question(chunk: int) -> None:
    """What waits for its chunk is not in the cache, though it was pushed."""
    with Session(replace(CONFIG, prefill_chunk=chunk)) as session:
        fresh = ask(session, replace(FIRST, question=NEXT)).text
        session.forget()
        assert session.loaded is not None
        mlp = session.loaded.model.language_model.layers[0].mlp
        passes, stop_in = [0], [0]

        def count(*_: object) -> None:
            passes[0] += 1
            if passes[0] == stop_in[0]:
                session.cancel()

        with mlp.register_forward_hook(count):
            for event in session.ask(FIRST):
                if isinstance(event, TextDelta):
                    break
        session.forget()
        for stop_in[0] in range(1, passes[0] + 1):
            passes[0] = 0
            with mlp.register_forward_hook(count), contextlib.suppress(Interrupted):
                list(session.ask(FIRST))
            assert ask(session, replace(FIRST, question=NEXT)).text == fresh
            session.forget()
