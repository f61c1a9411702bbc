"""Text to the clipboard: the system's own tool, else the terminal's (OSC 52), else a file. Says which.

Knows tools and sizes; draws nothing.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TOOLS = (
    ("pbcopy", (), None),
    ("wl-copy", (), "WAYLAND_DISPLAY"),
    ("xclip", ("-selection", "clipboard"), "DISPLAY"),
    ("xsel", ("--clipboard", "--input"), "DISPLAY"),
    ("clip.exe", (), None),
)
_SECONDS = 2.0
_MOST_OSC52_BYTES = 74_000  # xterm and others drop longer ones: 100,000 characters in base64


@dataclass(frozen=True, slots=True)
class Copied:
    """Where the text went, in words; `sure` is False where a terminal may have ignored it."""

    told: str
    sure: bool


def copy_text(
    text: str, send_to_terminal: Callable[[str], None], folder: Path, environment: Mapping[str, str] = os.environ
) -> Copied:
    """Copy by the first way that works; the file in `folder` is the last one. Raises OSError where even that fails."""
    for name, arguments, needs in _TOOLS:
        path = shutil.which(name, path=environment.get("PATH")) if needs is None or environment.get(needs) else None
        if path and _piped((path, *arguments), text):
            return Copied(f"Copied with {name}", True)
    if environment.get("TERM", "dumb") not in ("dumb", "linux") and len(text.encode()) <= _MOST_OSC52_BYTES:
        send_to_terminal(text)
        return Copied("Sent to the terminal's clipboard (OSC 52); some terminals ignore that", False)
    target = folder / "copied.md"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return Copied(f"Written to {target}: no clipboard was found", True)


def _piped(command: tuple[str, ...], text: str) -> bool:
    """Whether the tool took the text. Some stay alive to serve it: their output must not be waited for."""
    try:
        done = subprocess.run(
            command, input=text.encode(), timeout=_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
