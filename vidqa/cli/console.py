"""Output to the terminal, exit codes and signals: results on stdout, notes and progress on stderr.

Untrusted text passes `safe_text` on its way out.
"""

import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from vidqa.errors import DoesNotFit, Interrupted, ModelMissing, UsageError, VideoError, VidqaError
from vidqa.utils.safe_text import safe_json, safe_text
from vidqa.utils.units import format_bytes

if TYPE_CHECKING:
    from vidqa.events import MemorySampled, StageProgress, StageStarted

_COMMAND = re.compile("`[^`]*`")
_UNBROKEN = "\0"  # in place of a space: textwrap breaks no line there, and safe_text leaves none in a text


class ExitCode(IntEnum):
    """The exit codes of `vidqa`; they never change."""

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
    """Return the exit code of an error's class."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


def report_error(error: VidqaError) -> None:
    """Print an error as one paragraph on stderr; a command between backticks stays on one line, to be copied."""
    text = safe_text(f"vidqa: {error}").replace("\n", " ")
    sys.stderr.write(_wrapped(text, min(terminal_columns(sys.stderr), 100)) + "\n")


def _wrapped(line: str, columns: int) -> str:
    """Break a line between words; a command between backticks stays whole."""
    line = _COMMAND.sub(lambda command: command[0].replace(" ", _UNBROKEN), line)
    return textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False).replace(_UNBROKEN, " ")


def write_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout, control characters escaped."""
    sys.stdout.write(safe_json(value) + "\n")
    sys.stdout.flush()


def format_table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return a line for each row, with columns as wide as their widest cell and two spaces between them.

    `align` has `<` (left) or `>` (right) for each column.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = list(zip(align, widths, strict=True))
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, (side, width) in zip(row, layout, strict=True)).rstrip()
        for row in rows
    ]


def quiet_closed_pipe(stream: TextIO) -> None:
    """Send further writes to the null device, so that the last flush to a closed pipe does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def terminal_columns(stream: TextIO) -> int:
    """Return the width of a stream's terminal: $COLUMNS, else the terminal's, else 80; at least 20."""
    named = os.environ.get("COLUMNS", "")
    try:
        columns = int(named) if named.isdecimal() else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return max(columns, 20) if columns else 80


def is_terminal() -> bool:
    """Return whether there is a person to ask: standard input and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


class StderrReporter:
    """Notes and progress bars on stderr. Bars are drawn on a terminal only; `quiet` prints nothing."""

    def __init__(self, quiet: bool, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bars = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._stages: dict[str, tuple[int, int]] = {}
        self._memory = ""

    def say(self, text: str) -> None:
        """Print a note; on a terminal, lines that are too long break between words."""
        if not self._quiet:
            self.clear()
            text, columns = safe_text(text), terminal_columns(self._stream)
            if self._bars:
                lines = (_wrapped(line, columns) if len(line) > columns else line for line in text.split("\n"))
                text = "\n".join(lines)
            self._stream.write(text + "\n")
            self._stream.flush()

    def progress(self, event: "StageStarted | StageProgress") -> None:
        """Redraw the line of bars. The vision stage keeps the bar of the video stage, which runs at the same time."""
        from vidqa.events import StageProgress

        if not self._bars:
            return
        done = event.done if isinstance(event, StageProgress) else 0
        if not isinstance(event, StageProgress) and event.stage != "vision":
            self._stages.clear()
        self._stages[event.stage] = (done, event.total)
        self._draw()

    def bar(self, name: str, done: int, total: int, text: str) -> None:
        """Redraw the line as one bar with a text behind it."""
        if not self._bars:
            return
        self._stages = {name: (done, total)}
        self._stream.write(f"\r\x1b[2K{f'{name} {_cells(done, total)} {text}'[: terminal_columns(self._stream) - 1]}")
        self._stream.flush()

    def event(self, event: object) -> None:
        """Redraw the line of bars for an event of a stage; other events are not shown."""
        from vidqa.events import StageProgress, StageStarted

        if isinstance(event, StageStarted | StageProgress):
            self.progress(event)

    def memory(self, sample: "MemorySampled", planned_bytes: int, planned_tensor_bytes: int = 0) -> None:
        """Show memory in use behind the bars: of the process, or of its tensors where those are counted."""
        if sample.tensor_peak_bytes is not None:
            tensors, planned = format_bytes(sample.tensor_peak_bytes), planned_tensor_bytes
            self._memory = f"  process {format_bytes(sample.current_bytes)}, tensors {tensors}{_of_planned(planned)}"
        else:
            used, peak = format_bytes(sample.current_bytes), format_bytes(sample.peak_bytes)
            self._memory = f"  {used}{_of_planned(planned_bytes)}, peak {peak}"
        if sample.other_bytes:
            self._memory += f", others {format_bytes(sample.other_bytes)}"
        if self._bars and self._stages:
            self._draw()

    def _draw(self) -> None:
        line = "  ".join(_bar(stage, *counts) for stage, counts in self._stages.items()) + self._memory
        self._stream.write(f"\r\x1b[2K{line[: terminal_columns(self._stream) - 1]}")
        self._stream.flush()

    def clear(self) -> None:
        """Erase the bars before other output."""
        if self._bars and self._stages:
            self._stages.clear()
            self._stream.write("\r\x1b[2K")
            self._stream.flush()


def _of_planned(planned_bytes: int) -> str:
    return f" of {format_bytes(planned_bytes)} planned" if planned_bytes else ""  # 0 until there is a plan


# Stages with a share in place of counts; a scan that is short of time leaves frames out.
_STAGE_LABELS = {"libraries": "starting libraries", "speed": "measuring this machine once", "scan": "scan"}


def _bar(stage: str, done: int, total: int) -> str:
    counts = f"{format_bytes(done)}/{format_bytes(total)}" if stage == "load" else f"{done}/{total}"
    if stage in _STAGE_LABELS:
        stage, counts = _STAGE_LABELS[stage], f"{100 * done // max(total, 1)} %"
    return f"{stage} {_cells(done, total)} {counts}"


def _cells(done: int, total: int) -> str:
    cells = 12
    filled = cells * done // max(total, 1)
    return "█" * filled + "░" * (cells - filled)


class ReceivedSignal:
    """The first SIGINT or SIGTERM, if one came."""

    number: int | None = None

    def exit_code(self) -> int:
        """Return the exit code of a command that was stopped."""
        return ExitCode.TERMINATED if self.number == signal.SIGTERM else ExitCode.INTERRUPTED


@contextmanager
def handle_signals(first: Callable[[], object], again: Callable[[], object]) -> Iterator[ReceivedSignal]:
    """Call `first` at the first SIGINT or SIGTERM and `again` at every later one, until the block ends."""
    received = ReceivedSignal()

    def handle(number: int, frame: FrameType | None) -> None:
        if received.number is None:
            received.number = number
            first()
        else:
            again()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt() -> None:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt
