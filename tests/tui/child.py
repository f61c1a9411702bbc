"""The app with a scripted session, in a process of its own: `python -m tests.tui.child SCENE [VIDEO]`.

Everything but the session is that of the real command.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tests.tui.scripted import DEMO, Gate, Script, ScriptedSession, Step, says
from vidqa.cli.main import run
from vidqa.config import EngineConfig, state_folder
from vidqa.errors import VidqaError
from vidqa.events import Answered, Event, MemorySampled, Noted, Planned, StageProgress, StageStarted, TextDelta
from vidqa.tui.launch import make_session, open_app
from vidqa.tui.launch_options import LaunchOptions, ModelSource
from vidqa.tui.session_worker import SessionEngine, SessionFactory
from vidqa.types import Plan, Request, VideoInfo

MODEL = "Qwen/Qwen2-VL-2B-Instruct"
MEASURED = ("busy", "demo")  # by scripts/bench_tui.py, with the memory readings of the real app
NOISES = ("from C to 1", "from C to 2", "from print", "from stderr", "from a process", "from its stderr")


def make_noise() -> None:
    """Write to both descriptors by every way that a library has."""
    libc = ctypes.CDLL(None)
    for number in (1, 2):
        text = f"\x1b[2J\x1b[1;1Hfrom C to {number}\n".encode()
        libc.write(number, text, len(text))
    print("from print")  # noqa: T201
    print("from stderr", file=sys.stderr)  # noqa: T201
    subprocess.run(["sh", "-c", "echo from a process; echo from its stderr >&2"], check=True)


def when_requested(name: str, action: Callable[[], object]) -> None:
    """Run `action`, in a thread, when a test creates a file of that name; delete the file when it is done."""
    request = state_folder() / name

    def wait() -> None:
        while not request.exists():
            time.sleep(0.005)
        action()
        request.unlink()

    threading.Thread(target=wait, daemon=True).start()


def hostile(request: Request, plan: Plan, video: VideoInfo) -> Iterable[Step]:
    """Answers with the pieces, the note or the error in the file `answer.json`."""
    answer = json.loads((state_folder() / "answer.json").read_text(encoding="utf-8"))
    if answer.get("error"):
        return [VidqaError(answer["error"], answer["error"])]
    return says(*answer["pieces"], after_start=[Noted(answer["note"])])(request, plan, video)


def broken(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
    """An event that makes the app itself fail."""
    return [Planned(video, None)]  # type: ignore[arg-type]


EVENTS_PER_SECOND = 2000
LONG = "say 20,000 words"
LONG_END = "that-was-all"


def busy(request: Request, plan: Plan, video: VideoInfo) -> Iterator[Step]:
    """2,000 events a second until it is stopped, a quarter of them text; if `LONG` is asked, 20,000 words before."""
    yield Planned(video, plan)
    yield StageStarted("decode", 10**6)
    if request.question == LONG:
        yield from (TextDelta(_word(number)) for number in range(20_000))
        yield Noted(LONG_END)  # stays on the screen, unlike text
    begun, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - begun) * EVENTS_PER_SECOND)
        for number in range(sent, due):
            kind = number % 4
            if kind == 0:
                yield TextDelta(_word(number // 4))
            elif kind == 1:
                yield MemorySampled("decode", 4 * 2**30 + number, 5 * 2**30, 2**29)
            else:
                yield StageProgress("decode", number, 10**6)
        sent = due
        time.sleep(0.002)


def _word(number: int) -> str:
    """The next word of Markdown with paragraphs and lists."""
    if number % 60 == 59:
        return "\n\n- " if number % 240 > 120 else "\n\n"
    return ("**bold** ", "`code` ")[number // 20 % 2] if number % 20 == 0 else "token "


class Looping:
    """The real session, but a question is answered over and over until it is stopped."""

    def __init__(self, session: SessionEngine) -> None:
        self._session = session
        self._cancelled = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def cancel(self) -> None:
        self._cancelled.set()
        self._session.cancel()

    def ask(self, request: Request) -> Iterator[Event]:
        self._cancelled.clear()
        while True:
            for event in self._session.ask(request):
                if not isinstance(event, Answered) or event.answer.finish_reason == "cancelled":
                    yield event
            if self._cancelled.is_set():
                return


SCENES: dict[str, Script] = {
    "plain": says("It moves ", "right at 0:01."),
    "slow": says("It moves", before_end=[Gate()]),  # until it is stopped
    "hostile": hostile,
    "broken": broken,
    "busy": busy,
}


def make_factory(scene: str) -> SessionFactory:
    """Return the factory of the scene's sessions: scripted ones, or (`demo`) the real one in a loop."""
    if scene == "demo":
        return lambda config: Looping(make_session(config))
    return lambda config: ScriptedSession(config, SCENES[scene])


def open_scene(arguments: argparse.Namespace) -> int:
    """Open the app that was named."""
    scene, _, video = arguments.video.partition("@")
    model = "demo" if scene == "demo" else MODEL
    options = LaunchOptions(
        engine=EngineConfig(model=model, remember=False),
        request=Request(video="", question=""),
        model=model,
        video=video or DEMO,
        state=state_folder(),
        images="none",
        tick_seconds=1.0 if scene in MEASURED else None,
        models=ModelSource(has_model=lambda name: True),
    )
    when_requested("make-noise", make_noise)
    return open_app(options, make_factory(scene))


if __name__ == "__main__":
    raise SystemExit(run(["tui", *sys.argv[1:]], open_scene))
