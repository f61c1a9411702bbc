"""The prompt: Enter asks the question; a pasted or dropped path of a video opens the video."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from vidqa.errors import UsageError
from vidqa.tui.bindings import bindings_for
from vidqa.utils.safe_text import safe_text
from vidqa.video.path_completion import is_video_name
from vidqa.video.picture_folder import is_picture_folder
from vidqa.video.video_input import local_path

# The editor's keys that vidqa binds to something else.
_REBOUND = re.compile(r"f\d+|escape|ctrl\+[ocqnlp]|enter|up|down")


class QuestionInput(TextArea, inherit_bindings=False):
    """An editor of a few lines. Up on the first line and Down on the last go through earlier questions."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(one for one in Binding.make_bindings(TextArea.BINDINGS) if not _REBOUND.fullmatch(one.key)),
        *bindings_for("prompt"),
    ]
    help_title = "Prompt"
    help_text = (
        "Write a question and press Enter; Shift+Enter starts a new line. Paste or drop the path of a video here to "
        "open it. Up and Down go through earlier questions."
    )

    @dataclass
    class Submitted(Message):
        """A question was entered."""

        question: str

    @dataclass
    class PathDropped(Message):
        """The path of a video was pasted or dropped."""

        path: str

    def __init__(self, *, id: str) -> None:
        super().__init__(compact=True, placeholder="Open a video first: ctrl+o, or drop a file here", id=id)
        self.border_title = "Question"
        self._earlier: list[str] = []
        self._index = 0

    def render_line(self, y: int) -> Strip:
        """Return an empty line if there is no room: TextArea divides by the width of its placeholder."""
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(self.size.width)

    def remember(self, question: str) -> None:
        """Add a question to the earlier ones."""
        if question and (not self._earlier or self._earlier[-1] != question):
            self._earlier.append(question)
        self._index = len(self._earlier)

    def restore(self, question: str) -> None:
        """Put back a question that was not asked, before what was typed meanwhile."""
        self.text = f"{question}\n{self.text}" if self.text else question
        self.move_cursor(self.document.end)

    def action_ask(self) -> None:
        """Submit the question and clear the prompt."""
        if question := self.text.strip():
            self.text = ""
            self.post_message(self.Submitted(question))

    def action_newline(self) -> None:
        """Start a new line."""
        self.insert("\n")

    def action_earlier(self) -> None:
        """Move the cursor up; from the first line, show the previous question."""
        if self.cursor_location[0] > 0:
            self.action_cursor_up()
        elif self._index > 0:
            self._show(self._index - 1)

    def action_later(self) -> None:
        """Move the cursor down; from the last line, show the next question."""
        if self.cursor_location[0] < self.document.line_count - 1:
            self.action_cursor_down()
        elif self._index < len(self._earlier):
            self._show(self._index + 1)

    def _show(self, index: int) -> None:
        self._index = index
        self.text = self._earlier[index] if index < len(self._earlier) else ""
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        """Leave Enter to the bindings; TextArea's handler, which runs after this one, would insert a line."""
        if event.key == "enter":
            event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        """Post the path of a video; leave other text to TextArea's handler, which runs after this one."""
        try:
            path = dropped_path(event.text)
        except UsageError as error:
            event.prevent_default()
            event.stop()
            self.notify(safe_text(str(error)), title="Video", severity="error", timeout=12, markup=False)
            return
        if path is not None:
            event.prevent_default()
            event.stop()
            self.post_message(self.PathDropped(path))
        else:  # terminals paste lines with carriage returns
            event.text = safe_text("\n".join(event.text.splitlines()))


def dropped_path(text: str) -> str | None:
    """Return the video that a dropped text names: a path, quoted or escaped or not, or a `file://` address.

    Raises UsageError for a `file://` address of another host.
    """
    line = text.strip()
    if not line or "\n" in line:
        return None
    if line.startswith("file://"):
        candidates = [local_path(line)]
    else:
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        candidates = [line, *words] if len(words) == 1 else [line]
    return next((path for path in candidates if _is_video(path)), None)


def _is_video(path: str) -> bool:
    """Return whether a path is a video file, or a folder of numbered pictures; a folder's needs a slash."""
    try:
        expanded = Path(path).expanduser()
        return (is_video_name(path) and expanded.is_file()) or ("/" in path and is_picture_folder(str(expanded)))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home to expand
        return False
