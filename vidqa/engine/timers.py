"""Clocks of one question. Knows seconds and nothing else."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

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


class Sections:
    """Seconds that a device works for each of several stages that take turns.

    On CUDA work is only queued when a call returns, so events are recorded around it and read
    at the end; waiting in between would keep the stages from overlapping.
    """

    def __init__(self, device: str) -> None:
        self._device, self._on_cuda = device, device.startswith("cuda")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what is done inside as `name`'s."""
        watch, start = Stopwatch(), self._mark()
        yield
        if self._on_cuda:
            self._events.append((name, start, self._mark()))
        else:
            self._seconds[name] += watch.seconds()

    def _mark(self) -> Any:
        if not self._on_cuda:
            return None
        import torch

        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, name: str) -> float:
        """All of a stage's time so far; waits for the device."""
        for stage, start, end in self._events:
            end.synchronize()
            self._seconds[stage] += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds[name]
