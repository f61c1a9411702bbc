"""A page of text to read: the help of a part, or the log."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from vidqa.tui.key_bindings import bindings_for


class TextViewer(ModalScreen[None]):
    """A title and text; scrolls, and closes with Escape or the key that opened it."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("text")
    AUTO_FOCUS = "#page"

    def __init__(self, title: str, text: Content, *, at_end: bool = False) -> None:
        super().__init__()
        self._title, self._text, self._at_end = title, text, at_end

    def compose(self) -> ComposeResult:
        """The page."""
        with Vertical(classes="dialog wide"):
            yield Static(self._title, classes="title", markup=False)
            with VerticalScroll(id="page"):
                yield Static(self._text, markup=False)
            yield Static("↑ ↓ scroll · Esc close", classes="keys", markup=False)

    def on_mount(self) -> None:
        """A log is read from its end."""
        if self._at_end:
            self.query_one("#page").scroll_end(animate=False)

    def action_close(self) -> None:
        """Back."""
        self.dismiss(None)
