"""An answer's Markdown, in sections: what a piece of text costs does not grow with the text before it.

Textual lays out every block of the screen anew whenever one of them grows: of an answer of 20,000 words, 900 widgets.
A section that is complete is drawn once more where it names times, which become links, or has code, since pieces can
cut a fence. It can then be folded: it keeps its height, and its blocks are not laid out while they are out of view.
"""

from textual.containers import Vertical
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownStream

from vidqa.tui.markdown_chunks import cut_sections
from vidqa.tui.timestamp_links import with_links


class AnswerSection(Markdown):
    """A part of an answer, `text` as it came."""

    def __init__(self) -> None:
        super().__init__(open_links=False)
        self.text = ""
        self._stream: MarkdownStream | None = None

    async def add(self, text: str) -> None:
        """More of it came."""
        self.text += text
        if self._stream is None:
            self._stream = Markdown.get_stream(self)
        await self._stream.write(text)  # nothing, where there is none

    async def complete(self, text: str) -> None:
        """This is all of it; its times become links."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        self.text = text
        if (linked := with_links(text)) != self.source or "```" in text:
            await self.update(linked)

    @property
    def folded(self) -> bool:
        """Whether only its height is left."""
        return self.has_class("-folded")

    def fold(self, fold: bool) -> None:
        """Keep the height and hide the blocks, or show them. A stream's section stays open."""
        if fold == self.folded or (fold and (self._stream is not None or not self.outer_size.height)):
            return
        self.styles.height = self.outer_size.height if fold else "auto"
        self.set_class(fold, "-folded")


class AnswerText(Vertical):
    """Grows while the answer comes; `finish` draws what was not complete."""

    def __init__(self) -> None:
        super().__init__()
        self._sections: list[AnswerSection] = []

    @property
    def source(self) -> str:
        """The Markdown as it is drawn."""
        return "".join(section.source for section in self._sections)

    async def add(self, text: str) -> None:
        """More of the answer came."""
        last = await self._last()
        *complete, rest = cut_sections(last.text + text)
        for piece in complete:
            await last.add(piece[len(last.text) :])
            await last.complete(piece)
            last = await self._mount()
        await last.add(rest[len(last.text) :])

    async def finish(self, text: str) -> None:
        """This is all of the answer."""
        *complete, _ = (section.text for section in self._sections) if self._sections else [""]
        same = text.startswith("".join(complete))
        at = len(complete) if same else 0
        for piece in cut_sections(text.removeprefix("".join(complete)) if same else text):
            section = self._sections[at] if at < len(self._sections) else await self._mount()
            await section.complete(piece)
            at += 1
        for section in self._sections[at:]:
            await section.remove()
        del self._sections[at:]

    def fold_beyond(self, top: float, bottom: float, *, only_unfold: bool) -> None:
        """Fold the sections that end before row `top` of this answer or begin after `bottom`, unfold the others."""
        begin = 0
        for section in self._sections:
            end = begin + section.outer_size.height
            is_near = end >= top and begin <= bottom
            if is_near or not only_unfold:
                section.fold(not is_near)
            begin = end

    def unfold(self) -> None:
        """Show all."""
        for section in self._sections:
            section.fold(False)

    async def _last(self) -> AnswerSection:
        return self._sections[-1] if self._sections else await self._mount()

    async def _mount(self) -> AnswerSection:
        section = AnswerSection()
        self._sections.append(section)
        await self.mount(section)
        return section
