"""Earlier conversations: search, open, delete."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from vidqa.errors import HistoryError
from vidqa.history.records import SavedSession
from vidqa.history.store import History
from vidqa.tui.key_bindings import bindings_for
from vidqa.utils.safe_text import safe_line, safe_text
from vidqa.utils.units import format_timestamp

_MOST = 200


class HistoryBrowser(ModalScreen[SavedSession | None]):
    """Dismissed with the session to open, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("history")
    AUTO_FOCUS = "#history-search"
    help_title = "History"
    help_text = (
        "Every conversation is kept. Type to search in questions, answers and file names, go down into the list, Enter "
        "opens. Delete, pressed twice, removes the marked one for good."
    )

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history
        self._found: tuple[SavedSession, ...] = ()
        self._doomed: int | None = None
        self._search = ""

    def compose(self) -> ComposeResult:
        """The search and the list."""
        with Vertical(classes="dialog wide"):
            yield Static("Earlier conversations", classes="title", markup=False)
            yield Input(placeholder="search questions and answers", id="history-search")
            yield OptionList(id="history-list")
            yield Static("Enter open · ↓ into the list · Del delete · Esc back", classes="keys", markup=False)

    def on_mount(self) -> None:
        """All of them."""
        self._list("")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Those that hold the text."""
        self._list(event.value.strip())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The first one."""
        if self._found:
            self.dismiss(self._found[self.query_one(OptionList).highlighted or 0])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """The chosen one."""
        self.dismiss(self._found[event.option_index])

    def action_to_list(self) -> None:
        """From the search into the list."""
        self.query_one(OptionList).focus()

    def action_delete(self) -> None:
        """Once asks, twice deletes."""
        place = self.query_one(OptionList).highlighted
        if place is None or not self._found:
            return
        session = self._found[place]
        if self._doomed != session.id:
            self._doomed = session.id
            self.notify("Press Delete again to delete this conversation for good.", severity="warning", markup=False)
            return
        self._work(partial(self._history.delete_session, session.id))

    def action_close(self) -> None:
        """Nothing was chosen."""
        self.dismiss(None)

    def _list(self, search: str) -> None:
        self._search = search
        self._work(lambda: None)

    def _work(self, first: Callable[[], None]) -> None:
        """Away from the screen, since a search can take a moment: do something, then list what is found now."""
        find = partial(self._find, first, self._search)
        self.run_worker(find, thread=True, group="history", exclusive=True, exit_on_error=False)

    def _find(self, first: Callable[[], None], search: str) -> None:
        try:
            first()
            found = self._history.sessions(_MOST, search)
        except HistoryError as error:
            tell = partial(self.notify, safe_text(str(error)), title="History", severity="error", markup=False)
            self.app.call_from_thread(tell)
            return
        self.app.call_from_thread(self._show, search, found)

    def _show(self, search: str, found: tuple[SavedSession, ...]) -> None:
        if search != self._search:
            return
        self._found = found
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(_line(session)) for session in self._found])
        if not self._found:
            options.add_option(Option(Content("nothing found" if search else "nothing was asked yet"), disabled=True))
        else:
            options.highlighted = 0


def _line(session: SavedSession) -> Content:
    when = session.updated.astimezone().strftime("%Y-%m-%d %H:%M")
    turns = "1 question" if session.turn_count == 1 else f"{session.turn_count} questions"
    facts = f"{when} · {safe_line(session.video_name)} {format_timestamp(session.video_seconds)} · {turns}"
    return Content.assemble(
        (safe_line(session.title), "bold"),
        "\n  ",
        (f"{facts} · {safe_line(session.model.rsplit('/', 1)[-1])}", "$foreground-muted"),
    )
