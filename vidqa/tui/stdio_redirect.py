"""Redirect file descriptors 1 and 2 to a log file while the app runs.

Otherwise a progress bar or a line from native code would overwrite the screen. Textual's driver draws on a copy of the
terminal's descriptor.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidqa.errors import UsageError

LOG_NAME = "tui.log"
_MAX_LOG_BYTES = 2**20
_SHOWN_BYTES = 64 * 2**10


def is_terminal() -> bool:
    """Return whether standard input and output are a terminal."""
    return bool(sys.__stdin__ and sys.__stdin__.isatty() and sys.__stdout__ and sys.__stdout__.isatty())


@contextmanager
def redirect_to_log(log: Path) -> Iterator[None]:
    """Redirect descriptors 1 and 2 to `log` inside the `with` block; the app draws on a copy of the terminal's."""
    target = _open_log(log)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = (os.dup(1), os.dup(2))
    streams = (sys.__stdout__, sys.__stderr__)
    screen = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace", newline="")
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    # The driver draws on __stderr__ and reads the size from __stdout__.
    sys.__stdout__ = sys.__stderr__ = screen  # type: ignore[misc]
    try:
        yield
    finally:
        sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
        for number, descriptor in enumerate(saved, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        screen.close()


def print_to_descriptors() -> None:
    """Point sys.stdout and sys.stderr at descriptors 1 and 2; Textual, once running, would discard their text."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        setattr(sys, name, stream)


def _open_log(log: Path) -> int:
    """Return the descriptor of a log that is shortened if it is large; raises UsageError."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.write_bytes(log.read_bytes()[-_SHOWN_BYTES:])
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        what = f"The session's log {log} cannot be written: {error.strerror}."
        raise UsageError(what, "Set VIDQA_STATE to a folder that you can write.") from error


def read_log(log: Path) -> str:
    """Return the end of the log; undecodable bytes are escaped."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - _SHOWN_BYTES, 0))
            return file.read().decode("utf-8", errors="backslashreplace")
    except FileNotFoundError:
        return ""
