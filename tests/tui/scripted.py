"""A session that plays a script, and the app around it, so that the screen depends on the script alone.

Plans are the real planner's, for a fixed GPU.
"""

import asyncio
import functools
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from textual.app import App
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget

from vidqa.config import EngineConfig
from vidqa.errors import Interrupted
from vidqa.events import Answered, Event, MemorySampled, Planned, StageProgress, StageStarted, TextDelta
from vidqa.models.registry import find_checkpoints
from vidqa.planner.model_choice import forecast
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import planning_problems
from vidqa.tui.app import VidqaApp
from vidqa.tui.controller import Controller
from vidqa.tui.launch_options import LaunchOptions, ModelSource
from vidqa.tui.screens.main_screen import MainScreen
from vidqa.tui.widgets.question_input import QuestionInput
from vidqa.tui.worker_messages import VideoOpened
from vidqa.types import Answer, Device, Plan, Request, VideoInfo
from vidqa.utils.metrics import MemoryUse, Timing
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.reader import open_video

W = TypeVar("W", bound=Widget)
S = TypeVar("S", bound=Screen[Any])
ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "assets" / "demo.mp4")
_GIB = 2**30
_FRAMES = str.maketrans("│▌", "  ")
_MOST_SECONDS = 20.0  # a condition that holds later than this does not hold
CARD = Device(
    kind="cuda", index=0, name="NVIDIA GeForce RTX 4060", total_bytes=8 * _GIB, free_bytes=7 * _GIB,
    process_bytes=0, other_bytes=_GIB // 2, compute_capability=(8, 9), bf16=True,
    bandwidth_bytes_per_second=272e9, flops_per_second=60e12,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gate:
    """A point in a script that waits until a test opens it, or until the question is stopped."""

    opened: threading.Event = field(default_factory=threading.Event)


Step = Event | Gate | Exception
Script = Callable[[Request, Plan, VideoInfo], Iterable[Step]]


class ScriptedSession:
    """Plays `script` for every question; `asked` has its requests."""

    def __init__(
        self, config: EngineConfig, script: Script, loads: Script | None = None, finds: Script | None = None
    ) -> None:
        self.config, self._script, self._loads, self._finds = config, script, loads, finds
        self.asked: list[Request] = []
        self.searched: list[Request] = []
        self.closed = False
        self.signal: ChangeSignal | None = None  # what a scan of the video found
        self.hold: Gate | None = None  # delays the end after a cancel until it is opened
        self._cancelled = threading.Event()
        self._video: VideoInfo | None = None

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        self._video = video
        chosen = config or self.config
        checkpoints = find_checkpoints(chosen.model, local=False)
        return forecast(planning_problems(checkpoints, video, request, chosen, CARD, self.signal))

    def load(self, request: Request) -> Iterator[Event]:
        yield from self._play(self._loads or (lambda *_: ()), request)

    def ask(self, request: Request) -> Iterator[Event]:
        self.asked.append(request)
        self._cancelled.clear()
        return self._play(self._script, request)

    def find(self, request: Request) -> Iterator[Event]:
        assert self._finds is not None
        self.searched.append(request)
        self._cancelled.clear()
        return self._play(self._finds, request)

    def _play(self, script: Script, request: Request) -> Iterator[Event]:
        assert self._video is not None
        found = self.forecast(self._video, request)
        assert found.plan is not None
        text = ""
        for step in script(request, found.plan, self._video):
            if isinstance(step, Gate):
                while not step.opened.wait(0.005) and not self._cancelled.is_set():
                    pass
            elif isinstance(step, Exception):
                raise step
            else:
                text += step.text if isinstance(step, TextDelta) else ""
                yield step
            if self._cancelled.is_set():
                if self.hold is not None:
                    self.hold.opened.wait(10)
                if not text:
                    raise Interrupted("Stopped.")
                yield Answered(answer_to(request, found.plan, self._video, text, "cancelled"))
                return

    def reconfigure(self, config: EngineConfig) -> None:
        self.config = config

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.closed = True


def answer_to(request: Request, plan: Plan, video: VideoInfo, text: str, reason: str = "stop") -> Answer:
    """An answer with round figures."""
    return Answer(
        text=text,
        finish_reason=reason,  # type: ignore[arg-type]
        question=request.question,
        video=video,
        plan=plan,
        timing=Timing(0.0, 0.1, 0.2, 0.3, 0.6, 1.0, 51),
        memory=MemoryUse(4 * _GIB, _GIB // 64, _GIB // 2, 23 * _GIB // 5, _GIB, CARD.other_bytes, ()),
    )


def says(*pieces: str, before_end: Sequence[Step] = (), after_start: Sequence[Step] = ()) -> Script:
    """A script that goes through all stages and answers with these pieces."""

    def script(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
        frames, tokens = plan.run_config.frames, plan.prompt_tokens
        return [
            Planned(video, plan),
            *after_start,
            StageStarted("video", frames), StageProgress("video", frames, frames),
            StageStarted("vision", frames // 2), StageProgress("vision", frames // 2, frames // 2),
            MemorySampled("vision", 4 * _GIB, 4 * _GIB + _GIB // 4, CARD.other_bytes),
            StageStarted("prefill", tokens), StageProgress("prefill", tokens, tokens),
            MemorySampled("prefill", 4 * _GIB, 4 * _GIB + _GIB // 3, CARD.other_bytes),
            StageStarted("decode", 256),
            *(TextDelta(piece) for piece in pieces),
            *before_end,
            MemorySampled("decode", 4 * _GIB, 4 * _GIB + _GIB // 5, CARD.other_bytes),
            Answered(answer_to(request, plan, video, "".join(pieces))),
        ]  # fmt: skip

    return script


def plays(*steps: Step) -> Script:
    """A script of the plan and these steps."""
    return lambda request, plan, video: [Planned(video, plan), *steps]


def in_turn(*scripts: Script) -> Script:
    """Another script for each question; the last one for all that follow."""
    left = list(scripts)
    return lambda *values: (left.pop(0) if len(left) > 1 else left[0])(*values)


@dataclass
class AppHarness:
    """An app with its scripted sessions; `sessions` grows when one is created again."""

    script: Script
    loads: Script | None = None
    finds: Script | None = None
    sessions: list[ScriptedSession] = field(default_factory=list)

    def make(self, config: EngineConfig) -> ScriptedSession:
        self.sessions.append(ScriptedSession(config, self.script, self.loads, self.finds))
        return self.sessions[-1]

    def app(self, **changes: object) -> VidqaApp:
        """The app; without a tick nothing is drawn that the script did not cause."""
        options = LaunchOptions(
            engine=EngineConfig(model="Qwen/Qwen2-VL-2B-Instruct", remember=False),
            request=Request(video="", question=""),
            model="Qwen/Qwen2-VL-2B-Instruct",
            video=DEMO,
            images="none",
            tick_seconds=None,
            models=ModelSource(has_model=lambda name: True),
        )
        app = VidqaApp(self.make, replace(options, **changes))  # type: ignore[arg-type]
        app.animation_level = "none"
        return app

    @property
    def session(self) -> ScriptedSession:
        """The session that answers now."""
        return self.sessions[-1]

    @property
    def asked(self) -> list[str]:
        """The questions that the session got."""
        return [request.question for request in self.session.asked]

    @asynccontextmanager
    async def running(self, size: tuple[int, int] = (120, 30), **changes: object) -> AsyncIterator[Pilot[int]]:
        """The app with the demo's clip open and planned. The clip is probed once for all tests."""
        app = self.app(**{"video": None, **changes})
        try:
            async with app.run_test(size=size, notifications=True) as pilot:
                if "video" not in changes:
                    app.main.post_message(VideoOpened(demo_video()))
                    await planned(pilot)
                yield pilot
        finally:
            app.controller.close()


@functools.cache
def demo_video() -> VideoInfo:
    """The facts of the demo's clip."""
    with open_video(DEMO, isolated=False) as reader:
        return reader.info


def main(pilot: Pilot[int]) -> MainScreen:
    """The main screen, also while another one is open."""
    assert isinstance(pilot.app, VidqaApp)
    return pilot.app.main


def controller(pilot: Pilot[int]) -> Controller:
    return main(pilot).controller


def part(pilot: Pilot[int], kind: type[W]) -> W:
    """The widget of this class on the main screen."""
    return main(pilot).query_one(kind)


def prompt(pilot: Pilot[int]) -> QuestionInput:
    return part(pilot, QuestionInput)


def is_open(pilot: Pilot[int], kind: type[Screen[Any]]) -> bool:
    """Whether a screen of this class is on top."""
    return isinstance(pilot.app.screen, kind)


def state(pilot: Pilot[int]) -> str:
    """The state of the last question."""
    last = controller(pilot).conversation.last
    return last.state if last else "nothing"


def pilot_test(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that awaits: run to its end in a loop of its own."""

    @functools.wraps(test)
    def run(*values: object, **named: object) -> None:
        try:
            asyncio.run(asyncio.wait_for(test(*values, **named), 60))
        finally:  # what Textual keeps for later apps is excluded from collections: half of the time of many tests
            gc.collect()
            gc.freeze()

    return run


async def ask(pilot: Pilot[int], question: str = "what is there?") -> None:
    """Write a question and press Enter; returns when the conversation has it."""
    count = len(controller(pilot).conversation.exchanges)
    prompt(pilot).focus()
    prompt(pilot).text = question
    await press(pilot, "enter", lambda: len(controller(pilot).conversation.exchanges) > count)


async def asked(pilot: Pilot[int], question: str = "what is there?") -> None:
    """Ask, and wait for the end of the answer and for the plan after it."""
    await ask(pilot, question)
    await settled(pilot)


async def streaming(pilot: Pilot[int], text: str) -> None:
    """Ask, and wait until some text is drawn."""
    await ask(pilot)
    await until(pilot, lambda: text in shown(pilot), "the text is drawn")


async def settled(pilot: Pilot[int]) -> None:
    """Nothing is being answered any more, and all of it is drawn."""
    await until(pilot, lambda: not controller(pilot).answering and not controller(pilot).session_worker.busy)
    await until(pilot, lambda: "waiting" not in screen_text(pilot.app), "the answer is drawn")


async def planned(pilot: Pilot[int]) -> None:
    """There is a forecast, and the model is loaded for it."""
    await until(pilot, lambda: controller(pilot).forecast and not controller(pilot).session_worker.busy, "a plan")


async def press(pilot: Pilot[int], keys: str, condition: Callable[[], object], what: str = "") -> None:
    """Press keys (separated by blanks) and wait until something is so."""
    await pilot.press(*keys.split())
    await until(pilot, condition, what or f"the effect of {keys}")


async def opened(pilot: Pilot[int], keys: str, kind: type[S]) -> S:
    """Press keys and wait for the screen that they open."""
    await press(pilot, keys, lambda: is_open(pilot, kind), kind.__name__)
    assert isinstance(pilot.app.screen, kind)
    return pilot.app.screen


async def until(pilot: Pilot[int], condition: Callable[[], object], what: str = "") -> None:
    """Wait until something is so; the error says what is on the screen."""
    latest = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < latest:
        await pilot.pause(0.01)
        if condition():
            return
    raise AssertionError(f"it never happened: {what or condition}\n{screen_text(pilot.app)}")


def screen_text(app: App[int]) -> str:
    """What is on the screen, without colours."""
    lines = app.screen._compositor.render_strips(app.size)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


def shown(pilot: Pilot[int]) -> str:
    """The words on the screen on one line, without frames around them."""
    return " ".join(screen_text(pilot.app).translate(_FRAMES).split())
