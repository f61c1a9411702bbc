"""Run vidqa in a pseudo-terminal and draw what it printed as the README's picture, assets/terminal.svg."""

import os
import pty
import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
COMMANDS = (
    ("ask", "assets/demo.mp4", "what happens?", "--model", "demo"),
    ("ask", "assets/demo-two.mp4", "what happens?", "--model", "demo"),
    ("ask", "assets/demo-color.mp4", "what color is it at the end?", "--model", "demo"),
    ("ask", "assets/demo.mp4", "what happens?", "--model", "demo", "--start", "9"),
)
# Progress bars are drawn over themselves: only what stays on a line is in the picture.
_REMOTE_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # a picture that fetches nothing
_REDRAWN = re.compile(r"[^\n]*\r\x1b\[2K")


def run_in_terminal(arguments: tuple[str, ...]) -> str:
    """Everything that a terminal would have been sent."""
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


def main() -> int:
    os.chdir(ROOT)
    os.environ.update(COLUMNS="100", TERM="xterm-256color")
    console = Console(record=True, width=100, file=StringIO())
    for arguments in COMMANDS:
        shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
        console.print(Text(f"$ scripts/vidqa {shown}", style="bold green"))
        console.print(Text.from_ansi(run_in_terminal(arguments).rstrip()))
        console.print()
    target = ROOT / "assets" / "terminal.svg"
    svg = _REMOTE_FONTS.sub("", console.export_svg(title="vidqa"))
    target.write_text(svg, encoding="utf-8")
    print(f"{target.name}: {target.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
