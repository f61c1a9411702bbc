"""Openers for the built-in `open`."""

import os


def open_without_blocking(path: str, flags: int) -> int:
    """Open a path; opening a named pipe would otherwise block until it has a writer. Raises OSError."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
