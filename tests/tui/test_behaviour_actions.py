"""Every action by its key, by the palette, and remapped by its id."""

import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input

from tests.tui.scripted import Gate, Stage, Step, ask, asked, main, pilot_test, says, screen_text, until
from vidqa.tui.app import VidqaApp
from vidqa.tui.bindings import ACTIONS, Action, actions_in
from vidqa.tui.command_palette import _WITH_A_LINE, Actions, _unique
from vidqa.tui.controller import Controller
from vidqa.tui.screens.frame_viewer import FrameViewer
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.screens.model_chooser import ModelChooser
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.screens.select_dialog import SelectDialog
from vidqa.tui.screens.text_viewer import TextViewer
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.widgets.transcript import Transcript
from vidqa.types import Plan, Request, VideoInfo

ACTION_IDS = tuple(action.id for action in ACTIONS)
ANSWER = "A red square at 0:02."
WAITS = "wait"  # a question whose answer stops at a gate


@dataclass(frozen=True)
class Case:
    """What is arranged, and what has happened after the action. Both see the pilot."""

    happened: Callable[[Pilot[int]], object]
    arrange: Callable[[Pilot[int]], Awaitable[None]] | None = None
    focus: str = ""


def desk(pilot: Pilot[int]) -> Controller:
    return main(pilot).desk


def opened(kind: type) -> Callable[[Pilot[int]], bool]:
    return lambda pilot: isinstance(pilot.app.screen, kind)


def prompt(pilot: Pilot[int]) -> QuestionInput:
    return main(pilot).query_one(QuestionInput)


def timeline(pilot: Pilot[int]) -> Timeline:
    return main(pilot).query_one(Timeline)


def at(seconds: float) -> Callable[[Pilot[int]], bool]:
    return lambda pilot: abs(timeline(pilot).cursor - seconds) < 0.001


def state(pilot: Pilot[int]) -> str:
    last = desk(pilot).conversation.last
    return last.state if last else "nothing"


async def ask_what_waits(pilot: Pilot[int]) -> None:
    await ask(pilot, WAITS)


async def write(pilot: Pilot[int]) -> None:
    prompt(pilot).text = "half a question"


async def cursor_at_2(pilot: Pilot[int]) -> None:
    timeline(pilot).cursor = 2.0


async def part(pilot: Pilot[int]) -> None:
    desk(pilot).change(start_seconds=1.0, end_seconds=3.0)


async def six_frames(pilot: Pilot[int]) -> None:
    desk(pilot).change(frames=6)
    knob = main(pilot).query_one("#knob-frames", PlanOption)
    await until(pilot, lambda: knob._value == 6, "the plan is drawn")


async def too_much(pilot: Pilot[int]) -> None:
    desk(pilot).change(vram_bytes=4 * 2**30, weights="bf16", frames=96)
    await until(pilot, lambda: desk(pilot).forecast and desk(pilot).forecast.refusal, "a refusal")  # type: ignore[union-attr]


def copied(pilot: Pilot[int]) -> bool:
    """The fake clipboard tool was given the answer."""
    clipboard = Path.cwd() / "clipboard"
    return clipboard.exists() and clipboard.read_text() == ANSWER


def edits(pilot: Pilot[int]) -> bool:
    return main(pilot).editing and prompt(pilot).text == "what is there?" and prompt(pilot).has_focus


def asked_again(pilot: Pilot[int]) -> bool:
    stage = pilot.app.stage  # type: ignore[attr-defined]
    return [one.question for one in stage.session.asked] == ["what is there?"] * 2 and state(pilot) == "answered"


CASES = {
    "ask.stop": Case(lambda pilot: state(pilot) == "stopped", ask_what_waits),
    "video.open": Case(opened(OpenVideoScreen)),
    "help.show": Case(opened(TextViewer)),
    "model.choose": Case(opened(ModelChooser)),
    "panel.toggle": Case(lambda pilot: main(pilot).has_class("-folded")),
    "history.open": Case(opened(HistoryBrowser)),
    "ask.again": Case(asked_again, asked),
    "ask.edit": Case(edits, asked),
    "answer.copy": Case(copied, asked),
    "session.export": Case(opened(SelectDialog), asked),
    "log.show": Case(lambda pilot: opened(TextViewer)(pilot) and "Log" in screen_text(pilot.app)),
    "frames.view": Case(opened(FrameViewer)),
    "session.new": Case(lambda pilot: state(pilot) == "nothing", asked),
    "prompt.focus": Case(lambda pilot: prompt(pilot).has_focus, focus="#transcript"),
    "app.interrupt": Case(lambda pilot: prompt(pilot).text == "", write),
    "app.leave": Case(lambda pilot: pilot.app._exit),
    "transcript.copy": Case(copied, asked, "#transcript"),
    "transcript.again": Case(asked_again, asked, "#transcript"),
    "transcript.edit": Case(edits, asked, "#transcript"),
    "transcript.export": Case(opened(SelectDialog), asked, "#transcript"),
    "transcript.delete": Case(lambda pilot: state(pilot) == "nothing", asked, "#transcript"),
    "transcript.moment": Case(at(2.0), asked, "#transcript"),
    "timeline.back": Case(at(1.92), cursor_at_2, "#timeline"),
    "timeline.forward": Case(at(2.08), cursor_at_2, "#timeline"),
    "timeline.frame_back": Case(
        lambda pilot: timeline(pilot).cursor == max(one for one in timeline(pilot).moments if one < 2),
        cursor_at_2, "#timeline",
    ),
    "timeline.frame_on": Case(
        lambda pilot: timeline(pilot).cursor == min(one for one in timeline(pilot).moments if one > 2),
        cursor_at_2, "#timeline",
    ),
    "timeline.first": Case(at(0.0), cursor_at_2, "#timeline"),
    "timeline.last": Case(at(4.0), cursor_at_2, "#timeline"),
    "timeline.start": Case(lambda pilot: desk(pilot).wish.start_seconds == 2.0, cursor_at_2, "#timeline"),
    "timeline.end": Case(lambda pilot: desk(pilot).wish.end_seconds == 2.0, cursor_at_2, "#timeline"),
    "timeline.whole": Case(lambda pilot: desk(pilot).wish.start_seconds is None, part, "#timeline"),
    "strip.view": Case(opened(FrameViewer), focus="#film"),
    "plan.less": Case(lambda pilot: desk(pilot).wish.frames == 6, focus="#knob-frames"),
    "plan.more": Case(lambda pilot: desk(pilot).wish.frames == 8, six_frames, "#knob-frames"),
    "plan.auto": Case(lambda pilot: desk(pilot).wish.frames is None, six_frames, "#knob-frames"),
    "plan.up": Case(lambda pilot: main(pilot).query_one("#knob-frames").has_focus, focus="#knob-size"),
    "plan.down": Case(lambda pilot: main(pilot).query_one("#knob-quality").has_focus, focus="#knob-size"),
    "plan.nearest": Case(lambda pilot: desk(pilot).forecast and desk(pilot).forecast.plan, too_much),  # type: ignore[union-attr]
}  # fmt: skip


def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
    """All questions are answered but one."""
    gates = (Gate(),) if request.question == WAITS else ()
    return says(ANSWER, before_end=gates)(request, plan, video)


@pytest.fixture
def clipboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clipboard tool of our own, and nothing else on the PATH; what it is given lies in a file."""
    tool = tmp_path / "bin" / "pbcopy"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nexec /bin/cat > '{tmp_path}/clipboard'\n")
    tool.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.chdir(tmp_path)


SHARED = (
    [name for name in ACTION_IDS if name.startswith("timeline.")],
    [name for name in ACTION_IDS if name.startswith("plan.") and name != "plan.nearest"],
    ["video.open", "help.show", "model.choose", "history.open", "log.show", "frames.view", "strip.view"],
)
GROUPS = [*SHARED, *([name] for name in ACTION_IDS if not any(name in names for names in SHARED))]


async def do(names: list[str], act: Callable[[Pilot[int], Action], Awaitable[None]], **face: object) -> None:
    """Arrange, act, and wait for what shall happen, which was not so before; then the next, in the same app."""
    stage = Stage(script)
    async with stage.running(**{"images": "half", **face}) as pilot:  # type: ignore[arg-type]
        pilot.app.stage = stage  # type: ignore[attr-defined]
        for name in names:
            await do_one(pilot, CASES[name], partial(act, pilot, action_of(name)))
            while not pilot.app._exit and pilot.app.screen is not main(pilot):
                await pilot.press("escape")


async def do_one(pilot: Pilot[int], case: Case, act: Callable[[], Awaitable[None]]) -> None:
    if case.arrange is not None:
        await case.arrange(pilot)
    if case.focus:
        main(pilot).query_one(case.focus).focus()
        await until(pilot, lambda: main(pilot).query_one(case.focus).has_focus, "the focus")
    assert not case.happened(pilot)
    await act()
    await until(pilot, lambda: case.happened(pilot), "the effect")


def action_of(name: str) -> Action:
    return next(one for one in ACTIONS if one.id == name)


def test_no_action_lacks_a_case() -> None:
    assert tuple(CASES) == ACTION_IDS
    assert sorted(name for names in GROUPS for name in names) == sorted(ACTION_IDS)


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
@pilot_test
async def test_by_its_key(names: list[str], clipboard: None) -> None:
    async def press(pilot: Pilot[int], action: Action) -> None:
        await pilot.press(action.keys.split(",")[0])

    await do(names, press)


def listed(names: list[str]) -> list[str]:
    """Those of the palette: of two actions with one name, one."""
    return [name for name in names if name not in _WITH_A_LINE and action_of(name) in _unique()]


@pytest.mark.parametrize("names", [found for names in GROUPS if (found := listed(names))], ids=lambda names: names[0])
@pilot_test
async def test_from_the_palette(names: list[str], clipboard: None) -> None:
    async def choose(pilot: Pilot[int], action: Action) -> None:
        hits = [hit async for hit in Actions(main(pilot)).discover() if hit.text == action.name]
        assert len(hits) == 1, "one entry for each name"
        await hits[0].command()  # type: ignore[misc]

    await do(names, choose)


def test_what_is_not_in_the_palette_has_its_name_there_or_needs_a_line_of_the_plan() -> None:
    in_palette = {one.name for one in _unique()}
    assert {one.name for one in ACTIONS if one.id not in _WITH_A_LINE} == in_palette


@pytest.mark.parametrize(("words", "name"), [("new conv", "session.new"), ("look only from", "timeline.start")])
@pilot_test
async def test_typed_into_the_palette(words: str, name: str) -> None:
    async def choose(pilot: Pilot[int], action: Action) -> None:
        await pilot.press("ctrl+p")
        await until(pilot, lambda: pilot.app.screen.query(Input), "the palette")
        pilot.app.screen.query_one(Input).value = words
        await until(pilot, lambda: action.tooltip in screen_text(pilot.app), "the hit")
        await pilot.press("enter")

    await do([name], choose)


def remapped() -> dict[str, str]:
    """Another key for every action; unlike its own, and unlike the editor's."""
    return {action_id: f"alt+shift+{chr(ord('a') + place)}" if place < 26 else f"alt+f{place - 25}"
            for place, action_id in enumerate(ACTION_IDS)}  # fmt: skip


def focus_for(action: Action) -> str:
    """The part of the screen where an action's key works."""
    return {"transcript": "#transcript", "timeline": "#timeline", "plan": "#knob-frames", "strip": "#film"}.get(
        action.place, "#prompt"
    )


@pilot_test
async def test_every_action_can_be_remapped_by_its_id() -> None:
    keys = remapped()
    async with Stage(script).running(keys=keys, images="half") as pilot:
        for action in ACTIONS:
            part = main(pilot).query_one(focus_for(action), Widget)
            part.focus()
            await until(pilot, lambda part=part: part.has_focus, "the focus")
            active = {key: one.binding.id for key, one in main(pilot).active_bindings.items()}
            assert active.get(keys[action.id]) == action.id
            assert active.get(action.keys) != action.id, "the old key is free"


@pytest.mark.parametrize("name", ["video.open", "timeline.start", "plan.more", "transcript.moment", "app.leave"])
@pilot_test
async def test_a_remapped_key_does_the_work(name: str) -> None:
    async def press(pilot: Pilot[int], action: Action) -> None:
        await pilot.press("alt+x")

    await do([name], press, keys={name: "alt+x"})


@pilot_test
async def test_every_action_is_told_by_the_help_of_its_part() -> None:
    async with Stage(script).running(images="half") as pilot:
        assert isinstance(pilot.app, VidqaApp)
        for place in ("transcript", "timeline", "plan", "strip"):
            actions = list(actions_in(place))  # type: ignore[arg-type]
            part = main(pilot).query_one(focus_for(actions[0]), Widget)
            part.focus()
            await until(pilot, lambda part=part: part.has_focus, "the focus")
            await pilot.press("f1")
            await until(pilot, lambda: "Keys here" in screen_text(pilot.app), "the help")
            page = pilot.app.screen
            assert isinstance(page, TextViewer)
            told = page._text.plain
            assert page._title == part.help_title and told.startswith(part.help_text)  # type: ignore[attr-defined]
            assert [one.tooltip for one in actions if one.tooltip not in told] == []
            await pilot.press("f1")
            await until(pilot, lambda: pilot.app.screen is main(pilot), "the help is closed")


@pilot_test
async def test_the_footer_can_be_clicked() -> None:
    async with Stage(script).running() as pilot:
        await until(pilot, lambda: "History" in screen_text(pilot.app), "the footer")
        place = screen_text(pilot.app).splitlines()[-1].index("History")
        await pilot.click(offset=(place, pilot.app.size.height - 1))
        await until(pilot, lambda: isinstance(pilot.app.screen, HistoryBrowser), "the history")


@pilot_test
async def test_quick_keys_on_a_knob_all_count() -> None:
    async with Stage(script).running() as pilot:
        main(pilot).query_one("#knob-frames", PlanOption).focus()
        await pilot.press("left", "left", "left", "right")
        await until(pilot, lambda: desk(pilot).wish.frames == 6, "8, 6, 4, no less, 6")


@pilot_test
async def test_knobs_and_timeline_can_be_clicked() -> None:
    async with Stage(script).running() as pilot:
        knob = main(pilot).query_one("#knob-frames", PlanOption)
        await pilot.click(knob, offset=(2, 0))
        await until(pilot, lambda: desk(pilot).wish.frames == 6, "less frames")
        await pilot.click(knob, offset=(knob.size.width - 2, 0))
        await until(pilot, lambda: desk(pilot).wish.frames == 8, "more frames")
        await pilot.click(timeline(pilot), offset=(1 + (timeline(pilot).size.width - 1) // 2, 0))
        assert abs(timeline(pilot).cursor - 2.0) < 0.1
        assert main(pilot).query_one(Transcript).can_focus
