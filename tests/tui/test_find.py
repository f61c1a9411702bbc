"""Finding moments in the session: search, list, marks, the question about one, stops and bad input."""

from dataclasses import replace

from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.tui.scripted import (
    AppHarness,
    Gate,
    Script,
    asked,
    controller,
    demo_video,
    main,
    opened,
    part,
    pilot_test,
    plays,
    press,
    prompt,
    says,
    screen_text,
    shown,
    streaming,
    until,
)
from vidqa.errors import VideoNotFound
from vidqa.events import Event, Found, Noted, OutOfDomain, Planned, StageProgress, StageStarted
from vidqa.tui.screens.dialogs import LineDialog
from vidqa.tui.screens.open_video import OpenVideoScreen
from vidqa.tui.widgets.plan_panel import PlanPanel
from vidqa.tui.widgets.search_view import MomentList, SearchView
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.worker_messages import VideoOpened
from vidqa.types import Plan, Request, VideoInfo
from vidqa.utils.frame_choice import SliceSelection
from vidqa.video.change_signal import ChangeSignal

SCORES = (0.2, 0.2, 3.0, 0.2, 0.2, 0.2, 2.0, 0.2)  # of slices of half a second: the best is around 1.25 s
SECOND = (2.25, demo_video().duration_seconds)
CANDIDATE_SECONDS = tuple(0.125 + 0.25 * number for number in range(16))
SECONDS = tuple(0.25 + 0.5 * number for number in range(8))


def finds(*before_end: Event | Gate) -> Script:
    """A script that finds the moments of SCORES."""

    def script(request: Request, plan: Plan, video: VideoInfo) -> list[Event | Gate]:
        selection = SliceSelection(SECONDS, SCORES, (2, 6))
        found = replace(plan, selection=selection, candidates=tuple(range(16)), candidate_seconds=CANDIDATE_SECONDS)
        stages = (StageStarted("focus", 8), StageProgress("focus", 3, 8))
        return [Planned(video, plan), *stages, *before_end, Found(video, found)]

    return script


def harness(*before_end: Event | Gate, script: Script | None = None) -> AppHarness:
    return AppHarness(script or says("red."), finds=finds(*before_end))


async def search(pilot: Pilot[int], text: str = "a red circle", key: str = "f12") -> None:
    """Open the dialog, write a text and press Enter."""
    dialog = await opened(pilot, key, LineDialog)
    dialog.query_one(Input).value = text
    await pilot.press("enter")


async def found(pilot: Pilot[int], text: str = "a red circle") -> Timeline:
    """Search, and wait for the moments and the plan after them."""
    await search(pilot, text)
    timeline = part(pilot, Timeline)
    await until(pilot, lambda: timeline.moments and not controller(pilot).session_worker.busy, "moments")
    return timeline


def span(pilot: Pilot[int]) -> tuple[float | None, float | None]:
    overrides = controller(pilot).overrides
    return overrides.start_seconds, overrides.end_seconds


@pilot_test
async def test_moments_are_listed_and_marked_and_the_next_question_is_about_the_chosen_one() -> None:
    app = harness(Noted("a note"))
    async with app.running() as pilot:
        timeline = await found(pilot)
        text = shown(pilot)
        assert "› find a red circle" in text and "1 0:01.0–0:01.5 score 3.00" in text
        assert "2 0:03.0–0:03.5 score 2.00" in text and "note: a note" in text
        assert "2 moments in 16 frames · Enter or 1–2: ask about it" in text
        assert (timeline.moments[0].score, timeline.moments[1].score) == (3.0, 2.0)
        assert timeline.cursor == 1.25, "the cursor is at the best one"
        (request,) = app.session.searched
        assert (request.question, request.history, request.frames) == ("a red circle", (), None)
        assert pilot.app.focused is part(pilot, MomentList)
        await press(pilot, "down enter", lambda: span(pilot) == SECOND, "2 s around the second moment")
        assert prompt(pilot).has_focus and "Question about moment 2, 0:02.2–0:04.0 · Esc clears" in shown(pilot)
        await until(pilot, lambda: "only 0:02.2–0:04.0 (moment 2)" in shown(pilot), "the plan's line")
        await asked(pilot, "what color is it?")
        assert (app.session.asked[0].start_seconds, app.session.asked[0].end_seconds) == SECOND
        assert app.session.asked[0].history == (), "a search is no turn"


@pilot_test
async def test_a_moment_is_chosen_by_number_or_click_and_left_by_the_same_or_escape() -> None:
    async with harness().running() as pilot:
        timeline = await found(pilot)
        await press(pilot, "2", lambda: span(pilot) == SECOND, "a number in the list")
        await press(pilot, "escape", lambda: span(pilot) == (None, None), "left")
        assert "Question about" not in shown(pilot) and len(timeline.moments) == 2, "the marks stay"
        timeline.focus()
        await press(pilot, "1", lambda: timeline.chosen == 0 and span(pilot) == (0.25, 2.25), "on the time line")
        timeline.focus()
        await press(pilot, "1", lambda: span(pilot) == (None, None), "the same again")
        column = round(1.25 / timeline.duration * (timeline.size.width - 1)) + 1  # and the padding
        await pilot.click(Timeline, offset=(column, 0))
        await until(pilot, lambda: timeline.chosen == 0, "a click on a mark")
        await pilot.click(MomentList, offset=(5, 1))
        await until(pilot, lambda: timeline.chosen == 1, "a click in the list")
        timeline.focus()
        await press(pilot, "backspace", lambda: span(pilot) == (None, None), "the whole video")
        assert timeline.chosen is None and "whole video" in shown(pilot)


@pilot_test
async def test_a_search_stays_in_the_range_that_was_used_before_a_moment_was_chosen() -> None:
    app = harness()
    async with app.running() as pilot:
        controller(pilot).override(start_seconds=1.2, end_seconds=3.8)
        await found(pilot)
        await press(pilot, "1", lambda: span(pilot) == (1.2, 2.25), "within what was searched")
        await found(pilot, "a blue square")
        assert [(one.start_seconds, one.end_seconds) for one in app.session.searched] == [(1.2, 3.8)] * 2
        assert span(pilot) == (1.2, 3.8) and len(main(pilot).query(SearchView)) == 2
        controller(pilot).override(start_seconds=None, end_seconds=None)
        first = main(pilot).query(SearchView).first()
        first.focus_list()
        await press(pilot, "2", lambda: span(pilot) == (2.25, 3.8), "of the first search, in its range")


@pilot_test
async def test_a_range_that_is_chosen_during_a_search_stays() -> None:
    gate = Gate()
    async with harness(gate).running() as pilot:
        await search(pilot)
        await until(pilot, lambda: "focus 3/8 slices" in shown(pilot), "progress")
        controller(pilot).override(start_seconds=1.5)
        gate.opened.set()
        await until(pilot, lambda: bool(part(pilot, Timeline).moments), "moments")
        assert span(pilot) == (1.5, None) and controller(pilot).moment is None


@pilot_test
async def test_the_prompt_says_that_a_question_is_edited_also_while_a_moment_is_chosen() -> None:
    async with harness().running() as pilot:
        await asked(pilot)
        await found(pilot)
        await press(pilot, "1", lambda: "Question about moment 1" in shown(pilot))
        await press(pilot, "f6", lambda: "Edit the last question (Esc cancels)" in shown(pilot))
        await press(pilot, "escape", lambda: "Question about moment 1" in shown(pilot), "the edit is cancelled")
        assert prompt(pilot).text == ""


@pilot_test
async def test_a_search_shows_progress_and_escape_stops_it() -> None:
    app = harness(Gate())
    async with app.running() as pilot:
        await search(pilot)
        await until(pilot, lambda: "focus 3/8 slices" in shown(pilot), "progress")
        prompt(pilot).text = "what?"
        prompt(pilot).focus()
        await press(pilot, "enter", lambda: "A search is running. Wait for it, or stop it with Esc" in shown(pilot))
        assert prompt(pilot).text == "what?", "the question is kept"
        await press(pilot, "escape", lambda: not controller(pilot).answering, "the stop")
        assert "stopped" in shown(pilot) and part(pilot, Timeline).moments == ()
        await asked(pilot, "and now?")
        assert app.asked == ["and now?"]


@pilot_test
async def test_a_search_in_a_video_that_the_model_cannot_know_says_so_above_and_below_the_moments() -> None:
    async with harness(OutOfDomain("drawn shapes", "`vidqa pull 3-vl-4b` fits here.")).running(size=(240, 40)) as pilot:
        await found(pilot)
        lines = screen_text(pilot.app).splitlines()
        above, below = (row for row, line in enumerate(lines) if "The demo model knows" in line)
        assert above < next(row for row, line in enumerate(lines) if "score 3.00" in line) < below


@pilot_test
async def test_a_search_during_an_answer_is_refused_and_its_text_kept() -> None:
    app = harness(script=says("A red square", before_end=(Gate(),)))
    async with app.running() as pilot:
        await streaming(pilot, "A red square")
        await search(pilot)
        await until(pilot, lambda: "Nothing was searched" in shown(pilot), "the refusal")
        assert "Another question is being answered." in shown(pilot) and app.session.searched == []
        await press(pilot, "escape", lambda: not controller(pilot).answering, "the stop")
        dialog = await opened(pilot, "ctrl+f", LineDialog)
        assert dialog.query_one(Input).value == "a red circle"


@pilot_test
async def test_bad_texts_and_failures_are_said_in_place() -> None:
    gone = VideoNotFound("There is no video [b]demo.mp4[/b].", "Check the path.")
    app = AppHarness(says("red."), finds=plays(gone))
    async with app.running() as pilot:
        dialog = await opened(pilot, "f12", LineDialog)
        await press(pilot, "enter", lambda: "The text is empty." in shown(pilot), "the empty text")
        dialog.query_one(Input).value = "red \x1b[31m" + "circle " * 500
        await press(pilot, "enter", lambda: "✗ There is no video [b]demo.mp4[/b]." in shown(pilot), "the error")
        assert "Check the path." in shown(pilot) and not controller(pilot).answering
        assert "\x1b" not in shown(pilot) and 10 < shown(pilot).count("circle") < 30, "the text is cut"
        await asked(pilot, "what is it?")
        assert app.asked == ["what is it?"]


@pilot_test
async def test_without_a_video_the_dialog_that_opens_one_comes() -> None:
    async with harness().running(video=None) as pilot:
        await opened(pilot, "f12", OpenVideoScreen)


@pilot_test
async def test_marks_go_with_their_search_their_conversation_and_their_video() -> None:
    async with harness().running() as pilot:
        timeline = await found(pilot)
        await press(pilot, "1", lambda: span(pilot) == (0.25, 2.25))
        part(pilot, SearchView).focus_list()
        await press(pilot, "delete", lambda: timeline.moments == () and span(pilot) == (None, None), "removed")
        assert not main(pilot).query(SearchView)
        await found(pilot)
        await press(pilot, "1", lambda: span(pilot) == (0.25, 2.25))
        await press(pilot, "ctrl+n", lambda: timeline.moments == () and span(pilot) == (None, None), "a new one")
        await found(pilot)
        main(pilot).post_message(VideoOpened(replace(demo_video(), path="other.mp4")))
        await until(pilot, lambda: timeline.moments == (), "another video")
        assert controller(pilot).found is None


@pilot_test
async def test_the_time_line_has_a_line_of_marks_where_there_is_room() -> None:
    async with harness().running((80, 24)) as pilot:
        timeline = part(pilot, Timeline)
        assert timeline.size.height == 2
        times = tuple(number / 10 for number in range(40))
        await found(pilot)
        timeline.signal = ChangeSignal(times, tuple(0.9 if number == 20 else 0.0 for number in range(40)), (2.5,))
        for size in ((80, 24), (60, 20), (120, 36), (60, 12)):
            await pilot.resize_terminal(*size)
            high = 3 if size[1] >= 16 else 2
            await until(pilot, lambda high=high: timeline.size.height == high, f"{size}")
            lines = timeline.render().plain.splitlines()
            assert all(mark in lines[0] for mark in "12╎") and len(lines) == high
            assert "2 moments" in lines[-1] and ("1 cut" in lines[-1]) is (size[0] > 60)
            assert ("●" in lines[0]) is (high == 2) and "●" in lines[high - 2]


@pilot_test
async def test_a_question_typed_meanwhile_keeps_the_focus() -> None:
    gate = Gate()
    async with harness(gate).running() as pilot:
        await search(pilot)
        prompt(pilot).text = "what"
        prompt(pilot).focus()
        gate.opened.set()
        await until(pilot, lambda: part(pilot, Timeline).moments, "moments")
        assert prompt(pilot).has_focus and prompt(pilot).text == "what"


@pilot_test
async def test_the_plan_says_the_range_of_a_moment() -> None:
    async with harness().running() as pilot:
        await found(pilot)
        summary = part(pilot, PlanPanel).query_one("#plan-summary", Static)
        assert "only" not in str(summary.content)
        await press(pilot, "1", lambda: "only 0:00.2–0:02.2 (moment 1)" in str(summary.content), "the range")
        assert "16 frames" in str(summary.content)
