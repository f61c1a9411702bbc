"""One question with its answer: streamed as Markdown, then whole, with what it took below."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from vidqa.tui.widgets.answer_text import AnswerText
from vidqa.utils.safe_text import safe_text


class TurnView(Vertical):
    """Grows while the answer comes."""

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question
        self.text = ""
        asked = Content.assemble(("› ", "bold $accent"), (safe_text(question), "bold"))
        self._asked = Static(asked, classes="question")
        self._answer = AnswerText()
        self._status = Static("waiting", classes="status", markup=False)
        self._notes: list[str] = []
        self._said: Content | str = "waiting"

    def compose(self) -> ComposeResult:
        """Question, answer, status."""
        yield self._asked
        yield self._answer
        yield self._status

    async def add(self, text: str) -> None:
        """More of the answer came."""
        if not self.text:
            text = text.lstrip()
        self.text += text
        if shown := safe_text(text):
            await self._answer.add(shown)

    async def finish(self, text: str | None, status: Content) -> None:
        """The answer is complete, stopped or failed; None keeps what was streamed."""
        if text is not None:
            self.text = text
        await self._answer.finish(safe_text(self.text.strip()))
        self.say(status)

    def fold_beyond(self, top: float, bottom: float, *, only_unfold: bool) -> None:
        """Of the answer's parts that end before row `top` of this turn, or begin after `bottom`, keep the height."""
        begin = self._asked.outer_size.height
        self._answer.fold_beyond(top - begin, bottom - begin, only_unfold=only_unfold)

    def unfold(self) -> None:
        """Keep all of it."""
        self._answer.unfold()

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
