"""The app with a scripted session, in a process of its own: `python -m tests.tui.child SCENE [VIDEO]`.

It takes the way of the real command from the terminal to the exit code; only the session is scripted.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from tests.tui.scripted import DEMO, Gate, Script, ScriptedSession, Step, says
from vidqa.cli.main import run
from vidqa.config import EngineConfig, state_folder
from vidqa.errors import VidqaError
from vidqa.events import Noted, Planned
from vidqa.tui.face import Face
from vidqa.tui.start import open_app
from vidqa.types import Plan, Request, VideoInfo

MODEL = "Qwen/Qwen2-VL-2B-Instruct"
NOISES = ("from C to 1", "from C to 2", "from print", "from stderr", "from a process", "from its stderr")


def make_noise() -> None:
    """Write to both descriptors by every way that a library has."""
    libc = ctypes.CDLL(None)
    for number in (1, 2):
        told = f"\x1b[2J\x1b[1;1Hfrom C to {number}\n".encode()
        libc.write(number, told, len(told))
    print("from print")  # noqa: T201
    print("from stderr", file=sys.stderr)  # noqa: T201
    subprocess.run(["sh", "-c", "echo from a process; echo from its stderr >&2"], check=True)


def when(name: str, deed: Callable[[], object]) -> None:
    """Do something, in a thread, when a test makes a file of that name; the file goes when it is done."""
    asked = state_folder() / name

    def wait() -> None:
        while not asked.exists():
            time.sleep(0.005)
        deed()
        asked.unlink()

    threading.Thread(target=wait, daemon=True).start()


def slow(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
    """Goes on until it is stopped."""
    return says("It moves", before_end=[Gate()])(request, plan, video)


def hostile(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
    """Says what the file `answer.json` holds, piece by piece; a note and an error from there too."""
    told = json.loads((state_folder() / "answer.json").read_text(encoding="utf-8"))
    if told.get("error"):
        return [VidqaError(told["error"], told["error"])]
    return says(*told["pieces"], after_start=[Noted(told["note"])])(request, plan, video)


def broken(request: Request, plan: Plan, video: VideoInfo) -> Sequence[Step]:
    """An event that the screen cannot draw: a mistake in the app itself."""
    return [Planned(video, None)]  # type: ignore[arg-type]


SCENES: dict[str, Script] = {
    "plain": says("It moves ", "right at 0:01."),
    "slow": slow,
    "hostile": hostile,
    "broken": broken,
}


def open_scene(arguments: argparse.Namespace) -> int:
    """Open the app that was named."""
    scene, _, video = arguments.video.partition("@")
    script = SCENES.get(scene, SCENES["plain"])

    def factory(config: EngineConfig) -> ScriptedSession:
        return ScriptedSession(config, script)

    face = Face(
        engine=EngineConfig(model=MODEL, remember=False),
        request=Request(video="", question=""),
        model=MODEL,
        video=video or DEMO,
        state=state_folder(),
        images="none",
        tick_seconds=None,
    )
    when("make-noise", make_noise)
    return open_app(face, factory)


if __name__ == "__main__":
    raise SystemExit(run(["tui", *sys.argv[1:]], open_scene))
