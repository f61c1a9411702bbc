"""Times that an answer names (`0:05`, `1:02:03.5`, `0:05 - 0:10`), and where code stands in Markdown.

Knows characters; whether a video has such a moment is the caller's to know.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

Span = tuple[int, int]

# Not inside a longer number, word, date, path, zone or query: the signs before and after say so.
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
    """A time named in a text: characters `start` to `end`, `seconds` from the video's first frame.

    `until_seconds` is the end of a span such as `0:05 - 0:10`, None for a single time.
    """

    start: int
    end: int
    seconds: float
    until_seconds: float | None = None


def find_timestamps(text: str) -> tuple[Timestamp, ...]:
    """The times that a text names, in order; `m:ss`, `mm:ss.s` or `h:mm:ss`, and spans of two of them.

    Left out is what stands in code or in a URL, ratios (`16:9` has one digit; `16:10 ratio` says so), and times
    of day (`3:45 pm`).
    """
    hidden = _Spans([*code_spans(text), *(found.span() for found in _URL.finditer(text))])
    matches = (match for match in _MOMENT.finditer(text) if not match["other"] and match.start() not in hidden)
    return tuple(moment for match in matches for moment in _read(text, match))


def _read(text: str, match: re.Match[str]) -> Iterator[Timestamp]:
    """One span, or up to two single times where the words between do not make one."""
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
    """Where code stands in Markdown: fenced blocks (an open one runs to the end) and `inline` spans.

    Character offsets, ascending. Fences and spans close as CommonMark 0.31 sections 4.5 and 6.1 say.
    """
    found: list[Span] = []
    for block in _blocks(text):
        found += [(block.start, block.end)] if block.fence else _inline(text, block.start, block.end)
    return tuple(found)


def open_fence(text: str) -> str:
    """The mark that would close the fenced block which a text leaves open; empty where none is."""
    return next((block.fence for block in _blocks(text) if block.fence and not block.closed), "")


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph (no `fence`) or a fenced block: characters `start` to `end`."""

    start: int
    end: int
    fence: str = ""
    closed: bool = True


def _blocks(text: str) -> Iterator[_Block]:
    fence, begun, here = "", 0, 0
    for line in text.splitlines(keepends=True):
        here += len(line)
        mark = (_CLOSING if fence else _OPENING).match(line)
        if fence and mark and mark[1].startswith(fence):
            yield _Block(begun, here, fence)
            fence, begun = "", here
        elif not fence and (mark or not line.strip()):
            yield _Block(begun, here - len(line))
            fence, begun = mark[1] if mark else "", here - len(line)
    yield _Block(begun, here, fence, closed=not fence)


def _inline(text: str, start: int, end: int) -> list[Span]:
    """Runs of backticks paired with the next run of the same length; linear in the runs of each length."""
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


class _Spans:
    """Answers whether a character lies in one of some spans, which may overlap."""

    def __init__(self, spans: list[Span]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(spans):
            self._starts.append(start)
            self._ends.append(max(end, self._ends[-1] if self._ends else 0))

    def __contains__(self, place: int) -> bool:
        index = bisect_right(self._starts, place) - 1
        return index >= 0 and place < self._ends[index]
