"""A question with its answer, and below it the progress or the figures of the answer."""

from textual import events
from textual.app import ComposeResult
from textual.content import Content

from vidqa.tui.widgets.answer_text import AnswerText
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.utils.safe_text import safe_line, safe_text


class TurnView(ConversationEntry):
    """`add` streams the answer, `finish` completes it. The figures are one line that a click or m opens."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question
        self.text = ""
        self._answer = AnswerText()
        self._figures: tuple[str, str] | None = None  # folded and open
        self._open = False

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

    async def finish(self, text: str | None, status: Content | str, figures: str = "") -> None:
        """Set the final text (None keeps what was streamed) and status; `figures` are what the status is short for."""
        if text is not None:
            self.text = text
        await self._answer.finish(safe_text(self.text.strip()))
        self.repeat_warning()
        if figures:
            self._figures = (safe_line(str(status)), safe_line(figures))
            self._show_figures()
        else:
            self.set_status(status)

    def toggle_figures(self) -> bool:
        """Open or fold the figures; return False if there are none."""
        if self._figures is None:
            return False
        self._open = not self._open
        self._show_figures()
        return True

    def _show_figures(self) -> None:
        assert self._figures is not None
        mark, text = ("▾", self._figures[1]) if self._open else ("▸", self._figures[0])
        self.set_status(Content.styled(f"{mark} {text}", "$foreground-muted"))

    def on_click(self, event: events.Click) -> None:
        """Open or fold the figures if the click is on them."""
        if event.widget is self._status and self.toggle_figures():
            event.stop()

    def fold_outside(self, top: float, bottom: float, *, only_unfold: bool) -> None:
        """Fold the parts of the answer that lie outside of rows `top` to `bottom` of this turn."""
        begin = self._question.outer_size.height + self._warning.outer_size.height
        self._answer.fold_outside(top - begin, bottom - begin, only_unfold=only_unfold)

    def unfold(self) -> None:
        """Unfold the whole answer."""
        self._answer.unfold()
