"""A search with the moments that it found, as a list to choose from."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from vidqa.tui.bindings import bindings_for
from vidqa.tui.found_moments import FoundMoments, format_range, moment_index
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.utils.safe_text import safe_line

_MOST_SHOWN = 200  # characters of a text that was searched for


class MomentList(OptionList):
    """The moments, the best first; a number chooses one at once."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("moments")
    help_title = "Moments"
    help_text = (
        "The parts of the video that the text points to, the best first, with start, end and score: 1 is what every "
        "part would get of an even division of the model's attention. The numbers mark them on the time line.\n\n"
        "Up and Down select one, Enter, a click or its number chooses it: the next question is about that moment. "
        "Choosing it again, or Escape in the prompt, takes all of the searched range again. Delete removes the list."
    )

    @dataclass
    class RemovePressed(Message):
        """The search is to be removed."""

    def on_key(self, event: events.Key) -> None:
        """Choose by number."""
        if 0 <= (index := moment_index(event.character)) < self.option_count:
            event.stop()
            self.highlighted = index
            self.action_select()

    def action_remove_search(self) -> None:
        """Have the search removed."""
        self.post_message(self.RemovePressed())


class SearchView(ConversationEntry):
    """`show` lists what was found."""

    @dataclass
    class Highlighted(Message):
        """A moment is selected, but not chosen."""

        found: FoundMoments
        index: int

    @dataclass
    class Chosen(Message):
        """A moment is chosen for the next question."""

        found: FoundMoments
        index: int

    @dataclass
    class Removed(Message):
        """This search is to be removed."""

        view: "SearchView"

    def __init__(self, text: str) -> None:
        shown = safe_line(text)
        super().__init__(f"find {shown if len(shown) <= _MOST_SHOWN else shown[: _MOST_SHOWN - 1] + '…'}")
        self.found: FoundMoments | None = None
        self._list = MomentList(compact=True)

    def compose(self) -> ComposeResult:
        """Yield the text, the warning, the list and the status."""
        yield self._question
        yield self._warning
        yield self._list
        yield self._status

    def show(self, found: FoundMoments) -> None:
        """List what was found."""
        self.found = found
        self._list.add_options([Option(_line(found, index, chosen=False)) for index in range(len(found.moments))])
        self._list.add_class("-found")
        self._list.highlighted = 0
        self.repeat_warning()
        self.set_status(Content.styled(_summary(found), "$foreground-muted"))

    def show_chosen(self, index: int | None) -> None:
        """Mark the moment that the next question is about."""
        if self.found is not None:
            for place in range(len(self.found.moments)):
                line = _line(self.found, place, chosen=place == index)
                self._list.replace_option_prompt_at_index(place, line)

    def focus_list(self) -> None:
        """Focus the list."""
        self._list.focus()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Post which moment is selected."""
        event.stop()
        if self.found is not None:
            self.post_message(self.Highlighted(self.found, event.option_index))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Post which moment is chosen."""
        event.stop()
        if self.found is not None:
            self.post_message(self.Chosen(self.found, event.option_index))

    def on_moment_list_remove_pressed(self, event: MomentList.RemovePressed) -> None:
        """Post that this search is to be removed."""
        event.stop()
        self.post_message(self.Removed(self))


def _line(found: FoundMoments, index: int, *, chosen: bool) -> Content:
    moment = found.moments[index]
    return Content.assemble(
        ("● " if chosen else "  ", "bold $success"),
        (f"{index + 1}  ", "bold $success"),
        f"{format_range(moment.start_seconds, moment.end_seconds):<17}  ",
        (f"score {moment.score:.2f}", "$foreground-muted"),
    )


def _summary(found: FoundMoments) -> str:
    count = len(found.moments)
    moments, numbers = ("1 moment", "1") if count == 1 else (f"{count} moments", f"1–{count}")
    return f"{moments} in {found.looked_at} frames · Enter or {numbers}: ask about it"
