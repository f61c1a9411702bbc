"""Where questions are written: Enter asks, and a dropped or pasted path of a video opens it."""

import re
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from vidqa.tui.dropped_path import dropped_path
from vidqa.tui.key_bindings import bindings_for
from vidqa.utils.safe_text import safe_text

# Keys of the editor that mean something else in this app.
_TAKEN = re.compile(r"f\d+|escape|ctrl\+[ocqnlp]")


class QuestionInput(TextArea, inherit_bindings=False):
    """A few lines of text. Up and Down beyond the text go through earlier questions."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            binding
            for binding in Binding.make_bindings(TextArea.BINDINGS)
            if not _TAKEN.fullmatch(binding.key) and binding.key not in ("enter", "up", "down")
        ),
        *bindings_for("prompt"),
    ]
    help_title = "Prompt"
    help_text = (
        "Write a question and press Enter; Shift+Enter begins a new line. A path that is pasted or dropped here opens "
        "that video. Up and Down go through earlier questions."
    )

    class Submitted(Message):
        """A question was given."""

        def __init__(self, question: str) -> None:
            super().__init__()
            self.question = question

    class PathDropped(Message):
        """The path of a video was pasted."""

        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

    def __init__(self, *, id: str) -> None:
        super().__init__(compact=True, placeholder="Open a video first: ctrl+o, or drop a file here", id=id)
        self.border_title = "Question"
        self._earlier: list[str] = []
        self._place = 0

    def render_line(self, y: int) -> Strip:
        """Nothing where there is no room: the editor itself would divide its placeholder by zero."""
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(self.size.width)

    def remember(self, question: str) -> None:
        """Up brings it back."""
        if question and (not self._earlier or self._earlier[-1] != question):
            self._earlier.append(question)
        self._place = len(self._earlier)

    def action_ask(self) -> None:
        """Give the question away at once: what is typed from now on is the next one."""
        if question := self.text.strip():
            self.text = ""
            self.post_message(self.Submitted(question))

    def give_back(self, question: str) -> None:
        """It was not asked: here it is again, before what was typed meanwhile."""
        self.text = f"{question}\n{self.text}" if self.text else question
        self.move_cursor(self.document.end)

    def action_newline(self) -> None:
        """Begin a new line."""
        self.insert("\n")

    def action_earlier(self) -> None:
        """Up: within the text, then to the question before."""
        if self.cursor_location[0] > 0:
            self.action_cursor_up()
        elif self._place > 0:
            self._go(self._place - 1)

    def action_later(self) -> None:
        """Down: within the text, then to the question after."""
        if self.cursor_location[0] < self.document.line_count - 1:
            self.action_cursor_down()
        elif self._place < len(self._earlier):
            self._go(self._place + 1)

    def _go(self, place: int) -> None:
        self._place = place
        self.text = self._earlier[place] if place < len(self._earlier) else ""
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        """Enter is for the bindings; the editor's own handler, which comes after this one, would break the line."""
        if event.key == "enter":
            event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        """A path opens; anything else is for the editor's own handler, which comes after this one."""
        if (path := dropped_path(event.text)) is not None:
            event.prevent_default()
            event.stop()
            self.post_message(self.PathDropped(path))
        else:  # terminals paste lines with carriage returns
            event.text = safe_text("\n".join(event.text.splitlines()))
