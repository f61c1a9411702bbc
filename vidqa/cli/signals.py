"""Ctrl-C and SIGTERM as requests to stop: the first is polite, the second is not. Knows no session."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from vidqa.cli.console import ExitCode


@dataclass(slots=True)
class Received:
    """Which signal asked to stop first, if any."""

    number: int | None = None

    def exit_code(self) -> int:
        """The exit code of a command that was stopped."""
        return ExitCode.TERMINATED if self.number == signal.SIGTERM else ExitCode.INTERRUPTED


@contextmanager
def heeding_signals(first: Callable[[], object], again: Callable[[], object]) -> Iterator[Received]:
    """Call `first` for the first signal, `again` for every other one."""
    received = Received()

    def handle(number: int, frame: FrameType | None) -> None:
        if received.number is None:
            received.number = number
            first()
        else:
            again()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt() -> None:
    """Stop at once, as Ctrl-C does where nobody heeds it."""
    raise KeyboardInterrupt
