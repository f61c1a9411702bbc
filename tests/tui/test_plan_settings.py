"""The plan's options sample, prune, focus and subs: what they change, and what the plan says of them."""

from dataclasses import replace
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.tui.scripted import (
    DEMO,
    AppHarness,
    asked,
    controller,
    demo_video,
    main,
    opened,
    part,
    pilot_test,
    planned,
    press,
    says,
    until,
)
from vidqa.tui.plan_overrides import PLANNED_QUESTION, PlanOverrides
from vidqa.tui.screens.dialogs import LineDialog
from vidqa.tui.widgets.plan_option import PlanOption, option_id
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.worker_messages import VideoOpened
from vidqa.types import Request
from vidqa.video.change_signal import ChangeSignal

SRT = "1\n00:00:01,000 --> 00:00:02,000\nHello there.\n"


def notes(pilot: Pilot[int]) -> str:
    """The lines below the options."""
    return str(part(pilot, PlanPanel).query_one("#plan-limits", Static).content)


def option(pilot: Pilot[int], field: str) -> PlanOption:
    return main(pilot).query_one(f"#{option_id(field)}", PlanOption)


async def step(pilot: Pilot[int], field: str, key: str, words: str) -> None:
    """Press a key on an option and wait for what the option shows."""
    option(pilot, field).focus()
    await press(pilot, key, lambda: words in str(option(pilot, field).render()), words)


def test_without_a_choice_request_and_settings_are_those_of_the_start() -> None:
    base = Request("clip.mp4", PLANNED_QUESTION, sample="change", focus="auto", subs="off")
    assert PlanOverrides().request(base, PLANNED_QUESTION) == base
    config = AppHarness(says("x")).app().options.engine
    assert PlanOverrides().config(config) == config
    assert PlanOverrides(prune=0.25).config(config) == replace(config, prune=0.25)
    chosen = PlanOverrides(sample="uniform", focus="off", subs="auto").request(base, PLANNED_QUESTION)
    assert (chosen.sample, chosen.focus, chosen.subs) == ("uniform", "off", "auto")


@pilot_test
async def test_each_option_is_set_by_keys_and_goes_back_to_the_setting() -> None:
    app = AppHarness(says("x"))
    async with app.running() as pilot:
        for field, value in (("sample", "change"), ("prune", "auto"), ("focus", "auto"), ("subs", "embedded")):
            await step(pilot, field, "right", value)
        await asked(pilot, "what color is it?")
        (request,) = app.session.asked
        assert (request.sample, request.focus, request.subs) == ("change", "auto", "embedded")
        assert app.session.config.prune == "auto"
        for field, value in (("sample", "uniform"), ("prune", "off"), ("focus", "off"), ("subs", "auto")):
            await step(pilot, field, "backspace", value)
        await asked(pilot, "and now?")
        request = app.session.asked[1]
        assert (request.sample, request.focus, request.subs) == ("uniform", "off", "auto")
        assert app.session.config.prune == "off"


@pilot_test
async def test_the_plan_says_why_an_option_does_nothing() -> None:
    app = AppHarness(says("x"))
    async with app.running() as pilot:
        assert "focus" not in notes(pilot) and "subtitles" not in notes(pilot)
        controller(pilot).override(focus="auto")
        await until(pilot, lambda: "too few are left to choose from" in notes(pilot), "a short video")
        controller(pilot).override(prune="auto")
        await until(pilot, lambda: "focus: even, since visual tokens are dropped (prune)" in notes(pilot), "both")
        controller(pilot).override(prune=1.0)
        await until(pilot, lambda: "prune: no visual token is dropped at the share 1" in notes(pilot), "a share of all")
        controller(pilot).override(prune=0.25, focus="off", sample="change")
        await until(pilot, lambda: "even frames until the video is scanned" in notes(pilot), "no scan")
        assert " of 560 visual" in str(part(pilot, PlanPanel).query_one("#plan-summary", Static).content)
        video = demo_video()
        seconds = tuple(map(video.shown_seconds, range(video.frame_count)))
        app.session.signal = ChangeSignal(seconds, (0.0,) * video.frame_count)
        controller(pilot).plan()
        await until(pilot, lambda: notes(pilot).count("even frames: ") == 1 and "not scanned" not in notes(pilot))


@pilot_test
async def test_a_file_of_subtitles_is_read_for_the_open_video_and_keeps_the_conversation(tmp_path: Path) -> None:
    good, bad = tmp_path / "said.srt", tmp_path / "folder.srt"
    good.write_text(SRT)
    bad.mkdir()
    app = AppHarness(says("x"))
    async with app.running(video=DEMO) as pilot:
        await planned(pilot)
        await asked(pilot, "what color is it?")
        option(pilot, "subs").focus()
        dialog = await opened(pilot, "right right", LineDialog)
        await press(pilot, "enter", lambda: "There is no file" in str(dialog.query_one("#line-error", Static).content))
        dialog.query_one(Input).value = str(good)
        await press(pilot, "enter", lambda: "subtitles: 1 line of said.srt" in notes(pilot), "the lines")
        video = controller(pilot).video
        assert video is not None and video.subtitles is not None
        assert "said.srt" in str(option(pilot, "subs").render())
        assert len(controller(pilot).conversation.exchanges) == 1, "the conversation goes on"
        main(pilot).choose_subtitles(str(bad))
        await until(pilot, lambda: controller(pilot).overrides.subs == str(good), "the ones before")
        main(pilot).choose_subtitles("off")
        await until(pilot, lambda: controller(pilot).video.subtitles is None, "none")  # type: ignore[union-attr]
        await until(pilot, lambda: "subtitles" not in notes(pilot), "the plan without them")


@pilot_test
async def test_a_closed_dialog_and_another_video_leave_no_file(tmp_path: Path) -> None:
    async with AppHarness(says("x")).running() as pilot:
        await step(pilot, "subs", "right", "embedded")
        await until(pilot, lambda: "subtitles: there are none in the video" in notes(pilot), "the reason")
        await opened(pilot, "right", LineDialog)
        await press(pilot, "escape", lambda: "embedded" in str(option(pilot, "subs").render()), "the choice before")
        state = controller(pilot)
        state.overrides = replace(state.overrides, subs=str(tmp_path / "said.srt"))
        main(pilot).post_message(VideoOpened(replace(demo_video(), path="other.mp4")))
        await until(pilot, lambda: state.video is not None and state.video.path == "other.mp4", "the other video")
        assert state.overrides.subs is None and state.request("what?").subs == "auto"
        state.override(subs="off")
        assert state.subtitles("a third.mp4") == "off", "a choice that is no file goes on to other videos"
        state.override(subs=str(tmp_path / "said.srt"))
        assert state.subtitles("a third.mp4") == "auto"
        state.set_video(replace(demo_video(), path="other.mp4"))
        assert state.overrides.subs == str(tmp_path / "said.srt"), "the same video again"
