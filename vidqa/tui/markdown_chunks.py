"""Where a long Markdown text is cut, so that each part can be drawn by itself. Text in, pieces out."""

from itertools import pairwise

from markdown_it import MarkdownIt

_LINES, _CHARACTERS = 12, 1500
_CLOSED = {"paragraph_open", "heading_open", "fence", "table_open", "hr"}


def cut_sections(text: str) -> list[str]:
    """The text in pieces of whole top-level blocks, each of at least some lines; together they are the text.

    A piece ends where the block before can no longer change, whatever comes: behind an empty line, and not behind a
    list when the next block may turn out to be its next item, as "2" does when it becomes "2. second".
    """
    if not _is_large(text):
        return [text]
    lines = text.splitlines(keepends=True)
    tokens = [token for token in MarkdownIt("gfm-like").parse(text) if token.map and token.level == 0]
    pieces, begun = [], 0
    for before, token in pairwise(tokens):
        start = token.map[0] if token.map else 0
        closed = before.type in _CLOSED or (before.type != "blockquote_open" and lines[start][0].isalpha())
        if closed and not lines[start - 1].strip() and _is_large("".join(lines[begun:start])):
            pieces.append("".join(lines[begun:start]))
            begun = start
    return [*pieces, "".join(lines[begun:])]


def _is_large(text: str) -> bool:
    return len(text) >= _CHARACTERS or text.count("\n") >= _LINES
