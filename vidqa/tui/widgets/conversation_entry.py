"""An entry of the conversation: a line that says what was asked, and below all else the progress or the figures."""

from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from vidqa.utils.safe_text import safe_text

_WARNING = "bold $text-warning"


class ConversationEntry(Vertical):
    """The base of a question with its answer, and of a search with its moments; subclasses compose the parts."""

    def __init__(self, shown: str) -> None:
        super().__init__()
        self._question = Static(
            Content.assemble(("› ", "bold $accent"), (safe_text(shown), "bold")), classes="question"
        )
        self._warning = Static("", classes="warning", markup=False)
        self._status = Static("waiting", classes="status", markup=False)
        self._notes: list[str | Content] = []
        self._after: Content | None = None
        self.status: Content | str = "waiting"

    def fold_outside(self, top: float, bottom: float, *, only_unfold: bool) -> None:
        """Fold the parts that lie outside of rows `top` to `bottom` of this entry; there are none here."""

    def unfold(self) -> None:
        """Unfold all parts."""

    def add_note(self, text: str) -> None:
        """Add a note above the status."""
        self._notes.append(f"note: {safe_text(text)}")
        self.set_status(self.status)

    def add_warning(self, text: str, after: str) -> None:
        """Show a warning below the question, and `after` below the result once that is there."""
        self._warning.update(Content.styled(f"⚠ {safe_text(text)}", _WARNING))
        self._warning.display = True
        self._after = Content.styled(f"⚠ {safe_text(after)}", _WARNING)

    def repeat_warning(self) -> None:
        """Show the warning's second text, if there was a warning; the next status draws it."""
        if self._after is not None:
            self._notes, self._after = [*self._notes, self._after], None

    def set_status(self, status: Content | str) -> None:
        """Set the line below."""
        self.status = status
        shown = Content("\n").join([*(Content("") + note for note in self._notes), Content("") + status])
        self._status.update(shown, layout=False)  # a layout of a long conversation is slow, and rarely needed
        if self._status.size.height != self._status_height():
            self._status.refresh(layout=True)

    def _status_height(self) -> int:
        """Return the lines that the status needs; -1 before it has a width."""
        width, visual = self._status.size.width, self._status.visual
        return visual.get_height(self._status.styles, width) if width else -1  # type: ignore[arg-type]
