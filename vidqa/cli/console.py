"""What a command says and how it ends: stdout is data, stderr is talk, exit codes are an API.

Everything untrusted passes `safe_text` on its way out. Knows terminals; knows no engine.
"""

import os
import sys
import textwrap
from enum import IntEnum
from typing import Any, TextIO

from vidqa.errors import (
    DoesNotFit,
    Interrupted,
    ModelMissing,
    UsageError,
    VideoError,
    VidqaError,
)
from vidqa.events import MemorySampled, StageProgress, StageStarted
from vidqa.utils.safe_text import safe_json, safe_text
from vidqa.utils.units import format_bytes


class ExitCode(IntEnum):
    """What the caller of `vidqa` can rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SOME_FAILED = 3
    DOES_NOT_FIT = 4
    MODEL_MISSING = 5
    UNREADABLE_VIDEO = 6
    INTERRUPTED = 130
    TERMINATED = 143


_CODES: tuple[tuple[type[VidqaError], ExitCode], ...] = (
    (UsageError, ExitCode.USAGE),
    (DoesNotFit, ExitCode.DOES_NOT_FIT),
    (ModelMissing, ExitCode.MODEL_MISSING),
    (VideoError, ExitCode.UNREADABLE_VIDEO),
    (Interrupted, ExitCode.INTERRUPTED),
)


def exit_code_for(error: VidqaError) -> ExitCode:
    """The exit code of an error's kind."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


def report_error(error: VidqaError) -> None:
    """Print an error as one paragraph on stderr."""
    width = min(_columns(), 100)
    words = safe_text(f"vidqa: {error}").replace("\n", " ")
    paragraph = textwrap.fill(words, width, break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(paragraph + "\n")


def write_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout; characters that a terminal would obey are escaped."""
    sys.stdout.write(safe_json(value) + "\n")
    sys.stdout.flush()


def quiet_closed_pipe(stream: TextIO) -> None:
    """The reader left: let what is still written, the interpreter's last flush too, go nowhere instead of failing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _columns() -> int:
    """Width of stderr's terminal: $COLUMNS, else what it says, else 80; never too narrow to wrap."""
    named = os.environ.get("COLUMNS", "")
    try:
        columns = int(named) if named.isdecimal() else os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(columns, 20) if columns else 80


class StderrReporter:
    """Notes and progress on stderr. Bars are drawn only on a terminal; `quiet` leaves errors alone."""

    def __init__(self, quiet: bool, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bars = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._stages: dict[str, tuple[int, int]] = {}
        self._memory = ""

    def say(self, text: str) -> None:
        """Print one line of talk."""
        if not self._quiet:
            self.clear()
            self._stream.write(safe_text(text) + "\n")
            self._stream.flush()

    def progress(self, event: StageStarted | StageProgress) -> None:
        """Redraw the line of bars."""
        if not self._bars:
            return
        if isinstance(event, StageStarted) and event.stage not in {"vision"}:
            self._stages.clear()
        done = event.done if isinstance(event, StageProgress) else 0
        self._stages[event.stage] = (done, event.total)
        self._draw()

    def memory(self, sample: MemorySampled, planned_bytes: int, planned_tensors: int = 0) -> None:
        """Show how memory stands at the end of the line of bars: of the process, or of its tensors where counted."""
        now, peak, plan = sample.current_bytes, sample.peak_bytes, planned_bytes
        if sample.tensor_peak_bytes is not None:
            self._memory = f"  process {format_bytes(now)}, tensors {format_bytes(sample.tensor_peak_bytes)}"
            self._memory += f" of {format_bytes(planned_tensors)} planned" if planned_tensors else ""
        else:
            planned = f" of {format_bytes(plan)} planned" if plan else ""  # it loads before it plans
            self._memory = f"  {format_bytes(now)}{planned}, peak {format_bytes(peak)}"
        if sample.other_bytes:
            self._memory += f", others {format_bytes(sample.other_bytes)}"
        if self._bars and self._stages:
            self._draw()

    def _draw(self) -> None:
        line = "  ".join(_bar(stage, *counts) for stage, counts in self._stages.items()) + self._memory
        self._stream.write(f"\r\x1b[2K{line[: _columns() - 1]}")
        self._stream.flush()

    def clear(self) -> None:
        """Take the bars away before something else is printed."""
        if self._bars and self._stages:
            self._stages.clear()
            self._stream.write("\r\x1b[2K")
            self._stream.flush()


def _bar(stage: str, done: int, total: int) -> str:
    cells = 12
    filled = cells * done // max(total, 1)
    counts = f"{format_bytes(done)}/{format_bytes(total)}" if stage == "load" else f"{done}/{total}"
    return f"{stage} {'█' * filled}{'░' * (cells - filled)} {counts}"
