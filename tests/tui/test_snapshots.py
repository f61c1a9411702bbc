"""How the screen looks, in every state and at three sizes. Each picture comes with words that must be in it.

Nothing in a picture depends on the time: scripts stop at gates, the clock stands, cursors do not blink, and
the history's times are written into its file. `scripts/test tests/tui --snapshot-update` draws them anew.
"""

import difflib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytest_textual_snapshot import SVGImageExtension
from syrupy.assertion import SnapshotAssertion
from textual.pilot import Pilot
from textual.widgets import Input, LoadingIndicator, TextArea

from tests.answer_builders import made_answer, made_clip
from tests.tui.scripted import (
    DEMO,
    ROOT,
    Gate,
    Script,
    Stage,
    ask,
    asked,
    demo_video,
    main,
    pilot_test,
    says,
    screen_text,
    settled,
    shown,
    until,
)
from tests.tui.svg import slim, words
from vidqa.errors import ModelError
from vidqa.events import Degraded, Event, Planned, StageProgress, StageStarted
from vidqa.history.store import FILE_NAME, History
from vidqa.tui import progress_text
from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.tui.screens.history_browser import HistoryBrowser
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.tui.worker_messages import FrameShown
from vidqa.types import Plan, Request, VideoInfo

SIZES = ((120, 36), (80, 24), (60, 20))
ANSWER = ("A **red square** moves to the right ", "from 0:01 to 0:03.\n\n- it ", "slows down\n- then it stops")
REPEATS = 20  # under --long
_NOON = 1_750_000_000.0  # 2025-06-15 15:06:40 UTC


@dataclass(frozen=True)
class State:
    """What leads to a picture, and the words that it must hold; `panel` unfolds the plan for it."""

    script: Script
    arrange: Callable[[Pilot[int]], Awaitable[None]]
    holds: tuple[str, ...]
    face: dict[str, object] = field(default_factory=dict)
    panel: bool = False


async def nothing(pilot: Pilot[int]) -> None:
    """As it is after the start."""


async def frames_come(pilot: Pilot[int]) -> None:
    """Pictures of the sampled frames, in plain colours."""
    plan = main(pilot).desk.forecast.plan  # type: ignore[union-attr]
    assert plan is not None
    for place, index in enumerate(plan.indices):
        colour = bytes((40 + 25 * place, 90, 200 - 20 * place))
        main(pilot).post_message(FrameShown(DEMO, index, HalfBlockImage(16, 12, colour * (16 * 12))))
    await until(pilot, lambda: "▀" in screen_text(pilot.app), "the pictures are drawn")


async def too_much(pilot: Pilot[int]) -> None:
    """All frames, and weights as large as the budget."""
    desk = main(pilot).desk
    desk.change(frames=demo_video().frame_count, vram_bytes=4 * 2**30, weights="bf16")
    await until(pilot, lambda: desk.forecast is not None and desk.forecast.refusal is not None, "a refusal")


async def stop_it(pilot: Pilot[int]) -> None:
    """Ask, wait for text, stop."""
    await streaming(pilot)
    await pilot.press("escape")
    await settled(pilot)


async def streaming(pilot: Pilot[int]) -> None:
    """Ask, and wait for all that comes before the gate."""
    await ask(pilot)
    await until(pilot, lambda: "slows down" in screen_text(pilot.app), "the text is drawn")


async def failed(pilot: Pilot[int]) -> None:
    """Ask what fails."""
    await asked(pilot)
    await until(pilot, lambda: "No answer" in screen_text(pilot.app), "a toast")


async def decoding(pilot: Pilot[int]) -> None:
    """Ask, and wait until some frames are decoded."""
    await ask(pilot)
    await until(pilot, lambda: "video 3/8" in screen_text(pilot.app), "the progress is drawn")


async def help_opened(pilot: Pilot[int]) -> None:
    """F1 at the prompt."""
    await pilot.press("f1")
    await until(pilot, lambda: "Keys here" in screen_text(pilot.app), "the help")


async def history_opened(pilot: Pilot[int]) -> None:
    """F4."""
    await pilot.press("f4")
    await until(pilot, lambda: isinstance(pilot.app.screen, HistoryBrowser), "the history")


async def palette_opened(pilot: Pilot[int]) -> None:
    """The palette, with some letters."""
    await pilot.press("ctrl+p")
    await until(pilot, lambda: pilot.app.screen.query(Input), "the palette")
    pilot.app.screen.query_one(Input).value = "cop"
    await until(pilot, lambda: "Copy answer" in screen_text(pilot.app), "the hits")
    await until(pilot, lambda: not any(one.visible for one in pilot.app.screen.query(LoadingIndicator)), "all hits")


def half_way(request: Request, plan: Plan, video: VideoInfo) -> list[Event | Gate]:
    """Some frames are decoded."""
    return [Planned(video, plan), StageStarted("video", 8), StageProgress("video", 3, 8), Gate()]


def degrades(request: Request, plan: Plan, video: VideoInfo) -> list[Event]:
    """Memory ran out once."""
    step = Degraded("prefill", "half the frames", plan)
    return list(says(*ANSWER, after_start=(step,))(request, plan, video))  # type: ignore[arg-type]


def breaks(request: Request, plan: Plan, video: VideoInfo) -> list[Event | Exception]:
    """A checkpoint without its weights."""
    return [Planned(video, plan), ModelError("The weights are damaged.", "Fetch the model again with `vidqa models`.")]


PLAIN = says(*ANSWER)
STATES = {
    "empty": State(PLAIN, nothing, ("Open a video", "no video", "Question"), {"video": None}),
    "planning": State(PLAIN, frames_come, ("demo.mp4", "8 frames", "Ask about"), {"images": "half"}),
    "does-not-fit": State(PLAIN, too_much, ("✗ does not fit", "ctrl+t takes it", "frames"), panel=True),
    "decoding": State(half_way, decoding, ("› what is there?", "video 3/8 frames")),
    "streaming": State(says(*ANSWER, before_end=(Gate(),)), streaming, ("red square", "decode 0/256 tokens")),
    "answered": State(PLAIN, asked, ("red square", "then it stops", "51 tokens")),
    "stopped": State(says(*ANSWER, before_end=(Gate(),)), stop_it, ("red square", "■ stopped")),
    "degraded": State(degrades, asked, ("note: prefill ran out of memory", "half the frames"), panel=False),
    "error": State(breaks, failed, ("› what is there?", "No answer", "The weights are damaged. Fetch the model again")),
    "help": State(PLAIN, help_opened, ("Prompt", "Keys here", "Ask this question")),
    "history": State(PLAIN, history_opened, ("Earlier conversations", "what happens?", "2025-06-15 15:06", "holiday")),
    "palette": State(PLAIN, palette_opened, ("Copy answer", "Copy the last answer")),
}


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that stands, in UTC, without what the environment says of colours."""
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
    """The screen once it stands still."""
    for editor in pilot.app.screen.query("Input, TextArea"):
        assert isinstance(editor, Input | TextArea)
        editor.cursor_blink = False
    drawn = ""
    for _ in range(100):
        await pilot.pause()
        before, drawn = drawn, slim(pilot.app.export_screenshot(title="vidqa", simplify=True))
        if before == drawn:
            return drawn
    raise AssertionError(f"the screen never stands still\n{screen_text(pilot.app)}")


async def check(pilot: Pilot[int], state: State, size: tuple[int, int], snapshot: SnapshotAssertion) -> None:
    """Words and picture at one size."""
    await pilot.resize_terminal(*size)
    await until(pilot, lambda: pilot.app.size == size, "the size")
    if state.panel and main(pilot).has_class("-narrow") and not main(pilot).has_class("-panel"):
        await pilot.press("f3")
        await until(pilot, lambda: main(pilot).query(PlanOption).first().has_focus, "the panel")
    drawn = await picture(pilot)
    assert [text for text in state.holds if text not in shown(pilot)] == [], screen_text(pilot.app)
    kept = snapshot(name="{}x{}".format(*size))
    if drawn != kept:
        lines = difflib.unified_diff(words(str(kept)), words(drawn), "recorded", "drawn", n=1, lineterm="")
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
    state, face = STATES[name], dict(STATES[name].face)
    if name == "history":
        write_history(tmp_path)
        face["state"] = tmp_path

    @pilot_test
    async def draw() -> None:
        async with Stage(state.script).running(SIZES[0], **face) as pilot:
            await state.arrange(pilot)
            for size in SIZES:
                await check(pilot, state, size, snapshot.use_extension(SVGImageExtension))

    for _ in range(REPEATS if request.config.getoption("--long") else 1):
        draw()
