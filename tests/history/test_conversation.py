"""What a request includes of a long conversation."""

from vidqa.history.conversation import Conversation, Exchange
from vidqa.history.store import History


def test_the_newest_turns_are_included_whole_and_the_oldest_left_out() -> None:
    conversation = Conversation(History(None), lambda text: None)
    conversation.exchanges = [Exchange(f"question {number}", None, "x" * 1000, "answered") for number in range(30)]
    turns = conversation.turns()
    assert [turn.question for turn in turns] == [f"question {number}" for number in range(22, 30)]
    assert all(turn.answer == "x" * 1000 for turn in turns)
