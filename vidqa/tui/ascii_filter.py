"""Everything in ASCII, for terminals that know nothing else: boxes, blocks and arrows become their look-alikes."""

import unicodedata

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_LIKE = {
    **dict.fromkeys("─━┄═╌▁▂▔▀▄▃", "-"),
    **dict.fromkeys("│┃▏▎▕▌▐║╎┊", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯╔╗╚╝", "+"),
    **dict.fromkeys("█▇▆▅", "#"),
    **dict.fromkeys("‹«", "<"),
    **dict.fromkeys("›»▶", ">"),
    "▓": "%", "▒": "=", "░": ":", "╱": "/", "·": ".", "●": "o", "▲": "^", "▼": "v", "×": "x", "–": "-", "—": "-",
    "✓": "y", "✗": "n", "…": ".", "↑": "^", "↓": "v", "←": "<", "→": ">", "•": "*", "’": "'", "‘": "'", "“": '"',
    "”": '"', "⭘": "o",
}  # fmt: skip


def to_ascii(text: str) -> str:
    """The text in ASCII, as many cells wide."""
    return (
        text
        if text.isascii()
        else "".join(character if character.isascii() else _like(character) for character in text)
    )


def _like(character: str) -> str:
    if character in _LIKE:
        return _LIKE[character]
    base = unicodedata.normalize("NFKD", character)[0]
    wide = unicodedata.east_asian_width(character) in "WF"
    return (base if base.isascii() and base.isprintable() else "?") + " " * wide


class AsciiFilter(LineFilter):
    """Applied to every line that is drawn."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments with other characters."""
        return [segment._replace(text=to_ascii(segment.text)) for segment in segments]
