"""The conversation, oldest first. Follows new text until the person scrolls up."""

from typing import ClassVar

from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.message import Message
from textual.widgets import Markdown, Static

from vidqa.tui.key_bindings import bindings_for
from vidqa.tui.timestamp_links import linked_seconds
from vidqa.tui.widgets.turn_view import TurnView


class Transcript(VerticalScroll, can_focus=True):
    """A TurnView for every question."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("transcript")
    help_title = "Conversation"
    help_text = (
        "Questions and answers. Times in an answer are links that move the cursor of the time line; t goes through "
        "them. Answers are kept: F4 finds them again."
    )

    class MomentChosen(Message):
        """A time in an answer was chosen."""

        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

    _folds = False

    def on_mount(self) -> None:
        """Keep the end in view. That scrolls without being told, so each layout is looked at for what is in view."""
        self.anchor()
        self.screen.screen_layout_refresh_signal.subscribe(self, lambda screen: self._fold_soon())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """What comes into view has to be there."""
        super().watch_scroll_y(old_value, new_value)
        self._fold_unseen(only_unfold=True)
        self._fold_soon()

    def on_resize(self, event: Resize) -> None:
        """At another width, other heights."""
        for turn in self.turns():
            turn.unfold()

    def _fold_soon(self) -> None:
        """After the next layout, once."""
        if not self._folds:
            self._folds = True
            self.call_after_refresh(self._fold_now)

    def _fold_now(self) -> None:
        self._folds = False
        self._fold_unseen(only_unfold=False)

    def _fold_unseen(self, *, only_unfold: bool) -> None:
        """Of what is more than a screen away, only the height is kept, where it is the height at this width."""
        top, height, width = -self.scroll_y, self.outer_size.height, self.scrollable_content_region.width
        for turn in self.turns():
            only = only_unfold or turn.outer_size.width != width
            turn.fold_beyond(-height - top, 2 * height - top, only_unfold=only)
            top += turn.outer_size.height + turn.styles.margin.bottom

    def turns(self) -> list[TurnView]:
        """All turns, oldest first."""
        return [child for child in self.children if isinstance(child, TurnView)]

    async def add_turn(self, question: str) -> TurnView:
        """A new question at the end."""
        turn = TurnView(question)
        await self.query(".hint").remove()
        await self.mount(turn)
        self.anchor()
        return turn

    async def drop_last(self) -> None:
        """The last turn goes."""
        if turns := self.turns():
            await turns[-1].remove()

    async def clear(self, hint: str) -> None:
        """Nothing was asked yet; `hint` says what to do."""
        await self.remove_children()
        await self.mount(Static(hint, classes="hint", markup=False))

    def say(self, hint: str) -> None:
        """Another hint, while nothing was asked."""
        for shown in self.query(".hint").results(Static):
            shown.update(hint)

    def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:
        """Only our own links lead anywhere: an answer cannot open a page or a program."""
        event.stop()
        if (seconds := linked_seconds(event.href)) is not None:
            self.post_message(self.MomentChosen(seconds))
