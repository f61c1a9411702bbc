"""Timers of one question, and its stages: their events, phases of memory and time, cancellation, injected faults."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vidqa.errors import Interrupted
from vidqa.events import Event, Stage, StageProgress, StageStarted

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker
    from vidqa.models.vlm import VisionLanguageModel

Item = TypeVar("Item")
Step = TypeVar("Step")
Result = TypeVar("Result")
# Modules that loading a model imports, measured with torch 2.15 and transformers 5.23: 2,560, and bitsandbytes' own.
_MODULES, _BITSANDBYTES_MODULES = 2560, 590


class Stopwatch:
    """Seconds since it was made, readable at any time."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Subtract `seconds` from the count."""
        self._start += seconds

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._start


@dataclass(slots=True)
class Clock:
    """Seconds of each stage of one question; `watch` runs from its acceptance."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    video: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0


class TimedIterator(Generic[Item]):
    """An iterator that adds up the `seconds` spent waiting for its items."""

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


class PhaseTimer:
    """Seconds that a device works for each of several phases that take turns.

    On CUDA a call only queues work, so events are recorded around it and read at the end: waiting in between would
    keep the phases from overlapping.
    """

    def __init__(self, device: str) -> None:
        self._device, self._on_cuda = device, device.startswith("cuda")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the work queued inside towards `phase`."""
        watch, start = Stopwatch(), self._record_event()
        yield
        if self._on_cuda:
            self._events.append((phase, start, self._record_event()))
        else:
            self._seconds[phase] += watch.seconds()

    def _record_event(self) -> Any:
        if not self._on_cuda:
            return None
        import torch

        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, phase: str) -> float:
        """Return a phase's seconds so far; waits for the device."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds[phase]


def flat_mapped(
    steps: Generator[Step, None, Result], make: Callable[[Step], Iterable[Item]]
) -> Generator[Item, None, Result]:
    """Yield what `make` makes of each step of a stage; return the stage's result.

    The stage is closed at once if this one ends: an error's traceback would keep it, and its threads, alive.
    """
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield from make(step)


def ignore_phase(phase: str) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Called while a request runs: `inject_fault` (tests only) and `on_phase` with the phase's name at every unit."""

    is_cancelled: Callable[[], bool]
    inject_fault: Callable[[str], None] = ignore_phase
    on_phase: Callable[[str], None] = ignore_phase


@dataclass(frozen=True, slots=True)
class StageContext:
    """What the stages of one attempt share: memory tracker, callbacks and timer."""

    tracker: "Tracker"
    callbacks: Callbacks
    timer: PhaseTimer

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Count memory and seconds of the work inside towards a phase. Never yield to a consumer inside."""
        self.callbacks.on_phase(phase)
        with self.tracker.phase(phase), self.timer.measure(phase):
            self.callbacks.inject_fault(phase)
            yield

    def stop_if_cancelled(self, when: str) -> None:
        """Raise Interrupted if the question was cancelled."""
        if self.callbacks.is_cancelled():
            raise Interrupted(f"Stopped {when}.", "Nothing was answered yet.")

    def with_cancel_check(self, model: "VisionLanguageModel") -> "VisionLanguageModel":
        """Return the model with a check for cancellation before every layer: a chunk takes long on a CPU."""
        return model.with_cancel_check(lambda: self.stop_if_cancelled("before the first word"))

    def with_memory_samples(self, stage: Generator[Event, None, Result]) -> Generator[Event, None, Result]:
        """Yield a stage's events, its tensors counted, with samples of memory between them."""

        def sampled(event: Event) -> Iterator[Event]:
            yield event
            if sample := self.tracker.sample():
                yield sample

        return flat_mapped(self.with_tensor_count(stage), sampled)

    def with_tensor_count(self, stage: Generator[Item, None, Result]) -> Generator[Item, None, Result]:
        """Yield a stage's items; count the tensors that it makes, but not those of the consumer between items."""
        try:
            while True:
                try:
                    with self.tracker.counting():
                        item = next(stage)
                except StopIteration as finished:
                    result: Result = finished.value
                    return result
                yield item
        finally:
            stage.close()


@dataclass(slots=True)
class CountedWork:
    """Units of a stage, and those that are done; a thread that works changes `done`."""

    total: int
    done: int = 0


def starting_libraries(work: Generator[None, None, Result], *, bitsandbytes: bool) -> Generator[Event, None, Result]:
    """Yield the imported modules as the stage `libraries` while the work imports them; nothing where torch was."""
    if "torch" in sys.modules:
        return (yield from flat_mapped(work, lambda _: ()))
    before, total = len(sys.modules), _MODULES + _BITSANDBYTES_MODULES * bitsandbytes
    return (yield from stage_events("libraries", work, total, lambda: len(sys.modules) - before))


def stage_events(
    stage: Stage, work: Generator[None, None, Result], total: int, count: Callable[[], int]
) -> Generator[Event, None, Result]:
    """Yield a stage's begin, the count of its units while the work goes on, and its end."""
    yield StageStarted(stage, total)
    result = yield from flat_mapped(work, lambda _: (StageProgress(stage, min(count(), total - 1), total),))
    yield StageProgress(stage, total, total)
    return result


def loading_weights(
    work: Generator[None, None, Result], progress: CountedWork, tracker: "Tracker"
) -> Generator[Event, None, Result]:
    """Yield the loaded bytes and samples of memory while the work goes on."""

    def shown(_: None) -> Iterator[Event]:
        yield StageProgress("load", progress.done, progress.total)
        if sample := tracker.sample():
            yield sample

    return flat_mapped(work, shown)
