"""Keep the questions of `vidqa ask` in the history, where the session and `vidqa history` find them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vidqa.config import state_folder
from vidqa.errors import HistoryError, Interrupted, VidqaError
from vidqa.events import Answered, Event, Planned, TextDelta
from vidqa.types import Request

if TYPE_CHECKING:
    from vidqa.cli.console import StderrReporter
    from vidqa.history.conversation import Conversation


@contextmanager
def saved_conversation(reporter: "StderrReporter", *, keep: bool) -> Iterator["Conversation"]:
    """Yield a conversation of the history's file, or with `keep` False one that is forgotten.

    Where the file cannot be written, a line on stderr says so and the questions are answered all the same. A video from
    standard input is to be asked with `keep` False: it is gone afterwards, and the session could not open it again.
    """
    from vidqa.history.conversation import Conversation
    from vidqa.history.store import FILE_NAME, History

    history = History(state_folder() / FILE_NAME if keep else None)
    try:
        yield Conversation(history, lambda text: reporter.say(f"note: {text}"))
    finally:
        with suppress(HistoryError):
            history.close()


def recorded(events: Iterator[Event], conversation: "Conversation", request: Request) -> Iterator[Event]:
    """Yield a question's events and save what they say; an answer is on disk before its event is yielded.

    A question without a plan is not saved: its video is not known.
    """
    from vidqa.history.conversation import StreamingText

    exchange, streamed = None, StreamingText()
    try:
        for event in events:
            match event:
                case Planned(video, plan) if exchange is None:
                    span = (request.start_seconds, request.end_seconds)
                    exchange = conversation.begin(video, plan.model, request.question, span, replace=False)
                    streamed = conversation.streaming_text(exchange)
                case TextDelta(text):
                    streamed.add(text)
                case Answered(answer) if exchange is not None:
                    conversation.finish(exchange, answer)
            yield event
    except VidqaError as error:
        if exchange is not None:
            state = "stopped" if isinstance(error, Interrupted) else "failed"
            conversation.fail(exchange, str(error), state, streamed.text)  # type: ignore[arg-type]
        raise
