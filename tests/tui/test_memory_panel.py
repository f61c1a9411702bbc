"""The memory panel: what it compares with the plan, and what it shows while a model is loaded."""

from dataclasses import replace

import pytest
from textual.widgets import Static

from tests.planner.plan_builders import SPEC_2B, made_run_config, plan_of
from tests.tui.scripted import CARD, AppHarness, Gate, demo_video, main, part, pilot_test, plays, says, shown, until
from vidqa.events import StageProgress, StageStarted
from vidqa.tui import controller
from vidqa.tui.progress_text import ProgressText
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.tui.widgets.memory_panel import MemoryPanel, Sample
from vidqa.tui.worker_messages import VideoOpened
from vidqa.types import MemoryLine

MIB = 2**20
# 800 MiB at the peak, 100 of them tensors, and a margin of 64.
PLAN = replace(
    plan_of(made_run_config(), SPEC_2B),
    lines=(
        MemoryLine("weights", 100 * MIB, ""),
        MemoryLine("runtime", 700 * MIB, "", "process"),
        MemoryLine("margin", 64 * MIB, "", "margin"),
    ),
    margin_bytes=64 * MIB,
)


def panel(process: int, tensors: int | None) -> str:
    """The panel after a vision phase that took so many MiB; 800 are planned, 100 of them tensors."""
    shown = MemoryPanel(id="memory")
    shown.show_plan(PLAN)
    counted = None if tensors is None else tensors * MIB
    shown.add_sample(Sample(process * MIB, 0), "vision", process * MIB, counted)
    return shown.render().plain


def test_tensors_are_listed_and_a_peak_below_its_plan_has_no_warning() -> None:
    drawn = panel(790, 90)
    assert "790.0 MiB now · 800.0 MiB planned" in drawn and "tensors: 90.0 MiB of 100.0 MiB planned" in drawn
    assert "above plan" not in drawn and "10.0 MiB below plan, 64.0 MiB margin unused" in drawn
    assert "tensors" not in panel(790, None)


def test_a_peak_above_its_plan_has_a_warning_with_its_cause() -> None:
    assert "! 12.0 MiB above plan, within the margin: the process grew besides its tensors" in panel(812, 90)
    assert "! 3.0 MiB above plan, within the margin: the tensors are larger than planned" in panel(812, 103)
    assert "! 12.0 MiB above plan and margin: the process uses more than planned" in panel(876, None)
    assert "below plan" not in panel(812, 90)


def test_a_line_says_why_the_memory_moves_while_nothing_runs() -> None:
    shown = MemoryPanel(id="memory")
    shown.show_device(CARD)
    shown.show_activity("loading")
    assert "loading the model, before you ask" in shown.render().plain
    shown.show_activity("nothing")
    for own, others, said in (
        (300, 50, "nothing runs: what is loaded stays"),
        (304, 50, "nothing runs; moved: 4.0 MiB by this process"),
        (302, 70, "nothing runs; moved: 4.0 MiB by this process, 20.0 MiB by other programs"),
    ):
        shown.add_sample(Sample(own * MIB, others * MIB))
        shown.tick()
        shown.show_activity("nothing")
        assert said in shown.render().plain.splitlines()
    for activity, running in (("download", "downloading a model"), ("question", "")):
        shown.show_activity(activity)
        drawn = shown.render().plain
        assert running in drawn and "moved" not in drawn and "nothing runs" not in drawn


def test_a_new_question_has_no_peak_yet() -> None:
    shown = MemoryPanel(id="memory")
    shown.show_plan(PLAN)
    shown.add_sample(Sample(812 * MIB, 0), "vision", 812 * MIB, 103 * MIB)
    shown.reset_peaks()
    assert "above plan" not in shown.render().plain and "tensors" not in shown.render().plain


def test_the_first_reading_is_that_of_the_plans_device() -> None:
    shown = MemoryPanel(id="memory")
    assert "now" not in shown.render().plain
    shown.show_device(replace(CARD, process_bytes=300 * MIB))
    assert "300.0 MiB now" in shown.render().plain


@pilot_test
async def test_the_memory_is_read_while_a_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "reread", lambda device: replace(device, process_bytes=700 * MIB))
    harness = AppHarness(says("x"), loads=plays(StageStarted("load", 10), Gate()))
    async with harness.running(video=None) as pilot:
        main(pilot).post_message(VideoOpened(demo_video()))
        await until(pilot, lambda: "loading the model" in shown(pilot), "the load")
        main(pilot).tick()
        await until(pilot, lambda: "700.0 MiB now" in shown(pilot), "the reading")
        main(pilot).controller.session_worker.stop()


def test_each_step_of_loading_has_a_text() -> None:
    progress = ProgressText()
    for stage, done, said in (
        ("libraries", 128, "loading the model: starting libraries 5 %"),
        ("speed", 3, "loading the model: measuring this machine's speed, once, 0 %"),
        ("load", 2**20, "loading the model: 1.0 MiB of 2.0 MiB"),
    ):
        total = {"libraries": 2560, "speed": 2560, "load": 2**21}[stage]
        progress.start(StageStarted(stage, total))  # type: ignore[arg-type]
        progress.update(StageProgress(stage, done, total))  # type: ignore[arg-type]
        assert progress.text().endswith(said)
        progress.update(StageProgress(stage, total, total))  # type: ignore[arg-type]
    assert progress.text() == "model loaded"


def test_a_scan_has_a_share_and_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 10.0))
    monkeypatch.setattr("vidqa.tui.progress_text.time.monotonic", lambda: next(clock))
    progress = ProgressText()
    progress.start(StageStarted("scan", 90_000))
    progress.update(StageProgress("scan", 41_000, 90_000))
    assert progress.text() == "scan 45 %"


@pilot_test
async def test_a_question_during_a_load_takes_over_its_progress() -> None:
    held = Gate()
    events = (StageStarted("scan", 100), StageProgress("scan", 45, 100), held, StageProgress("scan", 60, 100), Gate())
    harness = AppHarness(says("x"), loads=plays(*events))
    async with harness.running(video=None) as pilot:
        main(pilot).post_message(VideoOpened(demo_video()))
        status = main(pilot).query_one("#status", Static)
        await until(pilot, lambda: "scan 45 %" in str(status.content), "the load's progress")
        await main(pilot).ask("what happens?")
        assert not str(status.content)
        held.opened.set()
        await until(pilot, lambda: "scan 60 %" in str(part(pilot, ConversationEntry).status), "below it")
        assert not str(status.content)
        main(pilot).controller.session_worker.stop()
