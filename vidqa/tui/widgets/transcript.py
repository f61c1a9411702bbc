"""The conversation, oldest turn first. Follows new text until the user scrolls up."""

from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Resize
from textual.message import Message
from textual.widgets import Markdown, Static

from vidqa.tui.bindings import bindings_for
from vidqa.tui.widgets.answer_text import linked_seconds
from vidqa.tui.widgets.conversation_entry import ConversationEntry
from vidqa.tui.widgets.search_view import SearchView
from vidqa.tui.widgets.turn_view import TurnView


class Transcript(VerticalScroll, can_focus=True):
    """Holds a TurnView for each question and a SearchView for each search."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("transcript")
    help_title = "Conversation"
    help_text = (
        "Questions and answers. A time in an answer is a link that moves the cursor of the time line; t goes to the "
        "next one. Conversations are saved: F4 shows earlier ones."
    )

    @dataclass
    class TimestampChosen(Message):
        """A time in an answer was clicked."""

        seconds: float

    _fold_pending = False

    def compose(self) -> ComposeResult:
        """Yield what holds the entries: it is as high as the view, so that an anchored short one begins at the top."""
        yield Vertical(id="entries")

    @property
    def _entries(self) -> Vertical:
        return self.query_one("#entries", Vertical)

    def on_mount(self) -> None:
        """Keep the end in view. Anchored scrolling calls no watcher, so check after each layout what is in view."""
        self.anchor()
        self.screen.screen_layout_refresh_signal.subscribe(self, lambda screen: self._fold_later())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Unfold what comes into view at once, fold the rest later."""
        super().watch_scroll_y(old_value, new_value)
        self._fold_unseen(only_unfold=True)
        self._fold_later()

    def on_resize(self, event: Resize) -> None:
        """Unfold everything: the heights that were kept are wrong at another width."""
        for entry in self.entries():
            entry.unfold()

    def _fold_later(self) -> None:
        if not self._fold_pending:
            self._fold_pending = True
            self.call_after_refresh(self._fold_now)

    def _fold_now(self) -> None:
        self._fold_pending = False
        self._fold_unseen(only_unfold=False)

    def _fold_unseen(self, *, only_unfold: bool) -> None:
        """Fold what is more than a screen away from the view, in entries that are laid out at the current width."""
        top, height, width = -self.scroll_y, self.outer_size.height, self.scrollable_content_region.width
        for entry in self.entries():
            only = only_unfold or entry.outer_size.width != width
            entry.fold_outside(-height - top, 2 * height - top, only_unfold=only)
            top += entry.outer_size.height + entry.styles.margin.bottom

    def entries(self) -> list[ConversationEntry]:
        """Return all turns and searches, oldest first."""
        return [child for child in self._entries.children if isinstance(child, ConversationEntry)]

    def turns(self) -> list[TurnView]:
        """Return all turns, oldest first."""
        return [child for child in self._entries.children if isinstance(child, TurnView)]

    async def add_turn(self, question: str) -> TurnView:
        """Add a question at the end."""
        turn = TurnView(question)
        await self._add(turn)
        return turn

    async def add_search(self, text: str) -> SearchView:
        """Add a search at the end."""
        search = SearchView(text)
        await self._add(search)
        return search

    async def _add(self, entry: ConversationEntry) -> None:
        await self.query(".hint").remove()
        await self._entries.mount(entry)
        self.anchor()

    async def remove_last(self) -> None:
        """Remove the last turn."""
        if turns := self.turns():
            await turns[-1].remove()

    async def clear(self, hint: str) -> None:
        """Remove all turns and show a hint."""
        await self._entries.remove_children()
        await self._entries.mount(Static(hint, classes="hint", markup=False))

    def set_hint(self, hint: str) -> None:
        """Change the hint, if it is shown."""
        for shown in self.query(".hint").results(Static):
            shown.update(hint)

    def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:
        """Follow links to times only: an answer must not open a page or a program."""
        event.stop()
        if (seconds := linked_seconds(event.href)) is not None:
            self.post_message(self.TimestampChosen(seconds))
