"""Videos, plans and models: opening, ranges, options that trade, what does not fit, and models to choose from."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from tests.tui.scripted import (
    DEMO,
    ROOT,
    AppHarness,
    Gate,
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
    settled,
    shown,
    streaming,
    until,
)
from vidqa.errors import VideoError
from vidqa.tui.screens.model_chooser import ModelChooser
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.widgets.budget_bar import BudgetBar
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.question_input import dropped_path
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.worker_messages import PlanForecast, VideoFailed, VideoOpened
from vidqa.types import Plan, Request, VideoInfo
from vidqa.video.change_signal import ChangeSignal


async def plan_with(pilot: Pilot[int], **values: object) -> Plan:
    """Override, and return the new plan."""
    before = controller(pilot).forecast
    controller(pilot).override(**values)
    await until(pilot, lambda: controller(pilot).forecast is not before, "a plan")
    return current_plan(pilot)


def current_plan(pilot: Pilot[int]) -> Plan:
    forecast = controller(pilot).forecast
    assert forecast is not None and forecast.plan is not None
    return forecast.plan


# Videos


def copy_of_demo(folder: Path, name: str) -> str:
    path = folder / name
    path.write_bytes(Path(DEMO).read_bytes())
    return str(path)


def test_paths_are_read_however_they_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_of_demo(tmp_path, "it's a clip.mp4")
    escaped = path.replace(" ", "\\ ").replace("'", "\\'")
    address = "file://" + path.replace(" ", "%20").replace("'", "%27")
    for text in (path, path + "\n", f'"{path}"', escaped, address):
        assert dropped_path(text) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dropped_path("'~/it'\"'\"'s a clip.mp4'") == "~/it's a clip.mp4"
    for text in ("", "what happens?", str(tmp_path), f"{path} {path}", f"look at {path}", f"{path}\n{path}", "no.mp4"):
        assert dropped_path(text) is None


@pilot_test
async def test_a_pasted_path_opens_the_video_and_other_text_is_a_question(tmp_path: Path) -> None:
    path = copy_of_demo(tmp_path, "my clip [red].mp4")
    async with AppHarness(says("x")).running(video=None) as pilot:
        pilot.app.post_message(events.Paste(f"'{path}'"))
        await planned(pilot)
        assert controller(pilot).video.path == path and prompt(pilot).text == ""  # type: ignore[union-attr]
        assert "my clip [red].mp4" in shown(pilot), "markup is text"
        pilot.app.post_message(events.Paste("what happens?"))
        await until(pilot, lambda: prompt(pilot).text == "what happens?", "the text")


@pilot_test
async def test_a_path_typed_into_the_dialog_and_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    async with AppHarness(says("x")).running(video=None) as pilot:
        dialog = await opened(pilot, "ctrl+o", OpenVideoScreen)
        path = dialog.query_one("#path", Input)
        path.value = "assets/no-such.mp4"
        await press(pilot, "enter", lambda: "✗ there is no file assets/no-such.mp4" in shown(pilot))
        path.value = "assets/demo.m"
        await pilot.press("tab")
        assert path.value == "assets/demo.mp4", "completed"
        await pilot.press("enter")
        await planned(pilot)
        assert "demo.mp4" in shown(pilot)


@pilot_test
async def test_the_demos_clip_is_offered_if_nothing_was_opened_yet() -> None:
    async with AppHarness(says("x")).running(video=None) as pilot:
        dialog = await opened(pilot, "ctrl+o", OpenVideoScreen)
        await until(pilot, lambda: "demo.mp4" in shown(pilot), "the list")
        dialog.query_one("#recent", OptionList).focus()
        await pilot.press("down", "enter")
        await planned(pilot)


@pilot_test
async def test_a_question_without_a_video_opens_the_dialog_and_stays() -> None:
    async with AppHarness(says("x")).running(video=None) as pilot:
        prompt(pilot).text = "what happens?"
        await opened(pilot, "enter", OpenVideoScreen)
        assert prompt(pilot).text == "what happens?"


@pilot_test
async def test_a_video_that_cannot_be_opened_leaves_the_open_one() -> None:
    async with AppHarness(says("x")).running() as pilot:
        main(pilot).post_message(VideoFailed(VideoError("It is [b]no[/b] video.", "Take another.")))
        await until(pilot, lambda: "It is [b]no[/b] video. Take another." in shown(pilot), "the error")
        assert controller(pilot).video is demo_video()


@pilot_test
async def test_another_video_stops_the_answer_and_begins_a_new_conversation() -> None:
    async with AppHarness(says("A red square", before_end=(Gate(),))).running() as pilot:
        await streaming(pilot, "A red square")
        main(pilot).open_path(str(ROOT / "assets" / "demo-two.mp4"))
        await until(pilot, lambda: controller(pilot).video is not demo_video(), "the other video")
        await planned(pilot)
        assert "A red square" not in shown(pilot) and controller(pilot).conversation.exchanges == []


# Plans


def ten_minutes() -> VideoInfo:
    """A video of 10 minutes of 720p, with 25 frames per second."""
    frames = 25 * 600
    times = tuple(number / 25 for number in range(frames))
    long = replace(demo_video(), path="long", fps=25.0, frame_count=frames, duration_seconds=600.0, pts_seconds=times)
    return replace(long, width=1280, height=720, coded_width=1280, coded_height=720)


@pilot_test
async def test_frames_and_size_trade_against_each_other() -> None:
    async with AppHarness(says("x")).running() as pilot:
        main(pilot).post_message(VideoOpened(ten_minutes()))
        await until(pilot, lambda: controller(pilot).video is not demo_video(), "a long video")
        await planned(pilot)
        first = (await plan_with(pilot)).run_config
        option = main(pilot).query_one("#option-frames", PlanOption)
        await until(pilot, lambda: option._planned == first.frames, "the options")
        option.focus()
        await press(pilot, "left left left", lambda: current_plan(pilot).run_config.frames < first.frames)
        fewer = (await plan_with(pilot)).run_config
        assert fewer.frames < first.frames and fewer.height * fewer.width > first.height * first.width
        smaller = await plan_with(pilot, frames=None, size=(140, 168))
        assert smaller.run_config.frames > first.frames, "smaller frames make room for more of them"
        assert (await plan_with(pilot, size=None)).run_config == first


@pilot_test
async def test_what_does_not_fit_is_red_with_the_nearest_and_ctrl_t_uses_it() -> None:
    harness = AppHarness(says("x"))
    async with harness.running() as pilot:
        controller(pilot).override(vram_bytes=4 * 2**30, weights="bf16", frames=8)
        panel = part(pilot, PlanPanel)
        await until(pilot, lambda: panel.has_class("-refused"), "the refusal")
        forecast = controller(pilot).forecast
        assert forecast is not None and forecast.plan is None and forecast.nearest is not None
        summary = panel.query_one("#plan-summary", Static).content
        (start, style), *_ = [(span.start, span.style) for span in summary.spans]  # type: ignore[union-attr]
        assert start == 0 and "$text-error" in str(style) and str(summary).startswith("✗ does not fit")
        assert "ctrl+t uses it" in str(summary)
        assert "✗" in str(panel.query_one(BudgetBar).render()) and " over" in shown(pilot)
        prompt(pilot).text = "what?"
        prompt(pilot).focus()
        status = main(pilot).query_one("#status", Static)
        await press(pilot, "enter", lambda: "GiB" in str(status.content), "why the question is not asked")
        assert prompt(pilot).text == "what?" and harness.asked == []
        await press(pilot, "ctrl+t", lambda: not panel.has_class("-refused"), "a plan")
        used = current_plan(pilot)
        assert used.run_config.weights == forecast.nearest.run_config.weights != "bf16"
        assert used.required_bytes <= 4 * 2**30
        await asked(pilot)
        assert len(harness.asked) == 1


@pilot_test
async def test_the_longest_wait_can_be_set_and_what_is_too_slow_is_asked_with_ctrl_t() -> None:
    harness = AppHarness(says("x"))
    async with harness.running() as pilot:
        await planned(pilot)
        option = main(pilot).query_one("#option-max-wait-seconds", PlanOption)
        await until(pilot, lambda: option._planned is not None, "the options")
        assert "wait" in str(option.render()) and "(auto)" in str(option.render())
        whole = (await plan_with(pilot)).seconds.first_token_seconds
        quick = await plan_with(pilot, max_wait_seconds=0.9 * whole)
        assert quick.seconds.first_token_seconds <= 0.9 * whole
        assert any("to the first word (--max-wait" in limit for limit in quick.limits)
        assert (await plan_with(pilot, max_wait_seconds=inf)).limits == (await plan_with(pilot, quality="best")).limits
        controller(pilot).override(quality=None, max_wait_seconds=1e-3)
        panel = part(pilot, PlanPanel)
        await until(pilot, lambda: panel.has_class("-refused"), "the refusal")
        assert "takes about" in shown(pilot) and "to the first word" in shown(pilot)
        await press(pilot, "ctrl+t", lambda: not panel.has_class("-refused"), "a plan")
        wait = controller(pilot).overrides.max_wait_seconds
        assert wait is not None and current_plan(pilot).seconds.first_token_seconds <= wait < 10


@pilot_test
async def test_only_the_newest_forecast_counts() -> None:
    async with AppHarness(says("x")).running() as pilot:
        old = controller(pilot).forecast
        new = await plan_with(pilot, frames=6)
        await main(pilot).on_plan_forecast(PlanForecast(controller(pilot)._plan_number - 1, old, None))
        assert controller(pilot).forecast is not old and new.run_config.frames == 6
        assert "6 frames of" in shown(pilot)
        await main(pilot).on_plan_forecast(PlanForecast(controller(pilot)._plan_number, old, None))
        assert controller(pilot).forecast is old, "and the newest does"


@pilot_test
async def test_brackets_choose_the_part_that_is_asked_about() -> None:
    harness = AppHarness(says("x"))
    async with harness.running() as pilot:
        timeline = part(pilot, Timeline)
        timeline.focus()
        for seconds, key in ((1.0, "["), (3.0, "]")):
            timeline.cursor = seconds
            await pilot.press(key)
        await until(pilot, lambda: 1 <= min(timeline.timestamps) < max(timeline.timestamps) <= 3, "a plan for the part")
        assert "only 0:01.0–0:03.0" in shown(pilot)
        await asked(pilot)
        assert (harness.session.asked[0].start_seconds, harness.session.asked[0].end_seconds) == (1.0, 3.0)
        timeline.focus()
        await press(pilot, "backspace", lambda: "whole video" in shown(pilot))


# Models


@pilot_test
async def test_without_a_model_the_chooser_comes_first_and_says_what_fits() -> None:
    async with AppHarness(says("x")).running(model=None, video=None) as pilot:
        await until(pilot, lambda: is_open(pilot, ModelChooser) and "demo" in shown(pilot), "the chooser")
        text = shown(pilot)
        assert "Which model should answer?" in text and "shapes only" in text
        assert "Qwen/Qwen2-VL-7B-Instruct" in text and "to download" in text
        assert "✓ fits" in text and "✗ does not fit: needs" in text and "best here" in text
        await pilot.press("home")
        await opened(pilot, "enter", OpenVideoScreen)
        assert controller(pilot).model == "demo"
        await press(pilot, "escape", lambda: "demo model: coloured shapes only" in shown(pilot), "the title bar")


@pilot_test
async def test_without_any_model_a_question_opens_the_chooser_and_is_asked_then() -> None:
    harness = AppHarness(says("Fine."))
    async with harness.running(model=None, video=None) as pilot:
        await until(pilot, lambda: is_open(pilot, ModelChooser), "the chooser")
        await press(pilot, "escape", lambda: "no model yet" in shown(pilot) and "press F2" in shown(pilot))
        main(pilot).post_message(VideoOpened(demo_video()))
        await until(pilot, lambda: controller(pilot).video is not None, "a video")
        prompt(pilot).text = "what?"
        await press(pilot, "enter", lambda: "Which model should answer your question?" in shown(pilot))
        await press(pilot, "home enter", lambda: "Fine." in shown(pilot), "the answer of the demo model")
        assert harness.asked == ["what?"] and prompt(pilot).text == ""


@pilot_test
async def test_another_model_answers_from_the_next_question_on() -> None:
    harness = AppHarness(says("x"))
    async with harness.running() as pilot:
        await asked(pilot)
        chooser = await opened(pilot, "f2", ModelChooser)
        await until(pilot, lambda: "● Qwen/Qwen2-VL-2B-Instruct" in shown(pilot), "the current one is marked")
        chooser.query_one(OptionList).highlighted = 0
        await press(pilot, "enter", lambda: controller(pilot).model == "demo")
        await settled(pilot)
        await planned(pilot)
        await asked(pilot, "and now?")
        assert harness.session.config.model == "demo" and len(harness.asked) == 2


@pilot_test
async def test_the_time_line_draws_the_change_of_a_scanned_video() -> None:
    harness = AppHarness(says("x"))
    request = Request(video="", question="", frames=4, sample="change")
    async with harness.running(request=request) as pilot:
        line, video = part(pilot, Timeline), demo_video()
        assert line.signal is None and "█" not in line.render().plain
        even = line.timestamps
        seconds = tuple(map(video.shown_seconds, range(video.frame_count)))
        change = tuple(1.0 if 60 <= index < 64 else 0.0 for index in range(video.frame_count))
        harness.session.signal = ChangeSignal(seconds, change)
        controller(pilot).plan()
        await until(pilot, lambda: line.signal is not None, "the signal")
        assert "█" in line.render().plain
        assert line.timestamps != even and sum(2.4 <= one <= 2.75 for one in line.timestamps) >= 2
        harness.session.signal = None
        main(pilot).post_message(VideoOpened(replace(video, path="other.mp4")))
        await until(pilot, lambda: line.signal is None, "the other video")
