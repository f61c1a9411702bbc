"""An answer's Markdown, drawn in sections, with times as links.

Textual lays out all blocks of the screen whenever one grows: 900 widgets for an answer of 20,000 words. In sections,
the cost of a new piece of text does not grow with the text before it, and sections that are out of view are folded:
they keep their height, and their blocks are not laid out.
"""

from itertools import pairwise

from markdown_it import MarkdownIt
from textual.containers import Vertical
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownStream

from vidqa.history.timestamps import find_timestamps

_MIN_LINES, _MIN_CHARACTERS = 12, 1500  # of a section
_CLOSED = {"paragraph_open", "heading_open", "fence", "table_open", "hr"}
_SCHEME = "vidqa:"


def split_markdown(text: str) -> list[str]:
    """Split Markdown into sections of whole top-level blocks, each of a minimum size; joined, they are the text.

    A split is made only where later text cannot change the block before it: after an empty line, and not after a list
    if the next block may become its next item, as "2" does when it continues as "2. second".
    """
    if not _is_large(text):
        return [text]
    lines = text.splitlines(keepends=True)
    tokens = [token for token in MarkdownIt("gfm-like").parse(text) if token.map and token.level == 0]
    sections, begin = [], 0
    for before, token in pairwise(tokens):
        start = token.map[0] if token.map else 0
        closed = before.type in _CLOSED or (before.type != "blockquote_open" and lines[start][0].isalpha())
        if closed and not lines[start - 1].strip() and _is_large("".join(lines[begin:start])):
            sections.append("".join(lines[begin:start]))
            begin = start
    return [*sections, "".join(lines[begin:])]


def _is_large(text: str) -> bool:
    return len(text) >= _MIN_CHARACTERS or text.count("\n") >= _MIN_LINES


def link_timestamps(text: str) -> str:
    """Return the Markdown with every time in it as a link for `linked_seconds`."""
    pieces, end = [], 0
    for time in find_timestamps(text):
        pieces += [text[end : time.start], f"[{text[time.start : time.end]}]({_SCHEME}{time.seconds:g})"]
        end = time.end
    return "".join([*pieces, text[end:]])


def linked_seconds(address: str) -> float | None:
    """Return the time of a link made by `link_timestamps`; None for any other address."""
    try:
        return float(address.removeprefix(_SCHEME)) if address.startswith(_SCHEME) else None
    except ValueError:
        return None


class AnswerSection(Markdown):
    """A section of an answer; `text` is the Markdown without links."""

    def __init__(self) -> None:
        super().__init__(open_links=False)
        self.text = ""
        self._stream: MarkdownStream | None = None

    async def add(self, text: str) -> None:
        """Append streamed text."""
        self.text += text
        if self._stream is None:
            self._stream = Markdown.get_stream(self)
        await self._stream.write(text)

    async def complete(self, text: str) -> None:
        """Set the final text. It is drawn again only if links or code differ: a streamed piece can cut a fence."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        self.text = text
        if (linked := link_timestamps(text)) != self.source or "```" in text:
            await self.update(linked)

    @property
    def folded(self) -> bool:
        """Whether only the height is left."""
        return self.has_class("-folded")

    def fold(self, fold: bool) -> None:
        """Keep the height and hide the blocks, or show them. A section that is being streamed is not folded."""
        if fold == self.folded or (fold and (self._stream is not None or not self.outer_size.height)):
            return
        self.styles.height = self.outer_size.height if fold else "auto"
        self.set_class(fold, "-folded")


class AnswerText(Vertical):
    """The sections of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self._sections: list[AnswerSection] = []

    async def add(self, text: str) -> None:
        """Append streamed text."""
        last = self._sections[-1] if self._sections else await self._mount()
        *complete, rest = split_markdown(last.text + text)
        for piece in complete:
            await last.add(piece[len(last.text) :])
            await last.complete(piece)
            last = await self._mount()
        await last.add(rest[len(last.text) :])

    async def finish(self, text: str) -> None:
        """Set the whole answer; sections that it does not change are not drawn again."""
        complete = [section.text for section in self._sections[:-1]]
        if not text.startswith("".join(complete)):
            complete = []
        index = len(complete)
        for piece in split_markdown(text.removeprefix("".join(complete))):
            section = self._sections[index] if index < len(self._sections) else await self._mount()
            await section.complete(piece)
            index += 1
        for section in self._sections[index:]:
            await section.remove()
        del self._sections[index:]

    def fold_outside(self, top: float, bottom: float, *, only_unfold: bool) -> None:
        """Fold the sections that lie outside of rows `top` to `bottom` of this answer, and unfold the others."""
        begin = 0
        for section in self._sections:
            end = begin + section.outer_size.height
            is_near = end >= top and begin <= bottom
            if is_near or not only_unfold:
                section.fold(not is_near)
            begin = end

    def unfold(self) -> None:
        """Unfold all sections."""
        for section in self._sections:
            section.fold(False)

    async def _mount(self) -> AnswerSection:
        section = AnswerSection()
        self._sections.append(section)
        await self.mount(section)
        return section
