"""Videos and plans: opening, ranges, knobs that trade, what does not fit, and models to choose from."""

from dataclasses import replace
from pathlib import Path

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from tests.tui.scripted import (
    DEMO,
    ROOT,
    Gate,
    Stage,
    ask,
    asked,
    demo_video,
    main,
    pilot_test,
    says,
    settled,
    shown,
    until,
)
from vidqa.errors import VideoError
from vidqa.tui.controller import Controller
from vidqa.tui.screens.model_chooser import ModelChooser
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.widgets.budget_bar import BudgetBar
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.question_input import QuestionInput, dropped_path
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.worker_messages import PlanForecast, VideoFailed, VideoOpened
from vidqa.types import Plan


def desk(pilot: Pilot[int]) -> Controller:
    return main(pilot).desk


async def planned(pilot: Pilot[int], **wishes: object) -> Plan:
    """Wish, and wait for the plan."""
    before = desk(pilot).forecast
    desk(pilot).change(**wishes)
    await until(pilot, lambda: desk(pilot).forecast is not before, "a plan")
    found = desk(pilot).forecast
    assert found is not None and found.plan is not None
    return found.plan


# Videos


def copy_of_demo(folder: Path, name: str) -> str:
    path = folder / name
    path.write_bytes(Path(DEMO).read_bytes())
    return str(path)


def ways(path: str) -> list[str]:
    """How terminals hand over a dropped file."""
    escaped = path.replace(" ", "\\ ").replace("'", "\\'")
    address = "file://" + path.replace(" ", "%20").replace("'", "%27")
    return [path, path + "\n", f'"{path}"', escaped, address]


def test_paths_are_read_however_they_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of_demo(tmp_path, "it's a clip.mp4")
    assert [dropped_path(text) for text in ways(path)] == [path] * 5
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dropped_path("'~/it'\"'\"'s a clip.mp4'") == "~/it's a clip.mp4"
    for text in ("", "what happens?", str(tmp_path), f"{path} {path}", f"look at {path}", f"{path}\n{path}", "no.mp4"):
        assert dropped_path(text) is None


@pilot_test
async def test_a_pasted_path_opens_the_video_and_other_text_is_a_question(tmp_path: Path) -> None:
    path = copy_of_demo(tmp_path, "my clip [red].mp4")
    async with Stage(says("x")).running(video=None) as pilot:
        prompt = main(pilot).query_one(QuestionInput)
        pilot.app.post_message(events.Paste(f"'{path}'"))
        await until(pilot, lambda: desk(pilot).forecast is not None, "a plan")
        assert desk(pilot).video is not None and desk(pilot).video.path == path and prompt.text == ""
        assert "my clip [red].mp4" in shown(pilot), "markup is text"
        pilot.app.post_message(events.Paste("what happens?"))
        await until(pilot, lambda: prompt.text == "what happens?", "the text")


@pilot_test
async def test_a_path_typed_into_the_dialog_and_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    async with Stage(says("x")).running(video=None) as pilot:
        await pilot.press("ctrl+o")
        await until(pilot, lambda: pilot.app.screen.query("#path"), "the dialog")
        path = pilot.app.screen.query_one("#path", Input)
        path.value = "assets/no-such.mp4"
        await pilot.press("enter")
        await until(pilot, lambda: "✗ there is no file assets/no-such.mp4" in shown(pilot), "told")
        await pilot.press("ctrl+u")
        assert path.value == ""
        path.value = "assets/demo.m"
        await pilot.press("tab")
        assert path.value == "assets/demo.mp4", "completed"
        await pilot.press("enter")
        await until(pilot, lambda: desk(pilot).forecast is not None, "a plan")
        assert "demo.mp4" in shown(pilot)


@pilot_test
async def test_the_demos_clip_is_offered_where_nothing_was_opened_yet() -> None:
    async with Stage(says("x")).running(video=None) as pilot:
        await pilot.press("ctrl+o")
        await until(
            pilot, lambda: isinstance(pilot.app.screen, OpenVideoScreen) and "demo.mp4" in shown(pilot), "the list"
        )
        pilot.app.screen.query_one("#recent", OptionList).focus()
        await pilot.press("down", "enter")
        await until(pilot, lambda: desk(pilot).forecast is not None, "a plan")


@pilot_test
async def test_a_question_without_a_video_asks_for_one_and_stays() -> None:
    async with Stage(says("x")).running(video=None) as pilot:
        prompt = main(pilot).query_one(QuestionInput)
        prompt.text = "what happens?"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, OpenVideoScreen), "the dialog")
        assert prompt.text == "what happens?"


@pilot_test
async def test_a_video_that_cannot_be_opened_leaves_the_open_one() -> None:
    async with Stage(says("x")).running() as pilot:
        main(pilot).post_message(VideoFailed("/x.mp4", VideoError("It is [b]no[/b] video.", "Take another.")))
        await until(pilot, lambda: "It is [b]no[/b] video. Take another." in shown(pilot), "told")
        assert desk(pilot).video is demo_video()


@pilot_test
async def test_another_video_stops_the_answer_and_begins_a_new_conversation() -> None:
    stage = Stage(says("A red square", before_end=(Gate(),)))
    async with stage.running() as pilot:
        await ask(pilot)
        await until(pilot, lambda: "A red square" in shown(pilot), "the text")
        main(pilot).open_path(str(ROOT / "assets" / "demo-two.mp4"))
        await until(pilot, lambda: desk(pilot).video is not demo_video(), "the other video")
        await until(pilot, lambda: desk(pilot).forecast is not None and not desk(pilot).bridge.busy, "its plan")
        assert "A red square" not in shown(pilot) and desk(pilot).conversation.exchanges == []


# Plans


@pilot_test
async def test_frames_and_size_trade_against_each_other() -> None:
    async with Stage(says("x")).running() as pilot:
        main(pilot).post_message(VideoOpened("long", replace(demo_video(), **minutes(10))))
        await until(pilot, lambda: desk(pilot).video is not demo_video(), "a long video")
        await until(pilot, lambda: desk(pilot).forecast is not None and not desk(pilot).bridge.busy, "a plan")
        first = await planned(pilot)
        knob = main(pilot).query_one("#knob-frames", PlanOption)
        await until(pilot, lambda: knob._planned == first.run_config.frames, "the knobs")
        knob.focus()
        await pilot.press("left", "left", "left")
        await until(
            pilot, lambda: desk(pilot).forecast.plan.run_config.frames < first.run_config.frames, "fewer frames"
        )  # type: ignore[union-attr]
        fewer = await planned(pilot)
        assert fewer.run_config.frames < first.run_config.frames
        assert fewer.run_config.height * fewer.run_config.width > first.run_config.height * first.run_config.width
        smaller = await planned(pilot, frames=None, size=(140, 168))
        assert smaller.run_config.frames > first.run_config.frames, "smaller frames make room for more of them"
        again = await planned(pilot, size=None)
        assert again.run_config == first.run_config


def minutes(count: int) -> dict[str, object]:
    """A long video of constant rate, 720p."""
    frames = 25 * 60 * count
    times = tuple(place / 25 for place in range(frames))
    size = {"width": 1280, "height": 720, "coded_width": 1280, "coded_height": 720}
    return {**size, "path": "long", "fps": 25.0, "frame_count": frames, "duration_seconds": 60.0 * count,
            "pts_seconds": times}  # fmt: skip


@pilot_test
async def test_what_does_not_fit_is_red_with_the_nearest_and_ctrl_t_takes_it() -> None:
    stage = Stage(says("x"))
    async with stage.running() as pilot:
        desk(pilot).change(vram_bytes=4 * 2**30, weights="bf16", frames=8)
        panel = main(pilot).query_one(PlanPanel)
        await until(pilot, lambda: panel.has_class("-refused"), "the refusal")
        forecast = desk(pilot).forecast
        assert forecast is not None and forecast.plan is None and forecast.nearest is not None
        summary = panel.query_one("#plan-summary", Static).content
        (start, style), *_ = [(span.start, span.style) for span in summary.spans]  # type: ignore[union-attr]
        assert start == 0 and "$text-error" in str(style) and str(summary).startswith("✗ does not fit")
        assert "ctrl+t takes it" in str(summary)
        assert "✗" in str(panel.query_one(BudgetBar).render()) and " over" in shown(pilot)
        await ask_refused(pilot)
        assert stage.session.asked == []
        await pilot.press("ctrl+t")
        await until(pilot, lambda: not panel.has_class("-refused"), "a plan")
        taken = desk(pilot).forecast
        assert taken is not None and taken.plan is not None
        assert taken.plan.run_config.weights == forecast.nearest.run_config.weights != "bf16"
        assert taken.plan.required_bytes <= 4 * 2**30
        await asked(pilot)
        assert len(stage.session.asked) == 1


async def ask_refused(pilot: Pilot[int]) -> None:
    """A question that would not fit stays in the prompt, and the reason is told."""
    prompt = main(pilot).query_one(QuestionInput)
    prompt.text = "what?"
    prompt.focus()
    await pilot.press("enter")
    await until(pilot, lambda: "Not asked" in shown(pilot), "told")
    assert prompt.text == "what?"


@pilot_test
async def test_only_the_newest_forecast_counts() -> None:
    async with Stage(says("x")).running() as pilot:
        old = desk(pilot).forecast
        assert old is not None
        new = await planned(pilot, frames=6)
        await main(pilot).on_plan_forecast(PlanForecast(desk(pilot)._number - 1, old, None))
        assert desk(pilot).forecast is not old and new.run_config.frames == 6
        assert "6 frames of" in shown(pilot)
        await main(pilot).on_plan_forecast(PlanForecast(desk(pilot)._number, old, None))
        assert desk(pilot).forecast is old, "and the newest does"


@pilot_test
async def test_brackets_choose_the_part_that_is_asked_about() -> None:
    stage = Stage(says("x"))
    async with stage.running() as pilot:
        timeline = main(pilot).query_one(Timeline)
        timeline.focus()
        timeline.cursor = 1.0
        await pilot.press("[")
        timeline.cursor = 3.0
        await pilot.press("]")
        await until(pilot, lambda: timeline.moments and 1 <= timeline.moments[0] < timeline.moments[-1] <= 3, "a plan")
        assert "only 0:01.0–0:03.0" in shown(pilot)
        await asked(pilot)
        assert (stage.session.asked[0].start_seconds, stage.session.asked[0].end_seconds) == (1.0, 3.0)
        timeline.focus()
        await pilot.press("backspace")
        await until(pilot, lambda: "whole video" in shown(pilot), "all of it")


# Models


@pilot_test
async def test_without_a_model_the_chooser_comes_first_and_says_what_fits() -> None:
    stage = Stage(says("x"))
    async with stage.running(model=None, video=None) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelChooser), "the chooser")
        await until(pilot, lambda: "demo" in shown(pilot), "the list")
        told = shown(pilot)
        assert "Which model should answer?" in told and "shapes only" in told
        assert "Qwen/Qwen2-VL-7B-Instruct" in told and "to fetch" in told
        assert "✓ fits" in told and "✗ does not fit: needs" in told
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, OpenVideoScreen), "and then a video")
        assert desk(pilot).model == "demo"
        await pilot.press("escape")
        await until(pilot, lambda: "demo model: coloured shapes only" in shown(pilot), "it is always on the screen")


@pilot_test
async def test_without_any_model_a_question_says_so() -> None:
    async with Stage(says("x")).running(model=None, video=None) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelChooser), "the chooser")
        await pilot.press("escape")
        await until(pilot, lambda: "no model yet" in shown(pilot) and "press F2" in shown(pilot), "the hint")
        main(pilot).post_message(VideoOpened(DEMO, demo_video()))
        await until(pilot, lambda: desk(pilot).video is not None, "a video")
        main(pilot).query_one(QuestionInput).text = "what?"
        await pilot.press("enter")
        await until(pilot, lambda: "There is no model yet. Choose one with F2." in shown(pilot), "told")


@pilot_test
async def test_another_model_answers_from_the_next_question_on() -> None:
    stage = Stage(says("x"))
    async with stage.running() as pilot:
        await asked(pilot)
        await pilot.press("f2")
        await until(pilot, lambda: "● Qwen/Qwen2-VL-2B-Instruct" in shown(pilot), "the one that answers is marked")
        options = pilot.app.screen.query_one(OptionList)
        options.highlighted = 0
        await pilot.press("enter")
        await until(pilot, lambda: desk(pilot).model == "demo", "chosen")
        await settled(pilot)
        await until(pilot, lambda: desk(pilot).forecast is not None, "a plan")
        await asked(pilot, "and now?")
        assert stage.session.config.model == "demo" and len(stage.session.asked) == 2
