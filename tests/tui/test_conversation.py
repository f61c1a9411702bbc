"""What the model is told of a long conversation."""

from vidqa.history.store import History
from vidqa.tui.conversation import Conversation, Exchange


def test_the_newest_turns_are_told_whole_and_the_oldest_left_out() -> None:
    conversation = Conversation(History(None), lambda text: None)
    conversation.exchanges = [Exchange(f"question {number}", None, "x" * 1000, "answered") for number in range(30)]
    told = conversation.turns()
    assert [turn.question for turn in told] == [f"question {number}" for number in range(22, 30)]
    assert all(turn.answer == "x" * 1000 for turn in told)


def test_a_question_without_an_answer_is_not_told() -> None:
    conversation = Conversation(History(None), lambda text: None)
    conversation.exchanges = [Exchange("first", None, "yes", "answered"), Exchange("failed", None, " ", "failed")]
    assert [turn.question for turn in conversation.turns()] == ["first"]
