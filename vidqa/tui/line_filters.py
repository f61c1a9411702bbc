"""Line filters: every drawn line passes through them on its way to the terminal."""

import unicodedata

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from vidqa.utils.safe_text import safe_text

_ASCII = {
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


class SanitizeFilter(LineFilter):
    """Remove control and reordering characters, which have no width.

    Widgets escape untrusted text with safe_text. This filter covers text that is drawn unescaped, such as the text in
    an editor.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments without such characters; control segments, which carry pictures, stay."""
        return [
            segment
            if segment.control or segment.text.isprintable()
            else segment._replace(text=_printable(segment.text))
            for segment in segments
        ]


class AsciiFilter(LineFilter):
    """Replace every other character by an ASCII one, for terminals without Unicode."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments in ASCII."""
        return [segment._replace(text=to_ascii(segment.text)) for segment in segments]


def to_ascii(text: str) -> str:
    """Return the text in ASCII; it takes the same number of cells."""
    return text if text.isascii() else "".join(char if char.isascii() else _ascii(char) for char in text)


def _ascii(character: str) -> str:
    if character in _ASCII:
        return _ASCII[character]
    base = unicodedata.normalize("NFKD", character)[0]
    wide = unicodedata.east_asian_width(character) in "WF"
    return (base if base.isascii() and base.isprintable() else "?") + " " * wide


def _printable(text: str) -> str:
    return "".join(character for character in text if character not in "\n\t" and safe_text(character) == character)
