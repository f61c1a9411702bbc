"""Clocks of one question. Knows seconds and nothing else."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Seconds since it was made, readable at any time."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Do not count this much."""
        self._start += seconds

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start


@dataclass(slots=True)
class Clock:
    """Seconds per stage of one question, filled in as the stages end; `watch` runs from its acceptance."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    video: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0


class Timed(Generic[Item]):
    """An iterator that adds up the seconds spent waiting for its items."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        watch = Stopwatch()
        try:
            return next(self._items)
        finally:
            self.seconds += watch.seconds()
