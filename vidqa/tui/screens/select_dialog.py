"""A short list to choose one line from."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from vidqa.tui.key_bindings import bindings_for
from vidqa.utils.safe_text import safe_line


class SelectDialog(ModalScreen[int | None]):
    """Dismissed with the place of the chosen line, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("pick")
    AUTO_FOCUS = "OptionList"
    help_title = "Choose"
    help_text = "Up and down, then Enter; Escape chooses nothing."

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._title, self._lines = title, lines

    def compose(self) -> ComposeResult:
        """The title and the list."""
        with Vertical(classes="dialog"):
            yield Static(safe_line(self._title), classes="title", markup=False)
            yield OptionList(*(Option(Content(safe_line(line))) for line in self._lines))
            yield Static("↑ ↓ choose · Enter take · Esc back", classes="keys", markup=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Taken."""
        self.dismiss(event.option_index)

    def action_close(self) -> None:
        """Nothing was chosen."""
        self.dismiss(None)
