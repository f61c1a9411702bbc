"""Draw the pictures of README and docs: vidqa in a pseudo-terminal (terminal.svg) and in its session (session-*.svg).

All with the demo model, which answers while they are drawn.
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
from vidqa.tui.launch_options import LaunchOptions
from vidqa.tui.screens.model_chooser import ModelChooser
from vidqa.types import Request

ROOT = Path(__file__).parents[1]
README_PICTURE = "session-answer.svg"
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
    """Draw an answer, the chooser of models, and a plan that does not fit."""
    options = LaunchOptions(
        engine=EngineConfig(model="demo", remember=False),
        request=Request(video="", question=""),
        model="demo",
        video=str(ROOT / "assets" / "demo-two.mp4"),
    )
    app = VidqaApp(Session, options)
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
        await pilot.press("escape")
        controller.override(vram_bytes=21 * 2**28, weights="bf16", frames=160)  # 5.25 GiB
        app.main.use_model("Qwen/Qwen2-VL-2B-Instruct")
        await until(app, lambda: controller.forecast and controller.forecast.refusal)
        await asyncio.sleep(_SETTLE_SECONDS)
        save(app.export_screenshot(title="vidqa"), "session-plan.svg")


def save(svg: str, name: str) -> None:
    """Write a picture without remote fonts."""
    target = ROOT / ("assets" if name == README_PICTURE else "docs/img") / name
    target.write_text(_REMOTE_FONTS.sub("", svg), encoding="utf-8")
    print(f"{target.name}: {target.stat().st_size} bytes")


def main() -> int:
    os.chdir(ROOT)
    os.environ.update(COLUMNS="108", TERM="xterm-256color", VIDQA_TUI_HISTORY="false")
    asyncio.run(draw_session((120, 36)))
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
