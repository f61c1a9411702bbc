"""Asking, stopping, asking again: what is on the screen, what the engine gets, and what the history stores."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.pilot import Pilot
from textual.widgets._toast import Toast

from tests.tui.scripted import (
    AppHarness,
    Gate,
    Step,
    ask,
    asked,
    controller,
    in_turn,
    main,
    part,
    pilot_test,
    plays,
    press,
    prompt,
    says,
    screen_text,
    settled,
    shown,
    state,
    streaming,
    until,
)
from vidqa.errors import ModelError
from vidqa.events import Degraded, Noted, OutOfDomain, StageProgress, StageStarted, TextDelta
from vidqa.history.store import FILE_NAME, History
from vidqa.tui.app import VidqaApp
from vidqa.tui.widgets.memory_panel import MemoryPanel
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.transcript import Transcript
from vidqa.types import Plan, Request, Turn, VideoInfo


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
@pilot_test
async def test_stop_shows_stopping_at_once_keeps_the_text_and_the_follow_up_includes_it(key: str) -> None:
    held = Gate()
    harness = AppHarness(in_turn(says("A red square ", before_end=(Gate(),)), says("It moves.")))
    async with harness.running() as pilot:
        await streaming(pilot, "A red square")
        harness.session.hold = held  # the engine takes a while to get to its next chunk
        await pilot.press(key)
        assert "stopping…" in shown(pilot), "without waiting for the engine"
        assert controller(pilot).answering
        held.opened.set()
        await settled(pilot)
        assert "■ stopped" in shown(pilot) and "A red square" in shown(pilot) and "stopping" not in shown(pilot)
        last = controller(pilot).conversation.last
        assert last is not None and (last.state, last.text) == ("stopped", "A red square ")
        await asked(pilot, "and then?")
        assert harness.session.asked[-1].history == (Turn("what is there?", "A red square "),)
        assert "It moves." in shown(pilot) and len(harness.sessions) == 1


@pilot_test
async def test_stopped_before_any_text() -> None:
    before_text = plays(StageStarted("video", 8), StageProgress("video", 2, 8), Gate())
    harness = AppHarness(in_turn(before_text, says("A square.")))
    async with harness.running() as pilot:
        await streaming(pilot, "video 2/8 frames")
        await pilot.press("escape")
        await settled(pilot)
        assert "stopped" in shown(pilot) and state(pilot) == "stopped"
        await asked(pilot, "again")
        assert harness.session.asked[-1].history == (), "without the question that got no answer"


@pilot_test
async def test_ctrl_c_clears_the_prompt_then_hints_and_quits_if_pressed_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("vidqa.tui.app.time", SimpleNamespace(monotonic=lambda: now[0]))
    async with AppHarness(says("x")).running() as pilot:
        prompt(pilot).text = "half a question"
        await pilot.press("ctrl+c")
        assert prompt(pilot).text == "" and not pilot.app._exit
        await pilot.press("up")
        assert prompt(pilot).text == "half a question", "it can be brought back"
        await pilot.press("ctrl+c")
        for seconds in (0.0, 2.1):  # the second one is too late
            now[0] += seconds
            await press(pilot, "ctrl+c", lambda: "Press Ctrl-C again to quit" in shown(pilot), "the hint")
            assert not pilot.app._exit
        now[0] += 1.9
        await pilot.press("ctrl+c")
        assert pilot.app._exit and pilot.app.return_code == 0


@pilot_test
async def test_again_replaces_the_turn_and_samples_another_answer(tmp_path: Path) -> None:
    harness = AppHarness(in_turn(says("First."), says("Second."), says("Third.")))
    async with harness.running(state=tmp_path) as pilot:
        await asked(pilot, "what?")
        await asked(pilot, "and then?")
        await press(pilot, "f5", lambda: len(harness.asked) == 3)
        await settled(pilot)
        second, third = harness.session.asked[1:]
        assert third.question == second.question and third.history == second.history == (Turn("what?", "First."),)
        assert not second.temperature and third.temperature, "greedily it would be the same"
        assert [turn.question for turn in part(pilot, Transcript).turns()] == ["what?", "and then?"]
        assert "Third." in shown(pilot) and "Second." not in shown(pilot)
        number = controller(pilot).conversation.session_id
        assert number is not None
        assert [turn.answer for turn in controller(pilot).history.turns(number)] == ["First.", "Third."]


@pilot_test
async def test_a_stopped_answer_is_asked_again_as_it_was() -> None:
    harness = AppHarness(in_turn(says("A red square", before_end=(Gate(),)), says("All of it.")))
    async with harness.running() as pilot:
        await streaming(pilot, "A red square")
        await pilot.press("escape")
        await settled(pilot)
        await press(pilot, "f5", lambda: len(harness.asked) == 2)
        assert harness.session.asked[1] == harness.session.asked[0]


@pilot_test
async def test_edit_the_last_question_or_cancel() -> None:
    harness = AppHarness(in_turn(says("First."), says("Second.")))
    async with harness.running() as pilot:
        await asked(pilot, "what?")
        await pilot.press("f6")
        assert prompt(pilot).text == "what?" and "Edit the last question" in str(prompt(pilot).border_title)
        await pilot.press("escape")
        assert prompt(pilot).text == "" and prompt(pilot).border_title == "Question" and not main(pilot).editing
        await press(pilot, "f6 end backspace space n o w ? enter", lambda: len(harness.asked) == 2)
        await settled(pilot)
        assert harness.asked[-1] == "what now?" and harness.session.asked[-1].history == ()
        assert [one.question for one in controller(pilot).conversation.exchanges] == ["what now?"]


@pilot_test
async def test_a_second_question_stays_in_the_prompt_while_one_is_answered() -> None:
    harness = AppHarness(says("A red square ", before_end=(Gate(),)))
    async with harness.running() as pilot:
        await streaming(pilot, "A red square")
        prompt(pilot).text = "too early"
        await press(pilot, "enter", lambda: "Another question is being answered." in shown(pilot))
        assert prompt(pilot).text == "too early" and len(harness.asked) == 1


@pilot_test
async def test_an_error_of_the_engine_is_an_entry_with_the_remedy_and_no_notification() -> None:
    fails = plays(TextDelta("A red"), ModelError("The [b]weights[/b] are damaged.", "Fetch anew."))
    harness = AppHarness(in_turn(fails, says("Fine.")))
    async with harness.running() as pilot:
        await asked(pilot)
        assert not pilot.app.screen.query(Toast)
        entry = part(pilot, Transcript).turns()[-1]
        assert entry.text == "A red"
        assert str(entry.status) == "✗ The [b]weights[/b] are damaged.\nFetch anew.", "markup is text"
        assert state(pilot) == "failed"
        await asked(pilot, "again?")
        assert "Fine." in shown(pilot) and len(harness.sessions) == 1, "the same session goes on"


@pilot_test
async def test_a_crash_of_the_engine_leaves_the_app_usable_with_a_new_session(
    capfd: pytest.CaptureFixture[str],
) -> None:
    crashes = plays(RuntimeError("CUDA error: an illegal memory access"))
    harness = AppHarness(in_turn(crashes, says("Fine.")))
    async with harness.running() as pilot:
        await asked(pilot)
        status = str(part(pilot, Transcript).turns()[-1].status)
        assert "RuntimeError: CUDA error: an illegal memory access" in status and "Ask again" in status
        assert harness.sessions[0].closed
        await asked(pilot, "again?")
        assert "Fine." in shown(pilot)
        assert len(harness.sessions) == 2 and harness.asked == ["again?"]
    assert "illegal memory access" in capfd.readouterr().err, "the traceback is in the log"


@pilot_test
async def test_degrade_steps_and_notes_appear_as_they_happen() -> None:
    gate = Gate()

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        steps = (Noted("damaged [red]after 2 s"), Degraded("prefill", "half the frames", plan), gate)
        return says("A square.", after_start=steps)(request, plan, video)  # type: ignore[return-value]

    async with AppHarness(script).running() as pilot:
        await ask(pilot)
        await until(pilot, lambda: "prefill ran out of memory" in shown(pilot), "the step, before the answer")
        assert controller(pilot).answering and "note: damaged [red]after 2 s" in shown(pilot)
        assert "half the frames" in part(pilot, MemoryPanel).render().plain
        gate.opened.set()
        await settled(pilot)
        assert "A square." in shown(pilot) and "prefill ran out of memory" in shown(pilot)


@pilot_test
async def test_a_video_that_the_model_cannot_know_is_said_above_and_below_the_answer_and_in_no_toast() -> None:
    gate, warning = Gate(), OutOfDomain("drawn\x1b[2J [red]shapes", "`vidqa pull 3-vl-4b` fits here.")

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        return says("Two buses.", after_start=(warning, gate))(request, plan, video)  # type: ignore[return-value]

    def sentences(pilot: Pilot[int]) -> list[int]:
        return [row for row, line in enumerate(screen_text(pilot.app).splitlines()) if "The demo model knows" in line]

    async with AppHarness(script).running(size=(240, 40)) as pilot:
        await ask(pilot)
        await until(pilot, lambda: bool(sentences(pilot)), "the warning, before the answer")
        assert len(sentences(pilot)) == 1
        assert controller(pilot).answering and "`vidqa pull 3-vl-4b` fits here." in shown(pilot)
        assert "\\x1b[2J [red]shapes" in shown(pilot)
        gate.opened.set()
        await settled(pilot)
        above, below = sentences(pilot)
        answer = next(row for row, line in enumerate(screen_text(pilot.app).splitlines()) if "Two buses." in line)
        assert above < answer < below
        assert not pilot.app._notifications


@pilot_test
async def test_a_time_in_an_answer_moves_the_cursor_by_mouse_and_by_key() -> None:
    async with AppHarness(says("At 0:01 and at 0:03, see [it](https://example.org).")).running() as pilot:
        await asked(pilot)
        timeline, lines = part(pilot, Timeline), screen_text(pilot.app).splitlines()
        row = next(number for number, line in enumerate(lines) if "At 0:01 and" in line)
        await pilot.click(offset=(lines[row].index("0:03") + 1, row))
        await until(pilot, lambda: timeline.cursor == 3.0, "the cursor moved")
        await pilot.click(offset=(lines[row].index("see it") + 5, row))
        part(pilot, Transcript).focus()
        await pilot.press("t")
        assert timeline.cursor == 1.0
        await pilot.press("t", "t")
        assert timeline.cursor == 1.0, "around"


@pilot_test
async def test_up_and_down_go_through_earlier_questions() -> None:
    async with AppHarness(says("x")).running() as pilot:
        await asked(pilot, "one?")
        await asked(pilot, "two?")
        seen = []
        for key in ("up", "up", "up", "down", "down"):
            await pilot.press(key)
            seen.append(prompt(pilot).text)
        assert seen == ["two?", "one?", "one?", "two?", ""]


@pilot_test
async def test_quitting_while_an_answer_streams_saves_its_text(tmp_path: Path) -> None:
    async with AppHarness(says("A red square ", before_end=(Gate(),))).running(state=tmp_path) as pilot:
        await streaming(pilot, "A red square")
        worker = controller(pilot).session_worker
        await pilot.press("ctrl+q")
        assert pilot.app._exit
    while worker.busy:
        await asyncio.sleep(0.01)
    history = History(tmp_path / FILE_NAME)
    (session,) = history.sessions(10)
    assert [(turn.state, turn.answer) for turn in history.turns(session.id)] == [("stopped", "A red square ")]
    history.close()


@pilot_test
async def test_garbage_is_collected_after_an_answer_on_a_real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    collector = SimpleNamespace(
        collect=lambda: calls.append("collect"), freeze=lambda: calls.append("freeze"), unfreeze=bool
    )
    async with AppHarness(says("x")).running() as pilot:
        monkeypatch.setattr("vidqa.tui.app.gc", collector)
        monkeypatch.setattr(VidqaApp, "is_headless", False)
        await asked(pilot)
        await until(pilot, lambda: calls[-2:] == ["collect", "freeze"], "a collection")
