"""The session worker by itself: order, stops, streamed text, and what happens to a session that breaks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from textual.message import Message

from tests.tui.scripted import DEMO, AppHarness, Gate, demo_video, plays, says
from vidqa.config import EngineConfig
from vidqa.errors import Interrupted
from vidqa.events import Answered, MemorySampled, StageProgress, StageStarted, TextDelta
from vidqa.history.conversation import Exchange, StreamingText
from vidqa.tui.session_worker import SessionFactory, SessionWorker
from vidqa.tui.worker_messages import (
    DeviceMemoryRead,
    EngineEvent,
    JobEnded,
    MemoryMeasured,
    Progressed,
    SessionJob,
    TextWaiting,
)
from vidqa.types import Answer, Request

CONFIG = EngineConfig(model="Qwen/Qwen2-VL-2B-Instruct", remember=False)
SECONDS = 10.0


@dataclass
class MessageLog:
    """The messages so far, in order; `wait` for one."""

    messages: list[Message] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def post(self, message: Message) -> None:
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def wait(self, condition: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: bool(condition()), SECONDS), self.messages

    def wait_for_ends(self, count: int) -> list[JobEnded]:
        self.wait(lambda: len(self.ends()) == count)
        return self.ends()

    def ends(self) -> list[JobEnded]:
        return [one for one in self.messages if isinstance(one, JobEnded)]


@contextmanager
def running(
    factory: SessionFactory, post: Callable[[Message], None] | None = None, *, probed: bool = True
) -> Iterator[tuple[SessionWorker, MessageLog]]:
    """A worker whose thread runs, and has ended afterwards; `probed` if its session has planned for the demo."""
    log = MessageLog()
    worker = SessionWorker(factory, CONFIG, lambda message: (post and post(message), log.post(message)))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        if probed:
            worker.session().forecast(demo_video(), request("what?"))
        yield worker, log
    finally:
        worker.close()
        thread.join(SECONDS)
        assert not thread.is_alive()


def request(question: str) -> Request:
    return Request(video=DEMO, question=question)


def job(question: str, **more: Any) -> SessionJob:
    return SessionJob(request(question), CONFIG, Exchange(question, None), **more)


def test_jobs_run_one_after_the_other_in_the_order_given() -> None:
    harness = AppHarness(says("Yes."))
    with running(harness.make) as (worker, log):
        jobs = [job(str(number)) for number in range(5)]
        for one in jobs:
            worker.submit(one)
        assert [one.job for one in log.wait_for_ends(5)] == jobs and not worker.busy
        assert harness.asked == list("01234")
        of_events = [one.job for one in log.messages if isinstance(one, EngineEvent)]
        assert of_events == sorted(of_events, key=jobs.index), "nothing of a job comes after its end"
    assert harness.session.closed and len(harness.sessions) == 1


def test_a_new_question_waits_for_the_end_of_the_stopped_one() -> None:
    harness = AppHarness(says("A", before_end=(Gate(),)))
    with running(harness.make) as (worker, log):
        first, second = job("first"), job("second")
        harness.session.hold = Gate()
        worker.submit(first)
        log.wait(lambda: first.streamed.text)
        worker.stop()
        worker.submit(second)
        assert harness.asked == ["first"] and worker.busy
        harness.session.hold.opened.set()
        log.wait(lambda: second.streamed.text)
        assert [one.job for one in log.ends()] == [first], "the stop was for the first one alone"
        assert not second.stopped.is_set()


def test_what_is_stopped_before_it_starts_never_reaches_the_engine() -> None:
    harness = AppHarness(says("A", before_end=(Gate(),)))
    with running(harness.make) as (worker, log):
        jobs = [job("runs"), job("waits")]
        for one in jobs:
            worker.submit(one)
        log.wait(lambda: jobs[0].streamed.text)
        worker.stop()
        assert isinstance(log.wait_for_ends(2)[1].error, Interrupted) and harness.asked == ["runs"]


def test_a_stop_between_the_check_and_the_ask_is_not_lost() -> None:
    """`Session.ask` resets an earlier cancel: one that comes just then must still stop it."""
    harness, one = AppHarness(plays(Gate())), job("what?")
    with running(harness.make) as (worker, log):
        plain = harness.session.ask

        def ask(request: Request) -> Iterator[Any]:
            events = plain(request)
            one.stopped.set()  # as SessionWorker.stop does, after the worker checked it
            return events

        harness.session.ask = ask  # type: ignore[method-assign]
        worker.submit(one)
        assert isinstance(log.wait_for_ends(1)[0].error, Interrupted)


def test_text_is_joined_until_it_is_taken() -> None:
    pieces = [TextDelta(f"word{number} ") for number in range(1000)]
    with running(AppHarness(plays(*pieces, Gate())).make) as (worker, log):
        one = job("what?")
        worker.submit(one)
        log.wait(lambda: "word999" in one.streamed.text)
        assert sum(isinstance(message, TextWaiting) for message in log.messages) == 1
        assert one.streamed.take() == "".join(piece.text for piece in pieces) and one.streamed.take() == ""


def test_streaming_text_reports_the_first_piece_after_each_take_and_saves_about_once_a_second() -> None:
    saved: list[str] = []
    streamed = StreamingText(saved.append)
    assert [streamed.add("a"), streamed.add("b"), streamed.add("")] == [True, False, False]
    assert streamed.take() == "ab"
    assert [streamed.add(""), streamed.add("c")] == [False, True]
    assert streamed.text == "abc" and streamed.take() == "c"
    assert saved == ["a"], "and not again within a second"


def test_an_answer_is_saved_before_the_screen_gets_it() -> None:
    order: list[str] = []

    def post(message: Message) -> None:
        if isinstance(message, EngineEvent) and isinstance(message.event, Answered):
            order.append("posted")

    def save(answer: Answer) -> None:
        order.append(f"saved {answer.text}")

    with running(AppHarness(says("Yes.")).make, post) as (worker, log):
        worker.submit(job("what?", save=save))
        log.wait_for_ends(1)
    assert order == ["saved Yes.", "posted"]


def test_a_session_that_cannot_be_created_fails_the_job_and_is_tried_again() -> None:
    harness, broken = AppHarness(says("Yes.")), [OSError("libcuda.so.1: cannot open shared object file")]

    def make(config: EngineConfig) -> Any:
        if broken:
            raise broken.pop()
        return harness.make(config)

    with running(make, probed=False) as (worker, log):
        worker.submit(job("first"))
        error = log.wait_for_ends(1)[0].error
        assert error is not None and "libcuda.so.1" in error.what
        worker.session().forecast(demo_video(), request("what?"))
        worker.submit(job("second"))
        assert log.wait_for_ends(2)[1].error is None


def test_only_loading_asks_nothing() -> None:
    harness = AppHarness(says("no"), loads=plays(StageStarted("load", 10), StageProgress("load", 10, 10)))
    with running(harness.make) as (worker, log):
        worker.submit(SessionJob(request("what?"), CONFIG))
        assert log.wait_for_ends(1)[0].error is None and harness.asked == []
        assert any(isinstance(one, Progressed) for one in log.messages)


def test_newer_progress_and_memory_replace_older_ones_of_their_kind_and_other_messages_never() -> None:
    one = job("what?")
    video, video_on = Progressed(one, StageProgress("video", 1, 8)), Progressed(one, StageProgress("video", 2, 8))
    prefill = Progressed(one, StageProgress("prefill", 1, 8))
    memory = MemoryMeasured(MemorySampled("prefill", 1, 1, 0))
    assert video_on.can_replace(video) and memory.can_replace(memory)
    assert DeviceMemoryRead(1, 1).can_replace(DeviceMemoryRead(2, 2))
    assert not prefill.can_replace(video) and not memory.can_replace(video) and not video.can_replace(memory)
    for kept in (EngineEvent(one, StageStarted("video", 8)), TextWaiting(one), JobEnded(one, None)):
        assert not kept.can_replace(kept)
