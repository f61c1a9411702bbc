"""The chooser of models: what is here, what can be fetched, how large each is, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from vidqa.utils.units import format_bytes


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that can be chosen. `fits` is None where nobody can say; one that is not `here` is fetched first."""

    name: str
    note: str
    size_bytes: int
    here: bool
    fits: bool | None
    told: str


class ModelChooser(ModalScreen[ModelRow | None]):
    """Dismissed with the chosen model, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("models")
    AUTO_FOCUS = "OptionList"
    help_title = "Models"
    help_text = (
        "Which model answers. Enter takes the marked one; one that is not here yet is fetched first, from the "
        "Hugging Face hub. Whether it fits is the planner's word for the memory that is free now."
    )

    def __init__(self, choices: Sequence[ModelRow], current: str | None) -> None:
        super().__init__()
        self._choices, self._current = tuple(choices), current

    def compose(self) -> ComposeResult:
        """A line of introduction and the list."""
        with Vertical(classes="dialog"):
            yield Static("Which model should answer?", classes="title", markup=False)
            yield OptionList(*(Option(self._line(choice)) for choice in self._choices), id="models")
            yield Static("↑ ↓ choose · Enter take · Esc back", classes="keys", markup=False)

    def on_mount(self) -> None:
        """Mark the model that answers now, else the first that is here and fits."""
        names = [choice.name for choice in self._choices]
        self.query_one(OptionList).highlighted = names.index(self._current) if self._current in names else 0

    def _line(self, choice: ModelRow) -> Content:
        verdict = {None: ("? ", "$foreground-muted"), True: ("✓ ", "$text-success"), False: ("✗ ", "$text-error")}[
            choice.fits
        ]
        place = "here" if choice.here else "to fetch"
        name = ("● " if choice.name == self._current else "  ") + safe_line(choice.name)
        first = Content.assemble(
            (f"{name:<34}", "bold"), f"{format_bytes(choice.size_bytes):>9} {place} · {choice.note}"
        )
        second = Content.assemble("    ", verdict, (safe_line(choice.told), "$foreground-muted"))
        return Content("\n").join([first, second])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Taken."""
        self.dismiss(self._choices[event.option_index])

    def action_close(self) -> None:
        """Nothing was chosen."""
        self.dismiss(None)
