"""Terminals for tests, in the environment of a new user."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tui.terminal import ROOT, Terminal

Opener = Callable[..., Terminal]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of the user's files."""
    return tmp_path / "home"


def clean_environment(home: Path) -> dict[str, str]:
    """No models, state or settings of the real user; opening a page creates the file `opened` instead."""
    tools = home / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    for name in ("xdg-open", "www-browser", "open"):
        (tools / name).write_text(f'#!/bin/sh\necho "$@" >> "{home}/opened"\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}", "BROWSER": str(tools / "www-browser"),
        "ESCDELAY": "50",  # as the real command sets it
        "HOME": str(home), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8",
        "TERM": "xterm-256color", "COLORTERM": "truecolor", "TEXTUAL_ANIMATIONS": "none",
        "VIDQA_STATE": str(home / "state"), "VIDQA_CONFIG": str(home / "config.toml"), "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.fixture
def opened(home: Path) -> Iterator[Opener]:
    """Opens a scene of tests/tui/child.py or another `command` in a terminal; closes all terminals afterwards."""
    terminals: list[Terminal] = []

    def open_terminal(scene: str = "plain", *, command: list[str] | None = None, **options: object) -> Terminal:
        words = command or [sys.executable, "-m", "tests.tui.child", scene]
        terminals.append(Terminal(words, environment=clean_environment(home), **options))  # type: ignore[arg-type]
        return terminals[-1]

    yield open_terminal
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def clipboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clipboard tool of our own, and nothing else on the PATH; what it is given lies in a file."""
    tool = tmp_path / "bin" / "pbcopy"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nexec /bin/cat > '{tmp_path}/clipboard'\n")
    tool.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.chdir(tmp_path)
