"""History, export and clipboard; and terminals that show less."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from tests.tui.scripted import (
    DEMO,
    AppHarness,
    Gate,
    ask,
    asked,
    controller,
    demo_video,
    is_open,
    main,
    opened,
    part,
    pilot_test,
    planned,
    press,
    prompt,
    says,
    screen_text,
    settled,
    shown,
    state,
    until,
)
from vidqa.errors import HistoryError, UsageError
from vidqa.history import database
from vidqa.history.records import SavedSession
from vidqa.history.store import FILE_NAME, History
from vidqa.tui.screens import main_actions
from vidqa.tui.screens.dialogs import LineDialog, SelectDialog
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.widgets.answer_text import AnswerSection
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.transcript import Transcript
from vidqa.tui.worker_messages import VideoOpened
from vidqa.types import Turn

ANSWER = "A **red** square\nat 0:02."


async def history_opened(pilot: Pilot[int]) -> HistoryBrowser:
    browser = await opened(pilot, "f4", HistoryBrowser)
    await until(pilot, lambda: browser.query_one(OptionList).option_count, "the list")
    return browser


def titles(browser: HistoryBrowser) -> list[str]:
    return [session.title for session in browser._found]


def saved_questions(pilot: Pilot[int]) -> list[str]:
    """The questions of the newest session in the history."""
    history = controller(pilot).history
    return [turn.question for turn in history.turns(history.sessions(10)[0].id)]


# History


@pilot_test
async def test_a_conversation_is_found_again_in_another_app_and_goes_on(tmp_path: Path) -> None:
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        await asked(pilot, "what is red?")
    harness = AppHarness(says("It stops."))
    async with harness.running(state=tmp_path) as pilot:
        await history_opened(pilot)
        await press(pilot, "enter", lambda: "what is red?" in shown(pilot) and "A red square" in shown(pilot))
        await planned(pilot)
        assert controller(pilot).video.path == DEMO  # type: ignore[union-attr]
        assert "51 tokens" in shown(pilot), "with its figures"
        await asked(pilot, "and then?")
        assert harness.session.asked[0].history == (Turn("what is red?", ANSWER),)
        await pilot.press("up", "up")
        assert prompt(pilot).text == "what is red?"
    history = History(tmp_path / FILE_NAME)
    assert [session.turn_count for session in history.sessions(10)] == [2], "it is one conversation"
    history.close()


@pilot_test
async def test_search_open_and_delete(tmp_path: Path) -> None:
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        for question in ("what is 100% red?", "who moves?"):
            await asked(pilot, question)
            await press(pilot, "ctrl+n", lambda: not controller(pilot).conversation.exchanges, "a new conversation")
        browser = await history_opened(pilot)
        both = ["who moves?", "what is 100% red?"]
        assert titles(browser) == both, "newest first"
        for text, found in (("0% R", both[1:]), ("_", []), ("square", both), ("moves", both[:1])):
            browser.query_one(Input).value = text
            await until(pilot, lambda found=found: titles(browser) == found, f"what is found for {text}")
        await press(pilot, "down delete", lambda: "Press Delete again" in shown(pilot), "it asks")
        assert titles(browser) == ["who moves?"]
        await press(pilot, "delete", lambda: "nothing found" in shown(pilot), "it is gone")
        assert [session.title for session in controller(pilot).history.sessions(10)] == ["what is 100% red?"]


@pilot_test
async def test_a_conversation_deleted_while_it_is_open_can_go_on(tmp_path: Path) -> None:
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        await asked(pilot, "first?")
        browser = await history_opened(pilot)
        await press(pilot, "down delete delete", lambda: titles(browser) == [], "it is gone")
        await pilot.press("escape")
        await asked(pilot, "second?")
        assert state(pilot) == "answered" and saved_questions(pilot) == ["second?"]
        assert len(controller(pilot).history.sessions(10)) == 1


@pilot_test
async def test_the_last_turn_is_deleted_from_the_history_too(tmp_path: Path) -> None:
    harness = AppHarness(says(ANSWER))
    async with harness.running(state=tmp_path) as pilot:
        await asked(pilot, "first?")
        await asked(pilot, "second?")
        part(pilot, Transcript).focus()
        await press(pilot, "delete", lambda: "second?" not in shown(pilot), "it is gone")
        assert saved_questions(pilot) == ["first?"]
        await asked(pilot, "third?")
        assert [turn.question for turn in harness.session.asked[-1].history] == ["first?"]


async def edit_second(pilot: Pilot[int]) -> None:
    """Two questions, the second of which is back in the prompt."""
    await asked(pilot, "first?")
    await asked(pilot, "second?")
    await press(pilot, "f6", lambda: prompt(pilot).text == "second?" and main(pilot).editing)


async def enter_edited(pilot: Pilot[int]) -> None:
    """Ask what is in the prompt."""
    assert prompt(pilot).text == "second?" and prompt(pilot).border_title == "Question"
    prompt(pilot).focus()
    await press(pilot, "enter", lambda: prompt(pilot).text == "", "it is asked")
    await settled(pilot)


@pilot_test
async def test_a_question_whose_turn_was_deleted_while_it_was_edited_replaces_no_other(tmp_path: Path) -> None:
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        await edit_second(pilot)
        part(pilot, Transcript).focus()
        await press(pilot, "delete", lambda: saved_questions(pilot) == ["first?"])
        await enter_edited(pilot)
        assert saved_questions(pilot) == ["first?", "second?"]


@pilot_test
async def test_a_question_that_was_edited_replaces_none_of_another_conversation(tmp_path: Path) -> None:
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        await asked(pilot, "of before?")
        await press(pilot, "ctrl+n", lambda: not controller(pilot).conversation.exchanges, "a new conversation")
        await edit_second(pilot)
        await history_opened(pilot)
        await press(pilot, "down down", lambda: "of before?" in shown(pilot))
        await press(
            pilot, "enter", lambda: len(controller(pilot).conversation.exchanges) == 1, "the other conversation"
        )
        await planned(pilot)
        await enter_edited(pilot)
        assert saved_questions(pilot) == ["of before?", "second?"]


def saved_about(pilot: Pilot[int], path: Path) -> SavedSession:
    """A conversation of the history about a video at `path`, with one question."""
    history = controller(pilot).history
    number = history.begin_session(replace(demo_video(), path=str(path)), "demo")
    history.fail_turn(history.begin_turn(number, "of the other?"), "Stopped.", "stopped")
    return history.session(number)


@pilot_test
async def test_a_conversation_whose_video_is_gone_is_not_shown_with_the_next_video(tmp_path: Path) -> None:
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        gone = saved_about(pilot, tmp_path / "gone.mp4")
        main(pilot)._resume(gone)
        await until(pilot, lambda: "This video cannot be opened" in shown(pilot), "the error")
        main(pilot).post_message(VideoOpened(demo_video()))
        await asked(pilot, "about the demo?")
        assert saved_questions(pilot) == ["about the demo?"]
        assert controller(pilot).history.session(gone.id).turn_count == 1


@pilot_test
async def test_a_conversation_waits_for_its_own_video(tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(DEMO).read_bytes())
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        main(pilot)._resume(saved_about(pilot, copy))
        main(pilot).post_message(VideoOpened(demo_video()))  # of a video that was requested before
        await until(pilot, lambda: controller(pilot).video.path == str(copy), "its video")  # type: ignore[union-attr]
        await until(pilot, lambda: "of the other?" in shown(pilot), "the conversation")
        assert [one.question for one in controller(pilot).conversation.exchanges] == ["of the other?"]


@pilot_test
async def test_a_conversation_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise HistoryError("The disk is broken.", "Look.")

    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(DEMO).read_bytes())
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        saved = saved_about(pilot, copy)
        monkeypatch.setattr(History, "turns", fail)
        main(pilot)._resume(saved)
        await until(pilot, lambda: "The disk is broken. Look." in shown(pilot), "the error")
        await planned(pilot)
        assert controller(pilot).video.path == str(copy)  # type: ignore[union-attr]


@pilot_test
async def test_a_session_ends_also_where_the_history_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    async with AppHarness(says(ANSWER, before_end=(Gate(),))).running(state=tmp_path) as pilot:
        await ask(pilot)
        with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await press(pilot, "ctrl+q", lambda: pilot.app._exit, "the end")
    assert pilot.app.return_value == 0


@pilot_test
async def test_a_history_that_cannot_be_used_warns_once_and_asking_goes_on(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as rows:
        rows.execute("PRAGMA user_version = 999")
    rows.close()
    harness = AppHarness(says(ANSWER))
    async with harness.running(state=tmp_path) as pilot:
        await asked(pilot, "first?")
        await until(pilot, lambda: "This conversation is not saved" in shown(pilot), "the warning")
        pilot.app.clear_notifications()
        await asked(pilot, "second?")
        assert harness.session.asked[1].history == (Turn("first?", ANSWER),)
        assert "This conversation is not saved" not in shown(pilot)
        for key in ("f4", "ctrl+o"):
            await press(pilot, key, lambda: len(pilot.app._notifications) >= 1, "an error where it is needed")
            assert not is_open(pilot, HistoryBrowser)
            await pilot.press("escape")


# Export and clipboard


@pytest.mark.parametrize(("row", "suffix"), [(0, "md"), (1, "json"), (2, "srt")])
@pilot_test
async def test_export(row: int, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with AppHarness(says(ANSWER)).running() as pilot:
        await pilot.press("f8")
        assert "There is no question yet." in [one.message for one in pilot.app._notifications]
        await asked(pilot, "what is red?")
        await opened(pilot, "f8", SelectDialog)
        await opened(pilot, " ".join(["down"] * row + ["enter"]), LineDialog)
        line = pilot.app.screen.query_one("#line", Input)
        assert line.value == str(tmp_path / f"demo-answers.{suffix}") and not list(tmp_path.glob("*.*"))
        await press(pilot, "enter", lambda: "Exported" in shown(pilot))
    (path,) = tmp_path.glob(f"*.{suffix}")
    text = path.read_text(encoding="utf-8")
    assert path.stem.startswith("demo") and "at 0:02." in text
    assert suffix != "json" or json.loads(text)["schema_version"]
    assert suffix != "srt" or " --> " in text


@pilot_test
async def test_an_export_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    async with AppHarness(says(ANSWER)).running() as pilot:
        await asked(pilot)
        await opened(pilot, "f8", SelectDialog)
        await opened(pilot, "enter", LineDialog)
        folder.rmdir()
        await press(pilot, "enter", lambda: "There is no folder" in shown(pilot))
        monkeypatch.setattr(main_actions, "write_export", disk_full)
        pilot.app.screen.query_one("#line", Input).value = str(tmp_path / "a.md")
        await press(pilot, "enter", lambda: "Not exported" in shown(pilot))


def disk_full(path: Path, text: str) -> Path:
    raise UsageError(f"{path} cannot be written: disk full.", "Choose another place.")


@pilot_test
async def test_an_export_goes_to_the_place_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with AppHarness(says(ANSWER)).running() as pilot:
        await asked(pilot)
        await opened(pilot, "f8", SelectDialog)
        dialog = await opened(pilot, "enter", LineDialog)
        assert "is kept" in shown(pilot), "what happens with a file that exists is said before"
        line = dialog.query_one("#line", Input)
        line.value = str(tmp_path / "elsewhere")
        await press(pilot, "enter", lambda: "This is a folder" in shown(pilot))
        line.value = "elsewhere/mine.md"
        await press(pilot, "enter", lambda: "Exported" in shown(pilot))
    assert [str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*.md")] == ["elsewhere/mine.md"]


@pytest.mark.parametrize(("terminal", "text"), [("xterm-256color", "OSC 52"), ("dumb", "no clipboard was found")])
@pilot_test
async def test_without_a_tool_the_terminal_or_a_file_takes_the_answer(
    terminal: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TERM", terminal)
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        await press(pilot, "f7", lambda: "There is no answer to copy yet." in shown(pilot))
        await asked(pilot)
        await press(pilot, "f7", lambda: text in shown(pilot), "which way it took")
        assert (pilot.app.clipboard if terminal != "dumb" else (tmp_path / "copied.md").read_text()) == ANSWER


@pilot_test
async def test_ctrl_c_copies_what_is_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    async with AppHarness(says(ANSWER)).running(state=tmp_path) as pilot:
        await asked(pilot)
        main(pilot).query(AnswerSection).last().text_select_all()
        await press(pilot, "ctrl+c", lambda: "square" in pilot.app.clipboard)


# Terminals that show less


@pilot_test
async def test_in_ascii_everything_drawn_is_ascii(tmp_path: Path) -> None:
    async with AppHarness(says("A “red” square → 3×, 日本 ✓")).running(ascii=True, state=tmp_path) as pilot:
        await asked(pilot)
        await until(pilot, lambda: 'A "red" square > 3x, ?' in shown(pilot), "the answer")
        assert screen_text(pilot.app).isascii()
        for key in ("f1", "f2", "f4", "f10", "ctrl+p"):
            await press(pilot, key, lambda: pilot.app.screen is not main(pilot))
            assert screen_text(pilot.app).isascii(), key
            await press(pilot, "escape", lambda: pilot.app.screen is main(pilot))


@pilot_test
async def test_without_colours_words_and_signs_say_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with AppHarness(says(ANSWER)).running() as pilot:
        controller(pilot).override(vram_bytes=4 * 2**30, weights="bf16", frames=8)
        await until(pilot, lambda: part(pilot, PlanPanel).has_class("-refused"), "the refusal")
        await settled(pilot)
        strips = pilot.app.screen._compositor.render_strips(pilot.app.size)
        styles = [segment.style for strip in strips for segment in strip if segment.style is not None]
        colours = {colour.triplet for style in styles for colour in (style.color, style.bgcolor) if colour is not None}
        assert all(one is None or len({one.red, one.green, one.blue}) == 1 for one in colours), "shades of grey at most"
        assert "✗ does not fit" in shown(pilot) and "MiB over" in shown(pilot)
