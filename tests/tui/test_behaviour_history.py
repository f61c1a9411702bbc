"""What is kept and taken away: history, export, clipboard; and terminals that show less."""

import json
import sqlite3
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from tests.tui.scripted import DEMO, Stage, asked, main, pilot_test, says, screen_text, settled, shown, until
from vidqa.history.store import FILE_NAME, History
from vidqa.tui.controller import Controller
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.screens.select_dialog import SelectDialog
from vidqa.tui.widgets.answer_text import AnswerSection
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.transcript import Transcript
from vidqa.types import Turn

ANSWER = "A **red** square\nat 0:02."


def desk(pilot: Pilot[int]) -> Controller:
    return main(pilot).desk


async def history_opened(pilot: Pilot[int]) -> HistoryBrowser:
    await pilot.press("f4")
    await until(pilot, lambda: isinstance(pilot.app.screen, HistoryBrowser), "the history")
    screen = pilot.app.screen
    assert isinstance(screen, HistoryBrowser)
    await until(pilot, lambda: screen.query_one(OptionList).option_count, "the list")
    return screen


def titles(screen: HistoryBrowser) -> list[str]:
    return [session.title for session in screen._found]


# History


@pilot_test
async def test_a_conversation_is_found_again_tomorrow_and_goes_on(tmp_path: Path) -> None:
    async with Stage(says(ANSWER)).running(state=tmp_path) as pilot:
        await asked(pilot, "what is red?")
    stage = Stage(says("It stops."))
    async with stage.running(state=tmp_path) as pilot:
        await history_opened(pilot)
        await pilot.press("enter")
        await until(
            pilot, lambda: "what is red?" in shown(pilot) and "A red square" in shown(pilot), "the conversation"
        )
        await until(pilot, lambda: desk(pilot).forecast is not None and not desk(pilot).bridge.busy, "its plan")
        assert desk(pilot).video is not None and desk(pilot).video.path == DEMO
        assert "51 tokens" in shown(pilot), "with its figures"
        await asked(pilot, "and then?")
        assert stage.session.asked[0].history == (Turn("what is red?", ANSWER),)
        prompt = main(pilot).query_one(QuestionInput)
        await pilot.press("up", "up")
        assert prompt.text == "what is red?"
    history = History(tmp_path / FILE_NAME)
    assert [session.turn_count for session in history.sessions(10)] == [2], "it is one conversation"
    history.close()


@pilot_test
async def test_search_open_and_delete(tmp_path: Path) -> None:
    async with Stage(says(ANSWER)).running(state=tmp_path) as pilot:
        for question in ("what is 100% red?", "who moves?"):
            await asked(pilot, question)
            await pilot.press("ctrl+n")
            await until(pilot, lambda: not desk(pilot).conversation.exchanges, "a new conversation")
        screen = await history_opened(pilot)
        assert titles(screen) == ["who moves?", "what is 100% red?"], "newest first"
        search = screen.query_one(Input)
        for text, found in (
            ("0% R", ["what is 100% red?"]),
            ("_", []),
            ("square", ["who moves?", "what is 100% red?"]),
        ):
            search.value = text
            await until(pilot, lambda found=found: titles(screen) == found, f"what is found for {text}")
        search.value = "moves"
        await until(pilot, lambda: titles(screen) == ["who moves?"], "one")
        await pilot.press("down", "delete")
        await until(pilot, lambda: "Press Delete again" in shown(pilot), "it asks")
        assert titles(screen) == ["who moves?"]
        await pilot.press("delete")
        await until(pilot, lambda: "nothing found" in shown(pilot), "it is gone")
        assert [session.title for session in desk(pilot).history.sessions(10)] == ["what is 100% red?"]


@pilot_test
async def test_a_conversation_deleted_while_it_is_open_can_go_on(tmp_path: Path) -> None:
    async with Stage(says(ANSWER)).running(state=tmp_path) as pilot:
        await asked(pilot, "first?")
        screen = await history_opened(pilot)
        await pilot.press("down", "delete", "delete")
        await until(pilot, lambda: titles(screen) == [], "it is gone")
        await pilot.press("escape")
        await asked(pilot, "second?")
        assert desk(pilot).conversation.exchanges[-1].state == "answered"
        (session,) = desk(pilot).history.sessions(10)
        assert [turn.question for turn in desk(pilot).history.turns(session.id)] == ["second?"]


@pilot_test
async def test_the_last_turn_is_deleted_from_the_history_too(tmp_path: Path) -> None:
    stage = Stage(says(ANSWER))
    async with stage.running(state=tmp_path) as pilot:
        await asked(pilot, "first?")
        await asked(pilot, "second?")
        main(pilot).query_one(Transcript).focus()
        await pilot.press("delete")
        await until(pilot, lambda: "second?" not in shown(pilot), "it is gone")
        number = desk(pilot).conversation.session_id
        assert number is not None
        assert [turn.question for turn in desk(pilot).history.turns(number)] == ["first?"]
        await asked(pilot, "third?")
        assert [turn.question for turn in stage.session.asked[-1].history] == ["first?"]


@pilot_test
async def test_a_history_that_cannot_be_used_is_told_once_and_stops_nobody(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as rows:
        rows.execute("PRAGMA user_version = 999")
    rows.close()
    stage = Stage(says(ANSWER))
    async with stage.running(state=tmp_path) as pilot:
        await asked(pilot, "first?")
        await until(pilot, lambda: "The history is not kept" in shown(pilot), "told")
        pilot.app.clear_notifications()
        await asked(pilot, "second?")
        assert stage.session.asked[1].history == (Turn("first?", ANSWER),)
        assert "The history is not kept" not in shown(pilot)
        for key in ("f4", "ctrl+o"):
            await pilot.press(key)
            await until(pilot, lambda: len(pilot.app._notifications) >= 1, "told when it is asked for")
            assert not isinstance(pilot.app.screen, HistoryBrowser)
            await pilot.press("escape")


# Export and clipboard


@pytest.mark.parametrize(("place", "suffix"), [(0, "md"), (1, "json"), (2, "srt")])
@pilot_test
async def test_export(place: int, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with Stage(says(ANSWER)).running() as pilot:
        await pilot.press("f8")
        assert "Nothing was asked yet." in [one.message for one in pilot.app._notifications]
        await asked(pilot, "what is red?")
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(pilot.app.screen, SelectDialog), "the choice")
        await pilot.press(*["down"] * place, "enter")
        await until(pilot, lambda: "Exported" in shown(pilot), "told")
    (path,) = tmp_path.glob(f"*.{suffix}")
    text = path.read_text(encoding="utf-8")
    assert path.stem.startswith("demo") and "at 0:02." in text
    assert suffix != "json" or json.loads(text)["schema_version"]
    assert suffix != "srt" or " --> " in text


@pilot_test
async def test_an_export_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    async with Stage(says(ANSWER)).running() as pilot:
        await asked(pilot)
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(pilot.app.screen, SelectDialog), "the choice")
        folder.rmdir()
        await pilot.press("enter")
        await until(pilot, lambda: "Not exported" in shown(pilot), "told")


@pytest.mark.parametrize(("terminal", "told"), [("xterm-256color", "OSC 52"), ("dumb", "no clipboard was found")])
@pilot_test
async def test_without_a_tool_the_terminal_or_a_file_takes_the_answer(
    terminal: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TERM", terminal)
    async with Stage(says(ANSWER)).running(state=tmp_path) as pilot:
        await pilot.press("f7")
        await until(pilot, lambda: "There is no answer to copy yet." in shown(pilot), "told")
        await asked(pilot)
        await pilot.press("f7")
        await until(pilot, lambda: told in shown(pilot), "which way it took")
        taken = pilot.app.clipboard if terminal != "dumb" else (tmp_path / "copied.md").read_text()
        assert taken == ANSWER


@pilot_test
async def test_ctrl_c_copies_what_is_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    async with Stage(says(ANSWER)).running(state=tmp_path) as pilot:
        await asked(pilot)
        main(pilot).query_one(Transcript).query(AnswerSection).last().text_select_all()
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "square" in pilot.app.clipboard, "it is copied")


# Terminals that show less


@pilot_test
async def test_in_ascii_everything_drawn_is_ascii(tmp_path: Path) -> None:
    async with Stage(says("A “red” square → 3×, 日本 ✓")).running(ascii=True, state=tmp_path) as pilot:
        await asked(pilot)
        await until(pilot, lambda: "square" in shown(pilot), "the answer")
        assert screen_text(pilot.app).isascii()
        assert 'A "red" square > 3x, ?' in shown(pilot)
        for key in ("f1", "f2", "f4", "f10", "ctrl+p"):
            await pilot.press(key)
            await until(pilot, lambda: pilot.app.screen is not main(pilot), "a screen above")
            assert screen_text(pilot.app).isascii(), key
            await pilot.press("escape")
            await until(pilot, lambda: pilot.app.screen is main(pilot), "back")


@pilot_test
async def test_without_colours_the_words_and_signs_say_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with Stage(says(ANSWER)).running() as pilot:
        desk(pilot).change(vram_bytes=4 * 2**30, weights="bf16", frames=8)
        await until(pilot, lambda: main(pilot).query_one(PlanPanel).has_class("-refused"), "the refusal")
        await settled(pilot)
        strips = pilot.app.screen._compositor.render_strips(pilot.app.size)
        styles = [segment.style for strip in strips for segment in strip if segment.style is not None]
        colours = {colour.triplet for style in styles for colour in (style.color, style.bgcolor) if colour is not None}
        assert all(one is None or len({one.red, one.green, one.blue}) == 1 for one in colours), "shades of grey at most"
        assert "✗ does not fit" in shown(pilot) and "MiB over" in shown(pilot)
