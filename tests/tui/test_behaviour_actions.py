"""Every action by its key, from the palette, and with another key set for its id."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, OptionList

from tests.tui.scripted import (
    AppHarness,
    Gate,
    Step,
    ask,
    asked,
    controller,
    is_open,
    main,
    opened,
    part,
    pilot_test,
    press,
    prompt,
    says,
    screen_text,
    shown,
    state,
    until,
)
from tests.tui.test_find import finds, found
from vidqa.tui.bindings import ACTION_IDS, ACTIONS, LOCAL_ACTIONS, KeyAction
from vidqa.tui.command_palette import _NEED_FOCUS, ActionProvider, palette_actions
from vidqa.tui.screens.dialogs import LineDialog, SelectDialog, TextViewer
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.screens.model_chooser import ModelChooser
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.timeline import Timeline
from vidqa.types import Plan, Request, VideoInfo

ANSWER = "A red square at 0:02."
WAITS = "wait"  # a question whose answer stops at a gate
Arrange = Callable[[Pilot[int]], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """How to arrange for an action, and what is so after it that was not before."""

    happened: Callable[[Pilot[int]], object]
    arrange: Arrange | None = None
    focus: str = ""


def opens(kind: type[Screen[Any]]) -> Callable[[Pilot[int]], bool]:
    return lambda pilot: is_open(pilot, kind)


def cursor_at(seconds: float) -> Callable[[Pilot[int]], bool]:
    return lambda pilot: abs(part(pilot, Timeline).cursor - seconds) < 0.001


def frame_option(pilot: Pilot[int]) -> PlanOption:
    return main(pilot).query_one("#option-frames", PlanOption)


async def write(pilot: Pilot[int]) -> None:
    prompt(pilot).text = "half a question"


async def cursor_to_2(pilot: Pilot[int]) -> None:
    part(pilot, Timeline).cursor = 2.0


async def range_set(pilot: Pilot[int]) -> None:
    controller(pilot).override(start_seconds=1.0, end_seconds=3.0)


async def six_frames(pilot: Pilot[int]) -> None:
    controller(pilot).override(frames=6)
    await until(pilot, lambda: frame_option(pilot)._value == 6, "the plan is drawn")


async def too_much(pilot: Pilot[int]) -> None:
    controller(pilot).override(vram_bytes=4 * 2**30, weights="bf16", frames=96)
    await until(pilot, lambda: controller(pilot).forecast.refusal, "a refusal")  # type: ignore[union-attr]


def copied(pilot: Pilot[int]) -> bool:
    """The fake clipboard tool was given the answer."""
    clipboard = Path.cwd() / "clipboard"
    return clipboard.exists() and clipboard.read_text() == ANSWER


def edits(pilot: Pilot[int]) -> bool:
    return main(pilot).editing and prompt(pilot).text == "what is there?" and prompt(pilot).has_focus


def asked_again(pilot: Pilot[int]) -> bool:
    return pilot.app.harness.asked == ["what is there?"] * 2 and state(pilot) == "answered"  # type: ignore[attr-defined]


def frames_are(count: int | None) -> Callable[[Pilot[int]], bool]:
    return lambda pilot: controller(pilot).overrides.frames == count


def focused(selector: str) -> Callable[[Pilot[int]], bool]:
    return lambda pilot: main(pilot).query_one(selector).has_focus


CASES = {
    "video.open": Case(opens(OpenVideoScreen)),
    "ask.stop": Case(lambda pilot: state(pilot) == "stopped", lambda pilot: ask(pilot, WAITS)),
    "help.show": Case(opens(TextViewer)),
    "model.choose": Case(opens(ModelChooser)),
    "panel.toggle": Case(lambda pilot: main(pilot).has_class("-folded")),
    "history.open": Case(opens(HistoryBrowser)),
    "ask.again": Case(asked_again, asked),
    "ask.edit": Case(edits, asked),
    "answer.copy": Case(copied, asked),
    "session.export": Case(opens(SelectDialog), asked),
    "log.show": Case(lambda pilot: is_open(pilot, TextViewer) and "Log" in screen_text(pilot.app)),
    "frames.view": Case(opens(FrameViewer)),
    "find.moment": Case(opens(LineDialog)),
    "session.new": Case(lambda pilot: state(pilot) == "nothing", asked),
    "prompt.focus": Case(focused("#prompt"), focus="#transcript"),
    "app.interrupt": Case(lambda pilot: prompt(pilot).text == "", write),
    "app.leave": Case(lambda pilot: pilot.app._exit),
    "transcript.copy": Case(copied, asked, "#transcript"),
    "transcript.again": Case(asked_again, asked, "#transcript"),
    "transcript.edit": Case(edits, asked, "#transcript"),
    "transcript.export": Case(opens(SelectDialog), asked, "#transcript"),
    "transcript.delete": Case(lambda pilot: state(pilot) == "nothing", asked, "#transcript"),
    "transcript.moment": Case(cursor_at(2.0), asked, "#transcript"),
    "transcript.figures": Case(lambda pilot: "visual tokens" in shown(pilot), asked, "#transcript"),
    "timeline.back": Case(cursor_at(1.92), cursor_to_2, "#timeline"),
    "timeline.forward": Case(cursor_at(2.08), cursor_to_2, "#timeline"),
    "timeline.frame_back": Case(
        lambda pilot: cursor_at(max(one for one in part(pilot, Timeline).timestamps if one < 2))(pilot),
        cursor_to_2, "#timeline",
    ),
    "timeline.frame_on": Case(
        lambda pilot: cursor_at(min(one for one in part(pilot, Timeline).timestamps if one > 2))(pilot),
        cursor_to_2, "#timeline",
    ),
    "timeline.first": Case(cursor_at(0.0), cursor_to_2, "#timeline"),
    "timeline.last": Case(cursor_at(4.0), cursor_to_2, "#timeline"),
    "timeline.start": Case(lambda pilot: controller(pilot).overrides.start_seconds == 2.0, cursor_to_2, "#timeline"),
    "timeline.end": Case(lambda pilot: controller(pilot).overrides.end_seconds == 2.0, cursor_to_2, "#timeline"),
    "timeline.whole": Case(lambda pilot: controller(pilot).overrides.start_seconds is None, range_set, "#timeline"),
    "strip.view": Case(opens(FrameViewer), focus="#thumbnails"),
    "plan.less": Case(frames_are(6), focus="#option-frames"),
    "plan.more": Case(frames_are(8), six_frames, "#option-frames"),
    "plan.auto": Case(frames_are(None), six_frames, "#option-frames"),
    "plan.up": Case(focused("#option-frames"), focus="#option-size"),
    "plan.down": Case(focused("#option-quality"), focus="#option-size"),
    "plan.nearest": Case(lambda pilot: controller(pilot).forecast.plan, too_much),  # type: ignore[union-attr]
}  # fmt: skip


async def now_typed(pilot: Pilot[int]) -> None:
    prompt(pilot).focus()
    await press(pilot, "n o w", lambda: prompt(pilot).text == "now")


async def two_asked(pilot: Pilot[int]) -> None:
    await asked(pilot, "first")
    await asked(pilot, "second")


async def second_shown(pilot: Pilot[int]) -> None:
    await two_asked(pilot)
    await press(pilot, "up", lambda: prompt(pilot).text == "second")


async def path_typed(pilot: Pilot[int]) -> None:
    await opened(pilot, "ctrl+o", OpenVideoScreen)
    await press(pilot, "x", lambda: pilot.app.screen.query_one("#path", Input).value == "x")


async def delete_pressed(pilot: Pilot[int]) -> None:
    await asked(pilot)
    (await opened(pilot, "f4", HistoryBrowser)).query_one(OptionList).focus()
    await press(pilot, pilot.app.key, lambda: "Press Delete again" in screen_text(pilot.app))  # type: ignore[attr-defined]


async def second_frame(pilot: Pilot[int]) -> None:
    viewer = await opened(pilot, "f10", FrameViewer)
    await press(pilot, "right", lambda: viewer._position == 1)


def frame_is(position: int) -> Callable[[Pilot[int]], bool]:
    return lambda pilot: isinstance(pilot.app.screen, FrameViewer) and pilot.app.screen._position == position


def closes(keys: str, kind: type[Screen[Any]], ask_first: bool = False) -> Case:
    async def arrange(pilot: Pilot[int]) -> None:
        if ask_first:
            await asked(pilot)
        await opened(pilot, keys, kind)

    return Case(lambda pilot: pilot.app.screen is main(pilot), arrange)


LOCAL_CASES = {
    "prompt.ask": Case(lambda pilot: pilot.app.harness.asked == ["now"], now_typed),  # type: ignore[attr-defined]
    "prompt.newline": Case(lambda pilot: prompt(pilot).text == "now\n", now_typed),
    "prompt.earlier": Case(lambda pilot: prompt(pilot).text == "second", two_asked),
    "prompt.later": Case(lambda pilot: prompt(pilot).text == "", second_shown),
    "moments.ask": Case(lambda pilot: controller(pilot).moment == 0, found, "MomentList"),
    "moments.remove": Case(lambda pilot: not main(pilot).query("SearchView"), found, "MomentList"),
    "models.close": closes("f2", ModelChooser),
    "open.close": closes("ctrl+o", OpenVideoScreen),
    "open.clear": Case(lambda pilot: pilot.app.screen.query_one("#path", Input).value == "", path_typed),
    "history.close": closes("f4", HistoryBrowser),
    "history.list": Case(
        lambda pilot: pilot.app.screen.query_one(OptionList).has_focus,
        lambda pilot: opened(pilot, "f4", HistoryBrowser),
    ),
    "history.delete": Case(lambda pilot: not controller(pilot).history.sessions(1), delete_pressed),
    "frames.close": closes("f10", FrameViewer),
    "frames.before": Case(frame_is(0), second_frame),
    "frames.after": Case(frame_is(1), lambda pilot: opened(pilot, "f10", FrameViewer)),
    "text.close": closes("f1", TextViewer),
    "pick.close": closes("f8", SelectDialog, ask_first=True),
    "line.close": closes("f12", LineDialog),
}  # fmt: skip
ALL_CASES = CASES | LOCAL_CASES


def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
    """All questions are answered but one."""
    gates = (Gate(),) if request.question == WAITS else ()
    return says(ANSWER, before_end=gates)(request, plan, video)  # type: ignore[return-value]


# Cases that can follow each other in one app.
SHARED = (
    [name for name in CASES if name.startswith("timeline.")],
    [name for name in CASES if name.startswith("plan.") and name != "plan.nearest"],
    ["video.open", "help.show", "model.choose", "history.open", "log.show", "frames.view", "strip.view"],
    [name for name in LOCAL_CASES if name.startswith(("models.", "open.", "text.", "pick."))],
    ["history.close", "history.list", *(name for name in LOCAL_CASES if name.startswith("frames."))],
)
GROUPS = [*SHARED, *([name] for name in ALL_CASES if not any(name in names for names in SHARED))]


async def do(names: list[str], act: Callable[[Pilot[int], KeyAction], Awaitable[None]], **options: object) -> None:
    """Arrange, act, and wait for what shall happen, which was not so before; then the next, in the same app."""
    harness = AppHarness(script, finds=finds())
    async with harness.running(**{"images": "half", **options}) as pilot:  # type: ignore[arg-type]
        pilot.app.harness = harness  # type: ignore[attr-defined]
        for name in names:
            pilot.app.key = {name: action_of(name).keys, **options.get("keys", {})}[name].split(",")[-1]  # type: ignore
            await do_one(pilot, ALL_CASES[name], partial(act, pilot, action_of(name)))
            while not pilot.app._exit and pilot.app.screen is not main(pilot):
                await pilot.press("escape")


async def do_one(pilot: Pilot[int], case: Case, act: Callable[[], Awaitable[None]]) -> None:
    if case.arrange is not None:
        await case.arrange(pilot)
    if case.focus:
        main(pilot).query_one(case.focus).focus()
        await until(pilot, lambda: focused(case.focus)(pilot), "the focus")
    assert not case.happened(pilot)
    await act()
    await until(pilot, lambda: case.happened(pilot), "the effect")


async def press_key(pilot: Pilot[int], action: KeyAction) -> None:
    await pilot.press(pilot.app.key)  # type: ignore[attr-defined]


def action_of(name: str) -> KeyAction:
    return next(one for one in (*ACTIONS, *LOCAL_ACTIONS) if one.id == name)


def test_every_action_has_a_case_and_is_in_the_palette_or_needs_focus() -> None:
    assert tuple(ALL_CASES) == ACTION_IDS
    assert sorted(name for names in GROUPS for name in names) == sorted(ACTION_IDS)
    in_palette = {one.description for one in palette_actions()}
    assert {one.description for one in ACTIONS if one.id not in _NEED_FOCUS} == in_palette


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
@pilot_test
async def test_by_its_key(names: list[str], clipboard: None) -> None:
    await do(names, press_key)


def listed(names: list[str]) -> list[str]:
    """Those of the palette: of two actions with one description, one."""
    return [name for name in names if action_of(name) in palette_actions()]


@pytest.mark.parametrize("names", [found for names in GROUPS if (found := listed(names))], ids=lambda names: names[0])
@pilot_test
async def test_from_the_palette(names: list[str], clipboard: None) -> None:
    async def choose(pilot: Pilot[int], action: KeyAction) -> None:
        hits = [hit async for hit in ActionProvider(main(pilot)).discover() if hit.text == action.description]
        assert len(hits) == 1, "one entry for each description"
        await hits[0].command()  # type: ignore[misc]

    await do(names, choose)


@pytest.mark.parametrize(("words", "name"), [("new conv", "session.new"), ("video from", "timeline.start")])
@pilot_test
async def test_typed_into_the_palette(words: str, name: str) -> None:
    async def choose(pilot: Pilot[int], action: KeyAction) -> None:
        await press(pilot, "ctrl+p", lambda: pilot.app.screen.query(Input), "the palette")
        pilot.app.screen.query_one(Input).value = words
        await until(pilot, lambda: action.tooltip in screen_text(pilot.app), "the hit")
        await pilot.press("enter")

    await do([name], choose)


def focus_for(action: KeyAction) -> str:
    """The part of the screen where an action's key works."""
    places = {"transcript": "#transcript", "timeline": "#timeline", "plan": "#option-frames", "strip": "#thumbnails"}
    return places.get(action.place, "#prompt")


@pilot_test
async def test_every_action_can_be_remapped_by_its_id() -> None:
    keys = {one.id: f"alt+shift+{chr(97 + n)}" if n < 26 else f"alt+f{n - 25}" for n, one in enumerate(ACTIONS)}
    async with AppHarness(script).running(keys=keys, images="half") as pilot:
        for action in ACTIONS:
            main(pilot).query_one(focus_for(action), Widget).focus()
            await until(pilot, partial(focused(focus_for(action)), pilot), "the focus")
            active = {key: one.binding.id for key, one in main(pilot).active_bindings.items()}
            assert active.get(keys[action.id]) == action.id
            assert active.get(action.keys) != action.id, "the old key is free"


@pytest.mark.parametrize(
    "name",
    [
        "video.open", "timeline.start", "plan.more", "transcript.moment", "app.leave",
        "pick.close", "prompt.ask", "prompt.newline", "history.delete", "frames.after",
    ],
)  # fmt: skip
@pilot_test
async def test_a_remapped_key_does_the_work(name: str) -> None:
    await do([name], press_key, keys={name: "alt+x"})


@pilot_test
async def test_the_footer_can_be_clicked() -> None:
    async with AppHarness(script).running() as pilot:
        await until(pilot, lambda: "History" in screen_text(pilot.app), "the footer")
        column = screen_text(pilot.app).splitlines()[-1].index("History")
        await pilot.click(offset=(column, pilot.app.size.height - 1))
        await until(pilot, lambda: is_open(pilot, HistoryBrowser), "the history")


@pilot_test
async def test_quick_keys_on_an_option_all_count_and_it_and_the_timeline_can_be_clicked() -> None:
    async with AppHarness(script).running() as pilot:
        option, timeline = frame_option(pilot), part(pilot, Timeline)
        option.focus()
        await press(pilot, "left left left right right", lambda: frames_are(8)(pilot), "8, 6, 4, no less, 6, 8")
        await pilot.click(option, offset=(2, 0))
        await until(pilot, lambda: frames_are(6)(pilot), "fewer frames")
        await pilot.click(option, offset=(option.size.width - 2, 0))
        await until(pilot, lambda: frames_are(8)(pilot), "more frames")
        await pilot.click(timeline, offset=(1 + (timeline.size.width - 1) // 2, 0))
        assert abs(timeline.cursor - 2.0) < 0.1
