"""A question with its answer, and below it the progress or the figures of the answer."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from vidqa.tui.widgets.answer_text import AnswerText
from vidqa.utils.safe_text import safe_text

_WARNING = "bold $text-warning"


class TurnView(Vertical):
    """`add` streams the answer, `finish` completes it."""

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question
        self.text = ""
        shown = Content.assemble(("› ", "bold $accent"), (safe_text(question), "bold"))
        self._question = Static(shown, classes="question")
        self._warning = Static("", classes="warning", markup=False)
        self._answer = AnswerText()
        self._status = Static("waiting", classes="status", markup=False)
        self._notes: list[str | Content] = []
        self._after: Content | None = None
        self.status: Content | str = "waiting"

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
        if self._after is not None:
            self._notes, self._after = [*self._notes, self._after], None
        self.set_status(status)

    def fold_outside(self, top: float, bottom: float, *, only_unfold: bool) -> None:
        """Fold the parts of the answer that lie outside of rows `top` to `bottom` of this turn."""
        begin = self._question.outer_size.height + self._warning.outer_size.height
        self._answer.fold_outside(top - begin, bottom - begin, only_unfold=only_unfold)

    def unfold(self) -> None:
        """Unfold the whole answer."""
        self._answer.unfold()

    def add_note(self, text: str) -> None:
        """Add a note above the status."""
        self._notes.append(f"note: {safe_text(text)}")
        self.set_status(self.status)

    def add_warning(self, text: str, after: str) -> None:
        """Show a warning above the answer, and `after` below it once it is there."""
        self._warning.update(Content.styled(f"⚠ {safe_text(text)}", _WARNING))
        self._warning.display = True
        self._after = Content.styled(f"⚠ {safe_text(after)}", _WARNING)

    def set_status(self, status: Content | str) -> None:
        """Set the line below the answer."""
        self.status = status
        shown = Content("\n").join([*(Content("") + note for note in self._notes), Content("") + status])
        self._status.update(shown, layout=False)  # a layout of a long conversation is slow, and rarely needed
        if self._status.size.height != self._status_height():
            self._status.refresh(layout=True)

    def _status_height(self) -> int:
        """Return the lines that the status needs; -1 before it has a width."""
        width, visual = self._status.size.width, self._status.visual
        return visual.get_height(self._status.styles, width) if width else -1  # type: ignore[arg-type]
