"""A conversation that goes on: its questions and answers, and where the history stores them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from vidqa.errors import HistoryError
from vidqa.history.records import SavedSession, SavedTurn, TurnState
from vidqa.history.store import History
from vidqa.types import Answer, Turn, VideoInfo

# The planner counts a byte of history as a token, so a long conversation must not use up the context.
_MAX_HISTORY_BYTES = 8 * 2**10
_SAVE_SECONDS = 1.0
_SAVED_AGAIN = "The history is written again. What was asked or answered since the warning may be missing from it."


@dataclass(slots=True)
class Exchange:
    """A question and its answer. `turn_id` identifies it in the history; None where it is not stored."""

    question: str
    turn_id: int | None
    text: str = ""
    state: TurnState = "running"


class StreamingText:
    """The text of an answer while it is generated: the worker thread adds to it, the screen takes it in pieces.

    `save` is called with the whole text about once a second, so that little is lost if the process is killed.
    """

    def __init__(self, save: Callable[[str], None] | None = None) -> None:
        self._text, self._taken = "", 0
        self._lock = threading.Lock()
        self._save, self._next_save = save, 0.0

    @property
    def text(self) -> str:
        """The whole text so far."""
        return self._text

    def add(self, text: str) -> bool:
        """Append text; return True if the screen had taken everything before it."""
        with self._lock:
            was_empty = self._taken == len(self._text)
            self._text += text
        if self._save is not None and (now := time.monotonic()) >= self._next_save:
            self._save(self._text)
            self._next_save = now + _SAVE_SECONDS
        return was_empty and bool(text)

    def take(self) -> str:
        """Return the text added since the last call."""
        with self._lock:
            text, self._taken = self._text[self._taken :], len(self._text)
        return text


class Conversation:
    """The exchanges about one video, oldest first.

    If the history cannot be written (a full disk, a newer file format), `warn` is called once, and again when it can
    be written; the conversation goes on. The methods that write may be called from any thread.
    """

    def __init__(self, history: History, warn: Callable[[str], None]) -> None:
        self._history, self._warn = history, warn
        self._warned = False
        self.session_id: int | None = None  # set with the first question
        self.exchanges: list[Exchange] = []

    @property
    def last(self) -> Exchange | None:
        """The newest exchange."""
        return self.exchanges[-1] if self.exchanges else None

    def turns(self) -> tuple[Turn, ...]:
        """Return the newest answered questions that fit into the context; none is cut."""
        turns: list[Turn] = []
        left = _MAX_HISTORY_BYTES
        for exchange in reversed(self.exchanges):
            left -= len(exchange.question.encode()) + len(exchange.text.encode())
            if left < 0:
                break
            if exchange.text.strip():
                turns.insert(0, Turn(exchange.question, exchange.text))
        return tuple(turns)

    def restart(self) -> None:
        """Start a new conversation; the old one stays in the history."""
        self.session_id, self.exchanges = None, []

    def resume(self, session: SavedSession) -> tuple[SavedTurn, ...]:
        """Continue a conversation of the history; return its turns."""
        turns = self._history.turns(session.id)
        self.session_id = session.id
        self.exchanges = [Exchange(turn.question, turn.id, turn.answer, turn.state) for turn in turns]
        return turns

    def begin(
        self, video: VideoInfo, model: str, question: str, span: tuple[float | None, float | None], *, replace: bool
    ) -> Exchange:
        """Add a question about `span` seconds of the video; `replace` puts it in place of the last one."""
        replaces = self.exchanges.pop().turn_id if replace and self.exchanges else None
        if not self._is_stored():
            self.session_id = self._write(self._history.begin_session, video, model)
        begin = partial(self._history.begin_turn, replaces=replaces)
        turn_id = None if self.session_id is None else self._write(begin, self.session_id, question, *span)
        exchange = Exchange(question, turn_id)
        self.exchanges.append(exchange)
        return exchange

    def _is_stored(self) -> bool:
        """Whether the history has this conversation; another vidqa may have deleted it meanwhile."""
        if self.session_id is None:
            return False
        try:
            self._history.session(self.session_id)
        except HistoryError:
            return False
        return True

    def streaming_text(self, exchange: Exchange) -> StreamingText:
        """Return a text that saves itself as the partial answer of `exchange`."""
        if exchange.turn_id is None:
            return StreamingText()
        return StreamingText(partial(self._write, self._history.save_partial, exchange.turn_id))

    def finish(self, exchange: Exchange, answer: Answer) -> None:
        """Store the answer; it is on disk when this returns."""
        exchange.text = answer.text
        exchange.state = "stopped" if answer.finish_reason == "cancelled" else "answered"
        if exchange.turn_id is not None:
            self._write(self._history.finish_turn, exchange.turn_id, answer)

    def fail(self, exchange: Exchange, why: str, state: Literal["stopped", "failed"], text: str) -> None:
        """Store the partial text of a question that got no answer, and why."""
        exchange.state, exchange.text = state, text
        if exchange.turn_id is not None:
            self._write(self._history.save_partial, exchange.turn_id, text)
            self._write(self._history.fail_turn, exchange.turn_id, why, state)

    def delete_last(self) -> None:
        """Delete the last exchange, from the history too."""
        exchange = self.exchanges.pop()
        if exchange.turn_id is not None:
            self._write(self._history.delete_turn, exchange.turn_id)

    def _write(self, write: Callable[..., Any], *values: Any) -> Any:
        """Call a method of the history; return None if it fails. Warn at the first failure, and once it works again."""
        try:
            result = write(*values)
        except HistoryError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"This conversation is not saved: {error}")
            return None
        if self._warned:
            self._warned = False
            self._warn(_SAVED_AGAIN)
        return result
