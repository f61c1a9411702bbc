"""Times in a text (`0:05`, `1:02:03.5`, `0:05 - 0:10`), and the ranges of code in Markdown."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

Span = tuple[int, int]

# A time is no part of a longer number, word, date, path, time zone or query.
_CLOCK = r"(?:\d{1,2}:[0-5]\d|\d{1,3}):[0-5]\d(?:[.,]\d{1,3})?"
_BEFORE, _AFTER = r"(?<![\w:./=+-])", r"(?!\w|:\d|[.,]\d+(?![\d:]))"
_LINK = r"\s?(?:-{1,2}|[–—−~]|→)\s?|\s+(?:to|until|till|through|and)\s+"
_MOMENT = re.compile(
    rf"{_BEFORE}(?P<first>{_CLOCK}){_AFTER}(?:(?P<link>{_LINK})(?P<last>{_CLOCK}){_AFTER})?"
    r"(?P<other>\s*(?:[ap]\.?m\b|o['’]clock|(?:aspect|ratio)\b))?",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"\bbetween\s+\W{0,3}$", re.IGNORECASE)
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]{1,15}://|\bwww\.)\S+", re.IGNORECASE)
_OPENING = re.compile(r" {0,3}(`{3,}(?![^\n]*`)|~{3,})")
_CLOSING = re.compile(r" {0,3}(`{3,}|~{3,})\s*$")
_TICKS = re.compile(r"`+")


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A time in a text: characters `start` to `end`, `seconds` from the video's first frame.

    `until_seconds` is the end of a span such as `0:05 - 0:10`, None for a single time.
    """

    start: int
    end: int
    seconds: float
    until_seconds: float | None = None


def find_timestamps(text: str) -> tuple[Timestamp, ...]:
    """Return the times of a text in order: `m:ss`, `mm:ss.s` or `h:mm:ss`, and spans of two of them.

    Skips code, URLs, ratios (`16:9`, `16:10 ratio`) and times of day (`3:45 pm`).
    """
    characters = list(text)
    for start, end in (*code_spans(text), *(url.span() for url in _URL.finditer(text))):
        characters[start:end] = "\0" * (end - start)
    visible = "".join(characters)
    matches = (match for match in _MOMENT.finditer(visible) if not match["other"])
    return tuple(moment for match in matches for moment in _read(visible, match))


def _read(text: str, match: re.Match[str]) -> Iterator[Timestamp]:
    """Yield one span, or two single times if the words between them make no span."""
    first, last = _seconds(match["first"]), _seconds(match["last"]) if match["last"] else None
    before = text[max(match.start() - 20, 0) : match.start()]
    listed = match["link"] and match["link"].strip().lower() == "and" and not _BETWEEN.search(before)
    if last is None or (last > first and not listed):
        yield Timestamp(match.start(), match.end(), first, last)
        return
    yield Timestamp(*match.span("first"), first)
    yield Timestamp(*match.span("last"), last)


def _seconds(clock: str) -> float:
    seconds = 0.0
    for part in clock.replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def code_spans(text: str) -> tuple[Span, ...]:
    """Return the ranges of code in Markdown, ascending: fenced blocks (an open one runs to the end) and `inline` spans.

    Fences and spans close as in CommonMark 0.31, sections 4.5 and 6.1.
    """
    found: list[Span] = []
    for block in _blocks(text):
        found += [(block.start, block.end)] if block.fence else _inline(text, block.start, block.end)
    return tuple(found)


def open_fence(text: str) -> str:
    """Return the mark that closes an open fenced block at the end of a text; empty if none is open."""
    return next((block.fence for block in _blocks(text) if block.fence and not block.closed), "")


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph (no `fence`) or a fenced block: characters `start` to `end`."""

    start: int
    end: int
    fence: str = ""
    closed: bool = True


def _blocks(text: str) -> Iterator[_Block]:
    fence, start, end = "", 0, 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        mark = (_CLOSING if fence else _OPENING).match(line)
        if fence and mark and mark[1].startswith(fence):
            yield _Block(start, end, fence)
            fence, start = "", end
        elif not fence and (mark or not line.strip()):
            yield _Block(start, end - len(line))
            fence, start = mark[1] if mark else "", end - len(line)
    yield _Block(start, end, fence, closed=not fence)


def _inline(text: str, start: int, end: int) -> list[Span]:
    """Pair each run of backticks with the next of the same length, in linear time."""
    runs = [run.span() for run in _TICKS.finditer(text, start, end)]
    places: dict[int, list[int]] = {}
    for number, (left, right) in enumerate(runs):
        places.setdefault(right - left, []).append(number)
    found, number = [], 0
    while number < len(runs):
        left, right = runs[number]
        same = places[right - left]
        later = bisect_right(same, number)
        if later < len(same):
            number = same[later]
            found.append((left, runs[number][1]))
        number += 1
    return found
