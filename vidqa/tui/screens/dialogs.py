"""Two general dialogs: a list to choose from, and a text to read."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from vidqa.tui.bindings import bindings_for
from vidqa.utils.safe_text import safe_line


class SelectDialog(ModalScreen[int | None]):
    """Returns the index of the chosen line, or None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("pick")
    AUTO_FOCUS = "OptionList"
    help_title = "Choose"
    help_text = "Up and Down select a line, Enter chooses it, Escape closes the list."

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._title, self._lines = title, lines

    def compose(self) -> ComposeResult:
        """Yield title, list and keys."""
        with Vertical(classes="dialog"):
            yield Static(safe_line(self._title), classes="title", markup=False)
            yield OptionList(*(Option(Content(safe_line(line))) for line in self._lines))
            yield Static("↑ ↓ select · Enter choose · Esc back", classes="keys", markup=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the chosen line."""
        self.dismiss(event.option_index)


class TextViewer(ModalScreen[None]):
    """Shows a text that scrolls; Escape or the key that opened it closes it."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("text")
    AUTO_FOCUS = "#text"

    def __init__(self, title: str, text: Content, *, at_end: bool = False) -> None:
        super().__init__()
        self._title, self._text, self._at_end = title, text, at_end

    def compose(self) -> ComposeResult:
        """Yield title, text and keys."""
        with Vertical(classes="dialog wide"):
            yield Static(self._title, classes="title", markup=False)
            with VerticalScroll(id="text"):
                yield Static(self._text, markup=False)
            yield Static("↑ ↓ scroll · Esc close", classes="keys", markup=False)

    def on_mount(self) -> None:
        """Scroll to the end if asked to."""
        if self._at_end:
            self.query_one("#text").scroll_end(animate=False)
