"""Slow work in a thread of its own, while a generator goes on telling how it stands.

One piece at a time: what was told to stop is waited for before the next one begins. Knows
nothing of what is done.
"""

import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from vidqa.errors import Interrupted

Result = TypeVar("Result")
_TICK_SECONDS = 0.1  # how often is told, and asked whether to stop
_PATIENCE_SECONDS = 5.0  # at the end: a thread that reads from a dead disk is left behind


class BackgroundTask:
    """Runs one piece of work at a time."""

    def __init__(self) -> None:
        self._last: _Piece[Any] | None = None

    def run(
        self, job: Callable[[threading.Event], Result], cancelled: Callable[[], bool], when: str
    ) -> Generator[None, None, Result]:
        """Yield ten times a second until `job` is done; returns its result, or raises its error.

        Raises Interrupted within a tenth of a second where `cancelled`; the job's event is set then, and
        its result is dropped whenever it comes. `when` says what was being done.
        """
        if self._last is not None:  # it was told to stop
            yield from _waiting(self._last, cancelled, when)
        if cancelled():
            raise _stopped(when)
        self._last = piece = _Piece(job)
        piece.thread.start()
        try:
            yield from _waiting(piece, cancelled, when)
            return piece.take()
        finally:
            piece.stop.set()

    def close(self) -> None:
        """Stop what runs and wait for it, a few seconds at most."""
        if (last := self._last) is not None:
            last.stop.set()
            last.done.wait(_PATIENCE_SECONDS)


class _Piece(Generic[Result]):
    """A job, its thread, and what came of it."""

    def __init__(self, job: Callable[[threading.Event], Result]) -> None:
        self.stop, self.done = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, args=(job,), name="vidqa-beside", daemon=True)
        self._results: list[Result] = []
        self._error: BaseException | None = None

    def _work(self, job: Callable[[threading.Event], Result]) -> None:
        try:
            result = job(self.stop)
            if not self.stop.is_set():
                self._results.append(result)
        except BaseException as error:
            if not self.stop.is_set():  # nobody will ask for it, and its traceback would keep what the job held
                self._error = error
        finally:
            self.done.set()

    def take(self) -> Result:
        """The result, once; or the error."""
        error, self._error = self._error, None
        if error is None:
            return self._results.pop()
        try:
            raise error
        finally:
            del error  # it leads back to this frame, which would live on with it


def _waiting(piece: _Piece[Any], cancelled: Callable[[], bool], when: str) -> Generator[None, None, None]:
    while not piece.done.wait(_TICK_SECONDS):
        if cancelled():
            raise _stopped(when)
        yield


def _stopped(when: str) -> Interrupted:
    return Interrupted(f"Stopped {when}.", "Nothing was answered yet.")
