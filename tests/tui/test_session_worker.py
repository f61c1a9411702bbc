"""The bridge by itself: order, stops, text in pieces, and what happens to a session that breaks."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from textual.message import Message

from tests.tui.scripted import DEMO, Gate, Script, Stage, Step, demo_video, says
from vidqa.config import EngineConfig
from vidqa.errors import Interrupted, UsageError
from vidqa.events import Answered, MemorySampled, Planned, StageProgress, StageStarted, TextDelta
from vidqa.tui.conversation import Exchange
from vidqa.tui.session_worker import SessionJob, SessionWorker, StreamingText
from vidqa.tui.worker_messages import EngineEvent, JobEnded, MemoryMeasured, ModelsListed, Progressed, TextWaiting
from vidqa.types import Answer, Plan, Request, VideoInfo

CONFIG = EngineConfig(model="Qwen/Qwen2-VL-2B-Instruct", remember=False)
SECONDS = 10.0


@dataclass
class Told:
    """The messages so far, in order; `wait` for one."""

    messages: list[Message] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def post(self, message: Message) -> None:
        with self.came:
            self.messages.append(message)
            self.came.notify_all()

    def wait(self, condition: Callable[[], object]) -> None:
        with self.came:
            assert self.came.wait_for(lambda: bool(condition()), SECONDS), self.messages

    def ends(self) -> list[JobEnded]:
        return [one for one in self.messages if isinstance(one, JobEnded)]

    def events(self) -> list[Any]:
        return [one.event for one in self.messages if isinstance(one, EngineEvent)]


@contextmanager
def running(stage: Stage) -> Iterator[tuple[SessionWorker, Told]]:
    """A bridge whose thread runs, and has ended afterwards."""
    told = Told()
    bridge = SessionWorker(stage.make, CONFIG, told.post)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    try:
        bridge.session().forecast(demo_video(), request("what?"))
        yield bridge, told
    finally:
        bridge.leave()
        thread.join(SECONDS)
        assert not thread.is_alive()


def request(question: str) -> Request:
    return Request(video=DEMO, question=question)


def job(question: str, **more: Any) -> SessionJob:
    return SessionJob(request(question), CONFIG, Exchange(question, None), **more)


def scene(*steps: Step) -> Script:
    """The same steps for every question, after its plan."""

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        return [Planned(video, plan), *steps]

    return script


def test_jobs_run_one_after_the_other_in_the_order_given() -> None:
    stage = Stage(says("Yes."))
    with running(stage) as (bridge, told):
        jobs = [job(str(number)) for number in range(5)]
        for one in jobs:
            bridge.submit(one)
        told.wait(lambda: len(told.ends()) == 5)
        assert [one.job for one in told.ends()] == jobs and not bridge.busy
        assert [one.question for one in stage.session.asked] == list("01234")
        of_events = [one.job for one in told.messages if isinstance(one, EngineEvent)]
        assert of_events == sorted(of_events, key=jobs.index), "nothing of a job comes after its end"
    assert stage.session.closed and len(stage.sessions) == 1


def test_a_new_question_waits_for_the_end_of_the_stopped_one() -> None:
    stage = Stage(says("A", before_end=(Gate(),)))
    with running(stage) as (bridge, told):
        first, second = job("first"), job("second")
        stage.session.hold = Gate()
        bridge.submit(first)
        told.wait(lambda: first.run_config.text)
        bridge.stop()
        bridge.submit(second)
        assert [one.question for one in stage.session.asked] == ["first"] and bridge.busy
        stage.session.hold.opened.set()
        told.wait(lambda: second.run_config.text)
        assert [one.job for one in told.ends()] == [first], "the stop was for the first one alone"
        assert not second.stopped.is_set()


def test_what_is_stopped_before_it_starts_never_reaches_the_engine() -> None:
    stage = Stage(says("A", before_end=(Gate(),)))
    with running(stage) as (bridge, told):
        jobs = [job("runs"), job("waits")]
        for one in jobs:
            bridge.submit(one)
        told.wait(lambda: jobs[0].run_config.text)
        bridge.stop()
        told.wait(lambda: len(told.ends()) == 2)
        assert [one.question for one in stage.session.asked] == ["runs"]
        assert isinstance(told.ends()[1].error, Interrupted)


def test_a_stop_between_the_look_and_the_ask_is_not_lost() -> None:
    """`Session.ask` forgets an earlier cancel: one that comes just then must still stop it."""
    stage = Stage(scene(Gate()))

    one = job("what?")
    with running(stage) as (bridge, told):
        plain = stage.session.ask

        def ask(request: Request) -> Iterator[Any]:
            events = plain(request)
            one.stopped.set()  # as Bridge.stop does, after the bridge looked
            return events

        stage.session.ask = ask  # type: ignore[method-assign]
        bridge.submit(one)
        told.wait(told.ends)
        assert isinstance(told.ends()[0].error, Interrupted)


def test_text_is_joined_until_it_is_taken() -> None:
    pieces = [TextDelta(f"word{number} ") for number in range(1000)]
    stage = Stage(scene(*pieces, Gate()))
    with running(stage) as (bridge, told):
        one = job("what?")
        bridge.submit(one)
        told.wait(lambda: "word999" in one.run_config.text)
        assert sum(isinstance(message, TextWaiting) for message in told.messages) == 1
        assert one.run_config.take() == "".join(piece.text for piece in pieces) and one.run_config.take() == ""


def test_a_draft_tells_of_the_first_piece_after_each_take_and_keeps_about_once_a_second() -> None:
    kept: list[str] = []
    run_config = StreamingText(kept.append)
    assert [run_config.add("a"), run_config.add("b"), run_config.add("")] == [True, False, False]
    assert run_config.take() == "ab"
    assert [run_config.add(""), run_config.add("c")] == [False, True]
    assert run_config.text == "abc" and run_config.take() == "c"
    assert kept == ["a"], "and not again within a second"


def test_an_answer_is_saved_before_the_screen_hears_of_it() -> None:
    order: list[str] = []
    stage = Stage(says("Yes."))
    told = Told()

    def post(message: Message) -> None:
        if isinstance(message, EngineEvent) and isinstance(message.event, Answered):
            order.append("told")
        told.post(message)

    def save(answer: Answer) -> None:
        order.append(f"saved {answer.text}")

    bridge = SessionWorker(stage.make, CONFIG, post)
    bridge.session().forecast(demo_video(), request("what?"))
    bridge.submit(job("what?", save=save))
    thread = threading.Thread(target=bridge.run)
    thread.start()
    told.wait(told.ends)
    bridge.leave()
    thread.join(SECONDS)
    assert order == ["saved Yes.", "told"]


def test_an_error_keeps_the_session_and_a_crash_discards_it() -> None:
    steps: list[Exception] = [UsageError("There is no such part."), RuntimeError("illegal memory access")]
    stage = Stage(lambda *_: [steps.pop(0)])
    with running(stage) as (bridge, told):
        bridge.submit(job("error"))
        told.wait(lambda: len(told.ends()) == 1)
        assert isinstance(told.ends()[0].error, UsageError) and not stage.session.closed
        bridge.submit(job("crash"))
        told.wait(lambda: len(told.ends()) == 2)
        crash = told.ends()[1].error
        assert crash is not None and "RuntimeError: illegal memory access" in crash.what and "Ask again" in crash.remedy
        assert stage.sessions[0].closed
        assert bridge.session() is stage.sessions[1], "the next one is new"


def test_a_session_that_cannot_be_made_is_an_error_of_the_job_and_tried_again() -> None:
    stage, broken = Stage(says("Yes.")), [OSError("libcuda.so.1: cannot open shared object file")]

    def make(config: EngineConfig) -> Any:
        if broken:
            raise broken.pop()
        return stage.make(config)

    told = Told()
    bridge = SessionWorker(make, CONFIG, told.post)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    bridge.submit(job("first"))
    told.wait(told.ends)
    error = told.ends()[0].error
    assert error is not None and "libcuda.so.1" in error.what
    bridge.session().forecast(demo_video(), request("what?"))
    bridge.submit(job("second"))
    told.wait(lambda: len(told.ends()) == 2)
    bridge.leave()
    thread.join(SECONDS)
    assert told.ends()[1].error is None


def test_only_loading_asks_nothing() -> None:
    stage = Stage(says("no"), loads=scene(StageStarted("load", 10), StageProgress("load", 10, 10)))
    with running(stage) as (bridge, told):
        bridge.submit(SessionJob(request("what?"), CONFIG))
        told.wait(told.ends)
        assert stage.session.asked == [] and told.ends()[0].error is None
        assert any(isinstance(one, Progressed) for one in told.messages)


def test_noisy_messages_give_way_to_newer_ones_of_their_kind_and_others_never() -> None:
    one = job("what?")
    video, video_on = Progressed(one, StageProgress("video", 1, 8)), Progressed(one, StageProgress("video", 2, 8))
    prefill = Progressed(one, StageProgress("prefill", 1, 8))
    memory = MemoryMeasured(MemorySampled("prefill", 1, 1, 0))
    assert (
        video_on.can_replace(video)
        and memory.can_replace(memory)
        and ModelsListed(1, 1).can_replace(ModelsListed(2, 2))
    )
    assert not prefill.can_replace(video) and not memory.can_replace(video) and not video.can_replace(memory)
    for kept in (EngineEvent(one, StageStarted("video", 8)), TextWaiting(one), JobEnded(one, None)):
        assert not kept.can_replace(kept)
