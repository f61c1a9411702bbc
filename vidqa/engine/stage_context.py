"""What surrounds every stage: its phase of memory and of time, whether to stop, and planted faults.

Knows that stages take turns; knows nothing of what they do.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from vidqa.devices.memory_tracker import Tracker
from vidqa.engine.timers import Sections
from vidqa.errors import Interrupted
from vidqa.events import Event
from vidqa.models.vlm import VisionLanguageModel

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an attempt asks and tells around it: whether to stop, (in tests) whether a phase fails now, which it is."""

    cancelled: Callable[[], bool]
    fault: Callable[[str], None]
    enter: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StageContext:
    """The surroundings of one attempt's stages."""

    tracker: Tracker
    hooks: Hooks
    sections: Sections

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Count what is done inside, its memory and its seconds, to a phase. Never yields to a consumer inside."""
        self.hooks.enter(phase)
        with self.tracker.phase(phase), self.sections.of(phase):
            self.hooks.fault(phase)
            yield

    def stop_if_cancelled(self, when: str) -> None:
        """Raise Interrupted where the user asked to stop."""
        if self.hooks.cancelled():
            raise Interrupted(f"Stopped {when}.", "Nothing was answered yet.")

    def heeded_by(self, model: VisionLanguageModel) -> VisionLanguageModel:
        """The model, looking at every layer whether to stop: a chunk on a CPU takes long."""
        return model.with_cancel_check(lambda: self.stop_if_cancelled("before the first word"))

    def sampled(self, stage: Generator[Event, None, Result]) -> Generator[Event, None, Result]:
        """A stage's events, with samples of memory between them."""
        counted = self.counted(stage)
        try:
            while True:
                try:
                    event = next(counted)
                except StopIteration as finished:
                    result: Result = finished.value
                    return result
                yield event
                if sample := self.tracker.sample():
                    yield sample
        finally:
            counted.close()  # at once: an error's traceback would keep it, and its thread, alive

    def counted(self, stage: Generator[Item, None, Result]) -> Generator[Item, None, Result]:
        """What a stage yields, with its tensors counted; they are not counted while a consumer has its turn."""
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
