"""A question with its answer, and below it the progress or the figures of the answer."""

from textual.app import ComposeResult
from textual.content import Content

from vidqa.tui.widgets.answer_text import AnswerText
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.utils.safe_text import safe_text


class TurnView(ConversationEntry):
    """`add` streams the answer, `finish` completes it."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question
        self.text = ""
        self._answer = AnswerText()

    def compose(self) -> ComposeResult:
        """Yield question, warning, answer and status."""
        yield self._question
        yield self._warning
        yield self._answer
        yield self._status

    async def add(self, text: str) -> None:
        """Append streamed text."""
        if not self.text:
            text = text.lstrip()
        self.text += text
        if shown := safe_text(text):
            await self._answer.add(shown)

    async def finish(self, text: str | None, status: Content) -> None:
        """Set the final text (None keeps what was streamed) and status."""
        if text is not None:
            self.text = text
        await self._answer.finish(safe_text(self.text.strip()))
        self.repeat_warning()
        self.set_status(status)

    def fold_outside(self, top: float, bottom: float, *, only_unfold: bool) -> None:
        """Fold the parts of the answer that lie outside of rows `top` to `bottom` of this turn."""
        begin = self._question.outer_size.height + self._warning.outer_size.height
        self._answer.fold_outside(top - begin, bottom - begin, only_unfold=only_unfold)

    def unfold(self) -> None:
        """Unfold the whole answer."""
        self._answer.unfold()
