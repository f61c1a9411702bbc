"""The browser of earlier conversations: search, open, delete."""

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
from vidqa.tui.bindings import bindings_for
from vidqa.utils.safe_text import safe_line, safe_text
from vidqa.utils.units import format_timestamp

_MAX_FOUND = 200


class HistoryBrowser(ModalScreen[SavedSession | None]):
    """Returns the session to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("history")
    AUTO_FOCUS = "#history-search"
    help_title = "History"
    help_text = (
        "Type to search in questions, answers and file names. Down goes to the list, Enter opens the selected "
        "conversation. Delete, pressed twice, deletes it for good."
    )

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history
        self._found: tuple[SavedSession, ...] = ()
        self._to_delete: int | None = None
        self._search = ""

    def compose(self) -> ComposeResult:
        """Yield title, search, list and keys."""
        with Vertical(classes="dialog wide"):
            yield Static("Earlier conversations", classes="title", markup=False)
            yield Input(placeholder="search questions and answers", id="history-search")
            yield OptionList(id="history-list")
            yield Static("Enter open · ↓ to the list · Del delete · Esc back", classes="keys", markup=False)

    def on_mount(self) -> None:
        """List all conversations."""
        self._list("")

    def on_input_changed(self, event: Input.Changed) -> None:
        """List the conversations that contain the text."""
        self._list(event.value.strip())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the selected conversation, else the first."""
        if self._found:
            self.dismiss(self._found[self.query_one(OptionList).highlighted or 0])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the chosen conversation."""
        self.dismiss(self._found[event.option_index])

    def action_focus_list(self) -> None:
        """Focus the list."""
        self.query_one(OptionList).focus()

    def action_delete(self) -> None:
        """Delete the selected conversation when pressed for the second time."""
        index = self.query_one(OptionList).highlighted
        if index is None or not self._found:
            return
        session = self._found[index]
        if self._to_delete != session.id:
            self._to_delete = session.id
            self.notify("Press Delete again to delete this conversation for good.", severity="warning", markup=False)
            return
        self._run(partial(self._history.delete_session, session.id))

    def _list(self, search: str) -> None:
        self._search = search
        self._run(lambda: None)

    def _run(self, first: Callable[[], None]) -> None:
        """Call `first`, then search, in a thread since a search can take a moment."""
        find = partial(self._find, first, self._search)
        self.run_worker(find, thread=True, group="history", exclusive=True, exit_on_error=False)

    def _find(self, first: Callable[[], None], search: str) -> None:
        try:
            first()
            found = self._history.sessions(_MAX_FOUND, search)
        except HistoryError as error:
            show = partial(self.notify, safe_text(str(error)), title="History", severity="error", markup=False)
            self.app.call_from_thread(show)
            return
        self.app.call_from_thread(self._show, search, found)

    def _show(self, search: str, found: tuple[SavedSession, ...]) -> None:
        if search != self._search:
            return
        self._found = found
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(_line(session)) for session in found])
        if found:
            options.highlighted = 0
        else:
            text = "nothing found" if search else "no conversations yet"
            options.add_option(Option(Content(text), disabled=True))


def _line(session: SavedSession) -> Content:
    when = session.updated.astimezone().strftime("%Y-%m-%d %H:%M")
    turns = "1 question" if session.turn_count == 1 else f"{session.turn_count} questions"
    facts = f"{when} · {safe_line(session.video_name)} {format_timestamp(session.video_seconds)} · {turns}"
    model = safe_line(session.model.rsplit("/", 1)[-1])
    return Content.assemble((safe_line(session.title), "bold"), "\n  ", (f"{facts} · {model}", "$foreground-muted"))
