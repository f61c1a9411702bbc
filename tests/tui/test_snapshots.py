"""Pictures of the screen in every state, at three sizes. Each comes with words that must be in it.

No picture depends on the time: scripts stop at gates, the clock is fixed, cursors do not blink, and the history has
fixed times. `scripts/test tests/tui/test_snapshots.py --snapshot-update` draws them again.
"""

import difflib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytest_textual_snapshot import SVGImageExtension
from syrupy.assertion import SnapshotAssertion
from textual.pilot import Pilot
from textual.widgets import Input, LoadingIndicator, TextArea

from tests.answer_builders import made_answer, made_clip
from tests.tui.scripted import (
    ROOT,
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
    says,
    screen_text,
    settled,
    shown,
    streaming,
    until,
)
from tests.tui.svg import slim, words
from tests.tui.test_find import finds, found
from vidqa.errors import ModelError
from vidqa.events import Degraded, Event, StageProgress, StageStarted
from vidqa.history.store import FILE_NAME, History
from vidqa.tui import progress_text
from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.tui.screens.dialogs import TextViewer
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.widgets.timeline import Timeline
from vidqa.tui.worker_messages import FrameDecoded
from vidqa.types import Plan, Request, VideoInfo
from vidqa.video.change_signal import ChangeSignal

SIZES = ((120, 36), (80, 24), (60, 20))
ANSWER = ("A **red square** moves to the right ", "from 0:01 to 0:03.\n\n- it ", "slows down\n- then it stops")
REPEATS = 20  # under --long
_NOON = 1_750_000_000.0  # 2025-06-15 15:06:40 UTC


@dataclass(frozen=True)
class State:
    """How to get to a picture, and the words that must be in it; `panel` shows the plan in it."""

    script: Script
    arrange: Callable[[Pilot[int]], Awaitable[object]]
    holds: tuple[str, ...]
    options: dict[str, object] = field(default_factory=dict)
    panel: bool = False


async def nothing(pilot: Pilot[int]) -> None:
    """Leave the screen as it is after the start."""


async def frames_come(pilot: Pilot[int]) -> None:
    """Pictures of the sampled frames, in plain colours."""
    plan = controller(pilot).forecast.plan  # type: ignore[union-attr]
    assert plan is not None
    for number, index in enumerate(plan.indices):
        colour = bytes((40 + 25 * number, 90, 200 - 20 * number))
        main(pilot).post_message(FrameDecoded(index, HalfBlockImage(16, 12, colour * (16 * 12))))
    await until(pilot, lambda: "▀" in screen_text(pilot.app), "the pictures are drawn")


async def too_much(pilot: Pilot[int]) -> None:
    """All frames, and weights as large as the budget."""
    controller(pilot).override(frames=demo_video().frame_count, vram_bytes=4 * 2**30, weights="bf16")
    await until(pilot, lambda: controller(pilot).forecast.refusal, "a refusal")  # type: ignore[union-attr]


async def stop_it(pilot: Pilot[int]) -> None:
    """Ask, wait for text, stop."""
    await streaming(pilot, "slows down")
    await pilot.press("escape")
    await settled(pilot)


async def failed(pilot: Pilot[int]) -> None:
    """Ask what fails."""
    await asked(pilot)
    await until(pilot, lambda: "Fetch the model" in screen_text(pilot.app), "the remedy")


async def history_opened(pilot: Pilot[int]) -> None:
    """F4."""
    await opened(pilot, "f4", HistoryBrowser)


async def moment_chosen(pilot: Pilot[int]) -> None:
    """Search a scanned video, and choose the second moment."""
    await found(pilot)
    await press(pilot, "2", lambda: "(moment 2)" in shown(pilot) or "moment 2: only" in shown(pilot))
    await until(pilot, lambda: not controller(pilot).session_worker.busy)
    await until(pilot, lambda: len(part(pilot, Timeline).timestamps) == 16, "the plan of the moment")
    seconds = tuple(number / 10 for number in range(40))
    change = tuple(0.5 if number in (11, 12, 20, 31) else 0.01 for number in range(40))
    part(pilot, Timeline).signal = ChangeSignal(seconds, change, (2.0,))


def text_drawn(text: str) -> Callable[[Pilot[int]], Awaitable[None]]:
    """Ask, and wait until some text is drawn."""
    return partial(streaming, text=text)


async def palette_opened(pilot: Pilot[int]) -> None:
    """The palette, with some letters."""
    await press(pilot, "ctrl+p", lambda: pilot.app.screen.query(Input), "the palette")
    pilot.app.screen.query_one(Input).value = "cop"
    await until(pilot, lambda: "Copy answer" in screen_text(pilot.app), "the hits")
    await until(pilot, lambda: not any(one.visible for one in pilot.app.screen.query(LoadingIndicator)), "all hits")


def degrades(request: Request, plan: Plan, video: VideoInfo) -> list[Event]:
    """Memory ran out once."""
    step = Degraded("prefill", "half the frames", plan)
    return list(says(*ANSWER, after_start=(step,))(request, plan, video))  # type: ignore[arg-type]


PLAIN, STOPS = says(*ANSWER), says(*ANSWER, before_end=(Gate(),))
HALF_WAY = plays(StageStarted("video", 8), StageProgress("video", 3, 8), Gate())
FAILS = plays(ModelError("The weights are damaged.", "Fetch the model again with `vidqa models`."))
STATES = {
    "empty": State(PLAIN, nothing, ("Open a video", "no video", "Question"), {"video": None}),
    "planning": State(PLAIN, frames_come, ("demo.mp4", "8 frames", "Ask about"), {"images": "half"}),
    "does-not-fit": State(PLAIN, too_much, ("✗ does not fit", "ctrl+t uses it", "frames"), panel=True),
    "decoding": State(HALF_WAY, text_drawn("video 3/8"), ("› what is there?", "video 3/8 frames")),
    "streaming": State(STOPS, text_drawn("slows down"), ("red square", "decode 0/256 tokens")),
    "answered": State(PLAIN, asked, ("red square", "then it stops", "51 tokens")),
    "found": State(PLAIN, moment_chosen, ("› find a red circle", "score 3.00", "● 2", "moment 2: only")),
    "stopped": State(STOPS, stop_it, ("red square", "■ stopped")),
    "degraded": State(degrades, asked, ("note: prefill ran out of memory", "half the frames"), panel=False),
    "error": State(FAILS, failed, ("› what is there?", "The weights are damaged.", "Fetch the model again")),
    "help": State(PLAIN, lambda pilot: opened(pilot, "f1", TextViewer), ("Prompt", "Keys here", "Ask this question")),
    "history": State(PLAIN, history_opened, ("Earlier", "what happens?", "2025-06-15 15:06", "holiday")),
    "palette": State(PLAIN, palette_opened, ("Copy answer", "Copy the last answer")),
}


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fixed clock, in UTC, and no NO_COLOR."""
    monkeypatch.setattr(progress_text, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def write_history(folder: Path) -> None:
    """Two conversations at known times."""
    history = History(folder / FILE_NAME)
    for path, question in (("/clips/street.mp4", "what happens?"), ("/clips/holiday.mov", "who is on the beach?")):
        number = history.begin_session(made_clip(path), "Qwen/Qwen2-VL-2B-Instruct")
        history.finish_turn(history.begin_turn(number, question), made_answer("A dog runs."))
    history.close()
    with sqlite3.connect(folder / FILE_NAME) as rows:
        rows.execute("UPDATE sessions SET updated = ? + 3600 * id, created = 0", (_NOON - 2 * 3600,))
    rows.close()


async def picture(pilot: Pilot[int]) -> str:
    """The screen once it no longer changes."""
    editors = [editor for screen in pilot.app.screen_stack for editor in screen.query("Input, TextArea")]
    for editor in editors:
        assert isinstance(editor, Input | TextArea)
        editor.cursor_blink = False
    drawn = ""
    for _ in range(100):
        await pilot.pause()
        before, drawn = drawn, slim(pilot.app.export_screenshot(title="vidqa", simplify=True))
        if before == drawn:
            return drawn
    raise AssertionError(f"the screen keeps changing\n{screen_text(pilot.app)}")


async def check(pilot: Pilot[int], state: State, size: tuple[int, int], snapshot: SnapshotAssertion) -> None:
    """Words and picture at one size."""
    await pilot.resize_terminal(*size)
    await until(pilot, lambda: pilot.app.size == size, "the size")
    if state.panel and main(pilot).has_class("-narrow") and not main(pilot).has_class("-panel"):
        await press(pilot, "f3", lambda: main(pilot).query(PlanOption).first().has_focus, "the panel")
    drawn = await picture(pilot)
    assert [text for text in state.holds if text not in shown(pilot)] == [], screen_text(pilot.app)
    recorded = snapshot(name="{}x{}".format(*size))
    if drawn != recorded:
        lines = difflib.unified_diff(words(str(recorded)), words(drawn), "recorded", "drawn", n=1, lineterm="")
        pytest.fail("\n".join([f"the picture at {size} is another one (colours or places, if no word is):", *lines]))


@pytest.mark.parametrize("name", STATES)
def test_looks_like_its_picture(
    name: str,
    snapshot: SnapshotAssertion,
    steady: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(ROOT)
    state, options = STATES[name], dict(STATES[name].options)
    if name == "history":
        write_history(tmp_path)
        options["state"] = tmp_path

    @pilot_test
    async def draw() -> None:
        async with AppHarness(state.script, finds=finds()).running(SIZES[0], **options) as pilot:
            await state.arrange(pilot)
            for size in SIZES:
                await check(pilot, state, size, snapshot.use_extension(SVGImageExtension))

    for _ in range(REPEATS if request.config.getoption("--long") else 1):
        draw()
