"""One question with its answer: streamed as Markdown, then whole, with what it took below."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from vidqa.text import safe_text
from vidqa.tui.links import with_links


class TurnView(Vertical):
    """Grows while the answer comes; `finish` draws the whole text once more, since pieces can cut a code fence."""

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question
        self.text = ""
        self._markdown = Markdown(open_links=False)
        self._status = Static("waiting", classes="status", markup=False)
        self._notes: list[str] = []
        self._said: Content | str = "waiting"
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        """Question, answer, status."""
        yield Static(Content.assemble(("› ", "bold $accent"), (safe_text(self.question), "bold")), classes="question")
        yield self._markdown
        yield self._status

    async def add(self, text: str) -> None:
        """More of the answer came."""
        if not self.text:
            text = text.lstrip()
        self.text += text
        if self._stream is None:
            self._stream = Markdown.get_stream(self._markdown)
        if shown := safe_text(text):
            await self._stream.write(shown)

    async def finish(self, text: str | None, status: Content) -> None:
        """The answer is complete, stopped or failed; None keeps what was streamed."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        if text is not None:
            self.text = text
        await self._markdown.update(with_links(safe_text(self.text.strip())))
        self.say(status)

    def note(self, text: str) -> None:
        """Something to know about this answer, above its status."""
        self._notes.append(f"note: {safe_text(text)}")
        self.say(self._said)

    def say(self, status: Content | str) -> None:
        """What goes on, or what it took."""
        self._said = status
        said = Content("\n").join([*map(Content, self._notes), Content("") + status])
        self._status.update(said, layout=False)  # laying out a long conversation takes long, and is seldom needed
        if self._status.size.height != self._height_of_status():
            self._status.refresh(layout=True)

    def _height_of_status(self) -> int:
        """Lines that the status needs; -1 before it has its width."""
        width, visual = self._status.size.width, self._status.visual
        return visual.get_height(self._status.styles, width) if width else -1  # type: ignore[arg-type]
