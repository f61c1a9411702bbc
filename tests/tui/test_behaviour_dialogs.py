"""The keys of the prompt and of the dialogs: each does its work, and each can be remapped."""

from collections.abc import Awaitable, Callable

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from tests.tui.scripted import Stage, asked, main, pilot_test, says, until
from vidqa.tui.bindings import LOCAL_ACTIONS
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.widgets.question_input import QuestionInput

OPENERS = {"models": "f2", "open": "ctrl+o", "history": "f4", "frames": "f10", "text": "f1", "pick": "f8"}
KEYS = {action.id: action.keys.split(",")[-1] for action in LOCAL_ACTIONS}


async def opened(pilot: Pilot[int], place: str) -> None:
    """Something was asked, and the dialog is there."""
    await asked(pilot)
    await pilot.press(OPENERS[place])
    await until(pilot, lambda: pilot.app.screen is not main(pilot), f"the dialog of {place}")


async def closes(pilot: Pilot[int], place: str, key: str) -> None:
    await opened(pilot, place)
    await pilot.press(key)
    await until(pilot, lambda: pilot.app.screen is main(pilot), "the dialog is closed")


async def asks(pilot: Pilot[int], key: str) -> None:
    await pilot.press(*"now", key)
    await until(pilot, lambda: [one.question for one in main(pilot).desk.conversation.exchanges] == ["now"])


async def breaks_the_line(pilot: Pilot[int], key: str) -> None:
    await pilot.press("a", key, "b")
    await until(pilot, lambda: main(pilot).query_one(QuestionInput).text == "a\nb")


async def goes_through_questions(pilot: Pilot[int], earlier: str, later: str) -> None:
    await asked(pilot, "first")
    await asked(pilot, "second")
    prompt = main(pilot).query_one(QuestionInput)
    for key, text in ((earlier, "second"), (earlier, "first"), (later, "second"), (later, "")):
        await pilot.press(key)
        await until(pilot, lambda text=text: prompt.text == text, text)


async def empties_the_path(pilot: Pilot[int], key: str) -> None:
    await opened(pilot, "open")
    path = pilot.app.screen.query_one("#path", Input)
    await pilot.press("x")
    await until(pilot, lambda: path.value == "x")
    await pilot.press(key)
    await until(pilot, lambda: path.value == "")


async def goes_into_the_list(pilot: Pilot[int], key: str) -> None:
    await opened(pilot, "history")
    await pilot.press(key)
    await until(pilot, lambda: pilot.app.screen.query_one(OptionList).has_focus)


async def deletes(pilot: Pilot[int], key: str) -> None:
    await opened(pilot, "history")
    pilot.app.screen.query_one(OptionList).focus()
    await pilot.press(key)
    assert main(pilot).desk.history.sessions(1), "once only asks"
    await pilot.press(key)
    await until(pilot, lambda: not main(pilot).desk.history.sessions(1))


async def steps(pilot: Pilot[int], after: str, before: str) -> None:
    await opened(pilot, "frames")
    page = pilot.app.screen
    assert isinstance(page, FrameViewer)
    await pilot.press(after)
    await until(pilot, lambda: page._place == 1)
    await pilot.press(before)
    await until(pilot, lambda: page._place == 0)


Deed = Callable[[Pilot[int], dict[str, str]], Awaitable[None]]
DEEDS: dict[str, Deed] = {
    **{
        f"{place}.close": lambda pilot, keys, place=place: closes(pilot, place, keys[f"{place}.close"])  # type: ignore[misc]
        for place in OPENERS
    },
    "prompt.ask": lambda pilot, keys: asks(pilot, keys["prompt.ask"]),
    "prompt.newline": lambda pilot, keys: breaks_the_line(pilot, keys["prompt.newline"]),
    "prompt.earlier": lambda pilot, keys: goes_through_questions(pilot, keys["prompt.earlier"], "down"),
    "prompt.later": lambda pilot, keys: goes_through_questions(pilot, "up", keys["prompt.later"]),
    "open.clear": lambda pilot, keys: empties_the_path(pilot, keys["open.clear"]),
    "history.list": lambda pilot, keys: goes_into_the_list(pilot, keys["history.list"]),
    "history.delete": lambda pilot, keys: deletes(pilot, keys["history.delete"]),
    "frames.before": lambda pilot, keys: steps(pilot, "right", keys["frames.before"]),
    "frames.after": lambda pilot, keys: steps(pilot, keys["frames.after"], "left"),
}


def test_no_action_lacks_a_deed() -> None:
    assert sorted(DEEDS) == sorted(action.id for action in LOCAL_ACTIONS)


@pytest.mark.parametrize("name", sorted(DEEDS))
@pilot_test
async def test_by_its_key(name: str) -> None:
    async with Stage(says("It moves.")).running() as pilot:
        await DEEDS[name](pilot, KEYS)


@pytest.mark.parametrize("name", ["pick.close", "prompt.ask", "prompt.newline", "history.delete", "frames.after"])
@pilot_test
async def test_remapped_by_its_id(name: str) -> None:
    async with Stage(says("It moves.")).running(keys={name: "alt+x"}) as pilot:
        await DEEDS[name](pilot, KEYS | {name: "alt+x"})
