"""Copy text: by a clipboard tool of the system, else by the terminal (OSC 52), else to a file."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TOOLS = (  # name, arguments, environment variable that must be set
    ("pbcopy", (), None),
    ("wl-copy", (), "WAYLAND_DISPLAY"),
    ("xclip", ("-selection", "clipboard"), "DISPLAY"),
    ("xsel", ("--clipboard", "--input"), "DISPLAY"),
    ("clip.exe", (), None),
)
_TIMEOUT_SECONDS = 2.0
_MAX_OSC52_BYTES = 74_000  # xterm and others ignore more than 100,000 characters of base64


@dataclass(frozen=True, slots=True)
class CopyResult:
    """A message for the user; `certain` is False if the terminal may have ignored the text."""

    message: str
    certain: bool


def copy_text(
    text: str, send_to_terminal: Callable[[str], None], folder: Path, environment: Mapping[str, str] = os.environ
) -> CopyResult:
    """Copy by the first way that works, the last being a file in `folder`. Raises OSError if that fails too."""
    for name, arguments, variable in _TOOLS:
        usable = variable is None or environment.get(variable)
        path = shutil.which(name, path=environment.get("PATH")) if usable else None
        if path and _pipe_to((path, *arguments), text):
            return CopyResult(f"Copied with {name}.", True)
    if environment.get("TERM", "dumb") not in ("dumb", "linux") and len(text.encode()) <= _MAX_OSC52_BYTES:
        send_to_terminal(text)
        return CopyResult("Sent to the terminal's clipboard (OSC 52), which some terminals ignore.", False)
    target = folder / "copied.md"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return CopyResult(f"Written to {target}: no clipboard was found.", True)


def _pipe_to(command: tuple[str, ...], text: str) -> bool:
    """Return whether the tool took the text. Some stay alive to serve it, so do not wait for their output."""
    try:
        done = subprocess.run(
            command, input=text.encode(), timeout=_TIMEOUT_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
