"""Escaping of untrusted text for a terminal.

Answers, file names and metadata may have escape codes (clear the screen, write the clipboard) or characters that
reorder a line.
"""

import json
import unicodedata
from itertools import accumulate
from typing import Any

_WHITESPACE = frozenset("\n\t")
# Format characters (Cf) that legitimate text needs: the joiners of emoji and Indic scripts.
_JOINERS = frozenset("\u200c\u200d")


def safe_text(text: str) -> str:
    """Replace every control and bidirectional-override character by its escape sequence.

    Works character by character, so that text may be escaped in pieces.
    """
    if text.isprintable():  # the usual case, many times faster
        return text
    return "".join(character if _is_plain(character) else _visible(character) for character in text)


def safe_line(text: str) -> str:
    """Apply `safe_text` and escape line ends and tabs, for a value on one line such as a file name."""
    return safe_text(text).replace("\n", "\\n").replace("\t", "\\t")


def fitting(text: str, columns: int) -> str:
    """Cut a safe line to a number of terminal columns; East Asian characters take two, combining marks none."""
    if len(text) <= columns and text.isascii():
        return text
    ends = accumulate(_columns(character) for character in text)
    return "".join(character for character, end in zip(text, ends, strict=True) if end <= columns)


def safe_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON with control characters escaped; it parses to the same value."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(c if safe_text(c) == c else json.dumps(c)[1:-1] for c in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or character in _JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _is_plain(character: str) -> bool:
    if character in _WHITESPACE or character in _JOINERS:
        return True
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _visible(character: str) -> str:
    return character.encode("unicode_escape", errors="backslashreplace").decode("ascii")
