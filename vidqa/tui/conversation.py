"""The conversation that is on the screen: its turns, and their place in the history. No widget, no engine.

A history that fails (a full disk, a newer file) is told once and does not stop anybody from asking.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from vidqa.errors import HistoryError
from vidqa.history.records import SavedSession, SavedTurn, TurnState
from vidqa.history.store import History
from vidqa.tui.session_worker import StreamingText
from vidqa.types import Answer, Turn, VideoInfo

# Planned for as if each byte were a token: a long conversation must not push the video out of the context.
_MOST_TOLD_BYTES = 8 * 2**10


@dataclass(slots=True)
class Exchange:
    """A question and what became of it; `turn_id` is its place in the history, None where it has none."""

    question: str
    turn_id: int | None
    text: str = ""
    state: TurnState = "running"


class Conversation:
    """Turns about one video, oldest first. The methods that write may be called from the bridge's thread too."""

    def __init__(self, history: History, warn: Callable[[str], None]) -> None:
        self._history, self._warn = history, warn
        self._warned = False
        self._session_id: int | None = None
        self.exchanges: list[Exchange] = []

    @property
    def session_id(self) -> int | None:
        """The session in the history, once something was asked."""
        return self._session_id

    @property
    def last(self) -> Exchange | None:
        """The newest turn."""
        return self.exchanges[-1] if self.exchanges else None

    def turns(self) -> tuple[Turn, ...]:
        """What the model is told of the conversation: the newest questions that got some answer, whole ones."""
        told: list[Turn] = []
        room = _MOST_TOLD_BYTES
        for one in reversed(self.exchanges):
            room -= len(one.question.encode()) + len(one.text.encode())
            if room < 0:
                break
            if one.text.strip():
                told.insert(0, Turn(one.question, one.text))
        return tuple(told)

    def restart(self) -> None:
        """A new conversation; the old one stays in the history."""
        self._session_id, self.exchanges = None, []

    def resume(self, session: SavedSession) -> tuple[SavedTurn, ...]:
        """Go on with a conversation of the history; returns its turns."""
        turns = self._history.turns(session.id)
        self._session_id = session.id
        self.exchanges = [Exchange(turn.question, turn.id, turn.answer, turn.state) for turn in turns]
        return turns

    def begin(
        self, video: VideoInfo, model: str, question: str, span: tuple[float | None, float | None], *, replace: bool
    ) -> Exchange:
        """A question is being asked; with `replace`, in place of the last one."""
        if replace and self.exchanges:
            self.exchanges.pop()
        if not self._is_kept():
            self._session_id = self._kept(self._history.begin_session, video, model)
        begin = self._history.replace_last_turn if replace else self._history.begin_turn
        turn_id = None
        if self._session_id is not None:
            turn_id = self._kept(begin, self._session_id, question, *span)
        exchange = Exchange(question, turn_id)
        self.exchanges.append(exchange)
        return exchange

    def _is_kept(self) -> bool:
        """Whether there is a session to go on with; it can be deleted while it is open, also by another vidqa."""
        if self._session_id is None:
            return False
        try:
            self._history.session(self._session_id)
        except HistoryError:
            return False
        return True

    def draft_of(self, exchange: Exchange) -> StreamingText:
        """Where the answer's text is collected, and kept about once a second."""
        if exchange.turn_id is None:
            return StreamingText(None)
        return StreamingText(partial(self._kept, self._history.save_partial, exchange.turn_id))

    def answered(self, exchange: Exchange, answer: Answer) -> None:
        """The answer is there: it is on disk when this returns."""
        exchange.text = answer.text
        exchange.state = "stopped" if answer.finish_reason == "cancelled" else "answered"
        if exchange.turn_id is not None:
            self._kept(self._history.finish_turn, exchange.turn_id, answer)

    def ended(self, exchange: Exchange, why: str, state: Literal["stopped", "failed"], text: str) -> None:
        """There is no answer, only what was written so far."""
        exchange.state, exchange.text = state, text
        if exchange.turn_id is not None:
            self._kept(self._history.save_partial, exchange.turn_id, text)
            self._kept(self._history.fail_turn, exchange.turn_id, why, state)

    def drop_last(self) -> None:
        """Delete the last turn, from the history too."""
        exchange = self.exchanges.pop()
        if exchange.turn_id is not None:
            self._kept(self._history.delete_turn, exchange.turn_id)

    def _kept(self, write: Callable[..., Any], *values: Any) -> Any:
        """Write to the history; None where that failed, which is told once."""
        try:
            return write(*values)
        except HistoryError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"The history is not kept: {error}")
            return None
