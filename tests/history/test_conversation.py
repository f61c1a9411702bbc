"""What a request includes of a long conversation, and what of one is kept."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.answer_builders import CLIP, made_answer
from vidqa.history import database
from vidqa.history.conversation import Conversation, Exchange
from vidqa.history.store import FILE_NAME, History

WHOLE = (None, None)


def ask(conversation: Conversation, question: str, *, replace: bool = False) -> None:
    """A question that is answered by its own words."""
    exchange = conversation.begin(CLIP, "demo", question, WHOLE, replace=replace)
    conversation.finish(exchange, made_answer(question))


def saved(history: History) -> list[str]:
    """The questions of the only conversation."""
    (session,) = history.sessions(9)
    return [turn.question for turn in history.turns(session.id)]


def test_the_newest_turns_are_included_whole_and_the_oldest_left_out() -> None:
    conversation = Conversation(History(None), lambda text: None)
    conversation.exchanges = [Exchange(f"question {number}", None, "x" * 1000, "answered") for number in range(30)]
    turns = conversation.turns()
    assert [turn.question for turn in turns] == [f"question {number}" for number in range(22, 30)]
    assert all(turn.answer == "x" * 1000 for turn in turns)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program writes into the history."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def test_a_question_that_replaces_one_that_was_not_stored_deletes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    history = History(tmp_path / FILE_NAME)
    conversation = Conversation(history, lambda text: None)
    ask(conversation, "first")
    with locked(tmp_path / FILE_NAME):
        ask(conversation, "second")
    assert saved(history) == ["first"]
    ask(conversation, "second, edited", replace=True)
    assert saved(history) == ["first", "second, edited"]
    history.close()


def test_two_sessions_in_one_conversation_replace_their_own_questions() -> None:
    history = History(None)
    one, other = (Conversation(history, lambda text: None) for _ in range(2))
    ask(one, "first")
    other.resume(history.sessions(9)[0])
    ask(other, "of the other")
    ask(one, "first, edited", replace=True)
    assert saved(history) == ["of the other", "first, edited"]


def test_a_conversation_that_is_saved_again_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    history, warnings = History(tmp_path / FILE_NAME), list[str]()
    conversation = Conversation(history, warnings.append)
    ask(conversation, "first")
    for _ in range(2):
        with locked(tmp_path / FILE_NAME):
            ask(conversation, "lost")
            ask(conversation, "lost")
        ask(conversation, "kept")
        ask(conversation, "kept")
    assert [warning.split(":")[0].split(".")[0] for warning in warnings] == [
        "This conversation is not saved", "The history is written again"
    ] * 2  # fmt: skip
    assert saved(history) == ["first", *["kept"] * 4]
    history.close()
