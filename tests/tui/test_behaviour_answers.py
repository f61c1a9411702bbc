"""Asking, stopping, asking again: what is on the screen, what the engine is asked, and what the history keeps."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.pilot import Pilot

from tests.tui.scripted import (
    Gate,
    Script,
    Stage,
    Step,
    answer_to,
    ask,
    asked,
    main,
    pilot_test,
    says,
    screen_text,
    settled,
    shown,
    until,
)
from vidqa.errors import ModelError
from vidqa.events import Answered, Degraded, Noted, Planned, StageProgress, StageStarted, TextDelta
from vidqa.history.store import FILE_NAME, History
from vidqa.tui.controller import Controller
from vidqa.tui.widgets.memory_panel import MemoryPanel
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.transcript import Transcript
from vidqa.types import Plan, Request, Turn, VideoInfo


def desk(pilot: Pilot[int]) -> Controller:
    return main(pilot).desk


async def streaming(pilot: Pilot[int], text: str, question: str = "what is there?") -> None:
    """Ask, and wait until some text is drawn."""
    await ask(pilot, question)
    await until(pilot, lambda: text in shown(pilot), "the text is drawn")


def in_turn(*scripts: Script) -> Script:
    """Another script for each question; the last one for all that follow."""
    left = list(scripts)

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        return (left.pop(0) if len(left) > 1 else left[0])(request, plan, video)

    return script


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
@pilot_test
async def test_stop_shows_stopping_at_once_keeps_the_text_and_the_follow_up_knows_it(key: str) -> None:
    gate, held = Gate(), Gate()

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        return says("A red square ", before_end=(gate,))(request, plan, video)

    stage = Stage(in_turn(script, says("It moves.")))
    async with stage.running() as pilot:
        await streaming(pilot, "A red square")
        stage.session.hold = held  # the engine needs a while to get to its next chunk
        await pilot.press(key)
        assert "stopping…" in shown(pilot), "without waiting for the engine"
        assert desk(pilot).answering
        held.opened.set()
        await settled(pilot)
        assert "■ stopped" in shown(pilot) and "A red square" in shown(pilot) and "stopping" not in shown(pilot)
        last = desk(pilot).conversation.last
        assert last is not None and (last.state, last.text) == ("stopped", "A red square ")
        await asked(pilot, "and then?")
        assert stage.session.asked[-1].history == (Turn("what is there?", "A red square "),)
        assert "It moves." in shown(pilot) and len(stage.sessions) == 1


@pilot_test
async def test_stopped_before_any_text() -> None:
    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        return [Planned(video, plan), StageStarted("video", 8), StageProgress("video", 2, 8), Gate()]

    stage = Stage(in_turn(script, says("A square.")))
    async with stage.running() as pilot:
        await streaming(pilot, "video 2/8 frames")
        await pilot.press("escape")
        await settled(pilot)
        assert "stopped" in shown(pilot) and desk(pilot).conversation.last.state == "stopped"  # type: ignore[union-attr]
        await asked(pilot, "again")
        assert stage.session.asked[-1].history == (), "a question without any answer is not told"


@pilot_test
async def test_ctrl_c_empties_the_prompt_then_hints_once_then_quits() -> None:
    async with Stage(says("x")).running() as pilot:
        prompt = main(pilot).query_one(QuestionInput)
        prompt.text = "half a question"
        await pilot.press("ctrl+c")
        assert prompt.text == "" and not pilot.app._exit
        await pilot.press("up")
        assert prompt.text == "half a question", "it can be brought back"
        await pilot.press("ctrl+c")
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "Press Ctrl-C again to quit" in shown(pilot), "the hint")
        assert not pilot.app._exit
        await pilot.press("ctrl+c")
        assert pilot.app._exit and pilot.app.return_code == 0


@pilot_test
async def test_the_hint_comes_anew_when_the_second_ctrl_c_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("vidqa.tui.app.time", SimpleNamespace(monotonic=lambda: now[0]))
    async with Stage(says("x")).running() as pilot:
        await pilot.press("ctrl+c")
        now[0] += 2.1
        await pilot.press("ctrl+c")
        assert not pilot.app._exit
        now[0] += 1.9
        await pilot.press("ctrl+c")
        assert pilot.app._exit


@pilot_test
async def test_again_replaces_the_turn_and_samples_anew(tmp_path: Path) -> None:
    stage = Stage(in_turn(says("First."), says("Second."), says("Third.")))
    async with stage.running(state=tmp_path) as pilot:
        await asked(pilot, "what?")
        await asked(pilot, "and then?")
        await pilot.press("f5")
        await until(pilot, lambda: len(stage.session.asked) == 3, "asked again")
        await settled(pilot)
        second, third = stage.session.asked[1:]
        assert third.question == second.question and third.history == second.history == (Turn("what?", "First."),)
        assert not second.temperature and third.temperature, "greedily it would be the same"
        assert [turn.question for turn in main(pilot).query_one(Transcript).turns()] == ["what?", "and then?"]
        assert "Third." in shown(pilot) and "Second." not in shown(pilot)
        number = desk(pilot).conversation.session_id
        assert number is not None
        assert [turn.answer for turn in desk(pilot).history.turns(number)] == ["First.", "Third."]


@pilot_test
async def test_a_stopped_answer_is_asked_again_as_it_was() -> None:
    stage = Stage(in_turn(says("A red square", before_end=(Gate(),)), says("All of it.")))
    async with stage.running() as pilot:
        await streaming(pilot, "A red square")
        await pilot.press("escape")
        await settled(pilot)
        await pilot.press("f5")
        await until(pilot, lambda: len(stage.session.asked) == 2, "asked again")
        assert stage.session.asked[1] == stage.session.asked[0]


@pilot_test
async def test_edit_the_last_question_or_leave_it() -> None:
    stage = Stage(in_turn(says("First."), says("Second.")))
    async with stage.running() as pilot:
        prompt = main(pilot).query_one(QuestionInput)
        await asked(pilot, "what?")
        await pilot.press("f6")
        assert prompt.text == "what?" and "Edit the last question" in str(prompt.border_title)
        await pilot.press("escape")
        assert prompt.text == "" and prompt.border_title == "Question" and not main(pilot).editing
        await pilot.press("f6", "end", "backspace", *" now?", "enter")
        await until(pilot, lambda: len(stage.session.asked) == 2, "asked")
        await settled(pilot)
        assert stage.session.asked[-1].question == "what now?" and stage.session.asked[-1].history == ()
        assert [one.question for one in desk(pilot).conversation.exchanges] == ["what now?"]


@pilot_test
async def test_a_second_question_waits_in_the_prompt_while_one_is_answered() -> None:
    stage = Stage(says("A red square ", before_end=(Gate(),)))
    async with stage.running() as pilot:
        await streaming(pilot, "A red square")
        prompt = main(pilot).query_one(QuestionInput)
        prompt.text = "too early"
        await pilot.press("enter")
        await until(pilot, lambda: "Another answer is on its way." in shown(pilot), "told")
        assert prompt.text == "too early" and len(stage.session.asked) == 1


@pilot_test
async def test_an_error_of_the_engine_is_a_toast_and_an_entry_with_the_remedy() -> None:
    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        return [Planned(video, plan), TextDelta("A red"), ModelError("The [b]weights[/b] are damaged.", "Fetch anew.")]

    stage = Stage(in_turn(script, says("Fine.")))
    async with stage.running() as pilot:
        await asked(pilot)
        await until(pilot, lambda: "No answer" in shown(pilot), "a toast")
        entry = main(pilot).query_one(Transcript).turns()[-1]
        assert entry.text == "A red"
        assert str(entry._said) == "✗ The [b]weights[/b] are damaged.\nFetch anew.", "markup is text"
        assert desk(pilot).conversation.last.state == "failed"  # type: ignore[union-attr]
        await asked(pilot, "again?")
        assert "Fine." in shown(pilot) and len(stage.sessions) == 1, "the same session goes on"


@pilot_test
async def test_a_crash_of_the_engine_leaves_the_app_usable_with_a_new_session(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        return [Planned(video, plan), RuntimeError("CUDA error: an illegal memory access")]

    stage = Stage(in_turn(script, says("Fine.")))
    async with stage.running() as pilot:
        await asked(pilot)
        told = str(main(pilot).query_one(Transcript).turns()[-1]._said)
        assert "RuntimeError: CUDA error: an illegal memory access" in told and "Ask again" in told
        assert stage.sessions[0].closed
        await asked(pilot, "again?")
        assert "Fine." in shown(pilot)
        assert len(stage.sessions) == 2 and [one.question for one in stage.session.asked] == ["again?"]
    assert "illegal memory access" in capfd.readouterr().err, "the traceback is in the log"


@pilot_test
async def test_degrade_steps_and_notes_appear_as_they_happen() -> None:
    gate = Gate()

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        steps = (Noted("damaged [red]after 2 s"), Degraded("prefill", "half the frames", plan), gate)
        return says("A square.", after_start=steps)(request, plan, video)

    async with Stage(script).running() as pilot:
        await ask(pilot)
        await until(pilot, lambda: "prefill ran out of memory" in shown(pilot), "the step, before the answer")
        assert desk(pilot).answering and "note: damaged [red]after 2 s" in shown(pilot)
        assert "half the frames" in main(pilot).query_one(MemoryPanel).render().plain
        gate.opened.set()
        await settled(pilot)
        assert "A square." in shown(pilot) and "prefill ran out of memory" in shown(pilot)


@pilot_test
async def test_the_size_changes_while_the_answer_streams() -> None:
    gate = Gate()

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        more = [TextDelta("and a blue circle. "), Answered(answer_to(request, plan, video, "A red square and more."))]
        return [Planned(video, plan), TextDelta("A red square "), gate, *more]

    async with Stage(script).running() as pilot:
        await streaming(pilot, "A red square")
        for size in ((60, 20), (39, 9), (200, 60), (80, 24)):
            await pilot.resize_terminal(*size)
            await until(pilot, lambda size=size: pilot.app.size == size, "the size")
            told = shown(pilot)
            assert ("vidqa needs 40×10" in told) if size == (39, 9) else ("A red square" in told)
        gate.opened.set()
        await settled(pilot)
        assert "A red square and more." in shown(pilot)


@pilot_test
async def test_a_time_in_an_answer_moves_the_cursor_by_mouse_and_by_key() -> None:
    async with Stage(says("At 0:01 and at 0:03, see [it](https://example.org).")).running() as pilot:
        await asked(pilot)
        timeline = main(pilot).query_one(Timeline)
        lines = screen_text(pilot.app).splitlines()
        row = next(place for place, line in enumerate(lines) if "At 0:01 and" in line)
        await pilot.click(offset=(lines[row].index("0:03") + 1, row))
        await until(pilot, lambda: timeline.cursor == 3.0, "the cursor moved")
        await pilot.click(offset=(lines[row].index("see it") + 5, row))
        main(pilot).query_one(Transcript).focus()
        await pilot.press("t")
        assert timeline.cursor == 1.0
        await pilot.press("t", "t")
        assert timeline.cursor == 1.0, "around"


@pilot_test
async def test_up_and_down_go_through_earlier_questions() -> None:
    async with Stage(says("x")).running() as pilot:
        for question in ("one?", "two?"):
            await asked(pilot, question)
        prompt, seen = main(pilot).query_one(QuestionInput), []
        for key in ("up", "up", "up", "down", "down"):
            await pilot.press(key)
            seen.append(prompt.text)
        assert seen == ["two?", "one?", "one?", "two?", ""]


@pilot_test
async def test_quitting_while_an_answer_streams_keeps_its_text(tmp_path: Path) -> None:
    async with Stage(says("A red square ", before_end=(Gate(),))).running(state=tmp_path) as pilot:
        await streaming(pilot, "A red square")
        bridge = desk(pilot).bridge
        await pilot.press("ctrl+q")
        assert pilot.app._exit
    while bridge.busy:
        await asyncio.sleep(0.01)
    history = History(tmp_path / FILE_NAME)
    (session,) = history.sessions(10)
    assert [(turn.state, turn.answer) for turn in history.turns(session.id)] == [("stopped", "A red square ")]
    history.close()
