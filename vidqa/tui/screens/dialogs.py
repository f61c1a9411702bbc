"""Three general dialogs: a list to choose from, a line to write, and a text to read."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
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


class LineDialog(ModalScreen[str | None]):
    """Returns a line of text, or None. `check` returns why a text cannot be used, else an empty text.

    `note` stands below the line while there is no error.
    """

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("line")
    AUTO_FOCUS = "#line"
    help_title = "A line of text"
    help_text = "Write a text and press Enter; Escape closes without one."

    def __init__(self, title: str, example: str, text: str, check: Callable[[str], str], note: str = "") -> None:
        super().__init__()
        self._title, self._example, self._first, self._check, self._note = title, example, text, check, note

    def compose(self) -> ComposeResult:
        """Yield title, line, error and keys."""
        with Vertical(classes="dialog"):
            yield Static(safe_line(self._title), classes="title", markup=False)
            yield Input(self._first, placeholder=self._example, id="line")
            yield Static(self._note, id="line-error", markup=False)
            yield Static("Enter go on · Esc back", classes="keys", markup=False)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Remove the error."""
        self._show(self._note, error=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the text, or show why it cannot be used."""
        text = event.value.strip()
        if error := self._check(text):
            self._show(error, error=True)
        else:
            self.dismiss(text)

    def _show(self, text: str, *, error: bool) -> None:
        line = self.query_one("#line-error", Static)
        line.set_class(error, "-error")
        line.update(safe_line(text))


class TextViewer(ModalScreen[None]):
    """Shows a text that scrolls; Escape or the key that opened it closes it."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("text")
    VERTICAL_BREAKPOINTS = [(0, "-small"), (26, "-large")]  # noqa: RUF012 - as Textual declares it
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
