"""The text of subtitles: markup, drawings and control characters out, repeated lines of rolling captions once.

FFmpeg's decoders give every format as events of Advanced SubStation Alpha (ASS); pure functions.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vidqa.utils.cues import Cue

MAX_CUE_CHARACTERS = 500
_FIELDS = 8  # of an event before its text: ReadOrder, Layer, Style, Name, three margins, Effect
_OVERRIDE = re.compile(r"\{([^{}]*)\}")
_DRAWING = re.compile(r"\\p(\d+)")
_BREAK = re.compile(r"\\[Nn]|\r\n?|\n")
_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>")
_DROPPED = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))
_JOINERS = frozenset("\u200c\u200d")  # of emoji and Indic scripts
_GAP_SECONDS = 0.1  # captions that follow within this time can repeat each other


@dataclass(frozen=True, slots=True)
class ShownLines:
    """The lines that are on the screen from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


def event_lines(event: str) -> tuple[str, ...]:
    """Return the plain lines of an ASS event as FFmpeg's decoders give it; none if it only draws."""
    parts = event.split(",", _FIELDS)
    return plain_lines(parts[-1] if len(parts) > _FIELDS else event)


def plain_lines(text: str) -> tuple[str, ...]:
    """Return the lines of a text without override codes, drawings, tags and control characters."""
    pieces, drawing = _OVERRIDE.split(text), False
    shown = []
    for place, piece in enumerate(pieces):
        if place % 2:  # what the braces hold
            for scale in _DRAWING.findall(piece):
                drawing = scale.strip("0") != ""
        elif not drawing:
            shown.append(piece)
    lines = (_plain(line) for line in _BREAK.split("".join(shown)))
    return tuple(line for line in lines if line)


def _plain(line: str) -> str:
    text = html.unescape(_TAG.sub("", line.replace("\\h", " ")))
    kept = "".join(_kept(character) for character in text)
    return " ".join(kept.split())


def _kept(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return "" if unicodedata.category(character) in _DROPPED and not character.isspace() else " "


def joined_cues(shown: Iterable[ShownLines]) -> tuple[Cue, ...]:
    """Return what is said, in order and once: captions that roll up or grow repeat what was shown just before."""
    cues: list[Cue] = []
    last = ShownLines(float("-inf"), float("-inf"), ())
    for one in sorted(shown, key=lambda lines: (lines.start, lines.end)):
        follows = bool(cues) and one.start <= last.end + _GAP_SECONDS
        fresh = one.lines[_common(last.lines, one.lines) :] if follows else one.lines
        if follows and not fresh:
            cues[-1] = replace(cues[-1], end_seconds=max(cues[-1].end_seconds, one.end))
        elif follows and fresh == one.lines and (rest := _growth(last.lines, one.lines)) is not None:
            end = max(cues[-1].end_seconds, one.end)
            cues[-1] = Cue(cues[-1].start_seconds, end, _cut(f"{cues[-1].text}{rest}"))
        elif fresh:
            cues.append(Cue(one.start, max(one.start, one.end), _cut(" ".join(fresh))))
        last = ShownLines(one.start, max(last.end, one.end), one.lines)
    return tuple(cues)


def _common(before: Sequence[str], after: Sequence[str]) -> int:
    """Return how many last lines of one caption are the first lines of the next."""
    most = min(len(before), len(after))
    return next((count for count in range(most, 0, -1) if before[-count:] == after[:count]), 0)


def _growth(before: Sequence[str], after: Sequence[str]) -> str | None:
    """Return what a caption adds to the one before, if it begins with it."""
    old, new = " ".join(before), " ".join(after)
    return new[len(old) :] if old and new.startswith(old) else None


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CUE_CHARACTERS else f"{text[: MAX_CUE_CHARACTERS - 1].rstrip()}…"
