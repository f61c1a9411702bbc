"""Draw the pictures of README and docs: vidqa in a pseudo-terminal (terminal.svg) and in its session (session-*.svg).

All with the demo model, which answers while they are drawn. `scripts/make_screenshots.py plan` draws session-plan.svg
alone, for which no model is loaded.
"""

import asyncio
import os
import pty
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vidqa.config import EngineConfig
from vidqa.engine.session import Session
from vidqa.tui.app import VidqaApp
from vidqa.tui.launch_options import LaunchOptions, ModelSource
from vidqa.tui.screens.model_chooser import ModelChooser
from vidqa.types import Request

ROOT = Path(__file__).parents[1]
README_PICTURE, PLAN_PICTURE = "session-answer.svg", "session-plan.svg"
SIZE = (120, 36)
PLANNED_FRAMES = 128  # of the clip's 144
COMMANDS = (
    ("ask", "assets/demo.mp4", "what happens?", "--model", "demo"),
    ("ask", "assets/demo-two.mp4", "what happens?", "--model", "demo"),
    ("ask", "assets/demo-color.mp4", "what color is it at the end?", "--model", "demo"),
    ("ask", "assets/demo.mp4", "what happens?", "--model", "demo", "--start", "9"),
)
# Progress bars are drawn over themselves: only what stays on a line is in the picture.
_REMOTE_FONTS = re.compile(r"@font-options \{.*?\}\s*", re.DOTALL)  # a picture that fetches nothing
QUESTIONS = ("what happens?", "what color is it at the end?")
_WAIT_SECONDS, _MOST_WAITS, _SETTLE_SECONDS = 0.1, 600, 1.5
_REDRAWN = re.compile(r"[^\n]*\r\x1b\[2K")


def run_in_terminal(arguments: tuple[str, ...]) -> str:
    """Return everything that a terminal would have been sent."""
    chunks: list[bytes] = []

    def keep(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        chunks.append(data)
        return data

    stdout = os.dup(1)
    with open(os.devnull, "wb") as nowhere:  # pty.spawn copies to stdout; the picture is enough
        os.dup2(nowhere.fileno(), 1)
        try:
            pty.spawn([sys.executable, "-m", "vidqa", *arguments], keep)
        finally:
            os.dup2(stdout, 1)
    return _REDRAWN.sub("", b"".join(chunks).decode().replace("\r\n", "\n"))


async def until(app: VidqaApp, is_so: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    for _ in range(_MOST_WAITS):
        await asyncio.sleep(_WAIT_SECONDS)
        if is_so():
            return
    raise TimeoutError(f"the session did not get that far: {app.controller.conversation.last}")


async def draw_session(size: tuple[int, int]) -> None:
    """Draw an answer and the chooser of models."""
    app = session_of("demo")
    controller = app.controller
    async with app.run_test(size=size) as pilot:
        await until(app, lambda: controller.forecast and not controller.session_worker.busy)
        for question in QUESTIONS:
            await pilot.press(*question, "enter")
            await until(app, lambda: not controller.answering and not controller.session_worker.busy)
        await asyncio.sleep(_SETTLE_SECONDS)
        save(app.export_screenshot(title="vidqa"), README_PICTURE)
        await pilot.press("f2")
        await until(app, lambda: isinstance(app.screen, ModelChooser))
        save(app.export_screenshot(title="vidqa"), "session-models.svg")


async def draw_plan(size: tuple[int, int]) -> None:
    """Draw a plan that does not fit: more frames than the budget holds."""
    app = session_of("Qwen/Qwen2-VL-2B-Instruct")
    controller = app.controller
    async with app.run_test(size=size):
        await until(app, lambda: controller.video)
        controller.override(vram_bytes=5 * 2**30, weights="bf16", frames=PLANNED_FRAMES)
        await until(app, lambda: controller.forecast and controller.forecast.refusal)
        await asyncio.sleep(_SETTLE_SECONDS)
        save(app.export_screenshot(title="vidqa"), PLAN_PICTURE)


def session_of(model: str) -> VidqaApp:
    """Return a session that opens a demo clip with a model."""
    options = LaunchOptions(
        engine=EngineConfig(model=model, remember=False),
        request=Request(video="", question=""),
        model=model,
        video=str(ROOT / "assets" / "demo-two.mp4"),
        models=ModelSource(has_model=lambda name: True),  # the plan of a model that is not fetched for a picture
    )
    return VidqaApp(Session, options)


def save(svg: str, name: str) -> None:
    """Write a picture without remote fonts."""
    target = ROOT / ("assets" if name == README_PICTURE else "docs/img") / name
    target.write_text(_REMOTE_FONTS.sub("", svg), encoding="utf-8")
    print(f"{target.name}: {target.stat().st_size} bytes")


def main() -> int:
    os.chdir(ROOT)
    os.environ.update(COLUMNS="108", TERM="xterm-256color", VIDQA_TUI_HISTORY="false")
    asyncio.run(draw_plan(SIZE))
    if sys.argv[1:] == ["plan"]:
        return 0
    asyncio.run(draw_session(SIZE))
    console = Console(record=True, width=108, file=StringIO())
    for arguments in COMMANDS:
        shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
        console.print(Text(f"$ scripts/vidqa {shown}", style="bold green"))
        console.print(Text.from_ansi(run_in_terminal(arguments).rstrip()))
        console.print()
    save(console.export_svg(title="vidqa"), "terminal.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
