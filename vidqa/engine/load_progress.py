"""Progress of what comes before the first frame: libraries that start, a speed that is measured, weights that load."""

import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vidqa.engine.timers import flat_mapped
from vidqa.events import Event, Stage, StageProgress, StageStarted

if TYPE_CHECKING:
    from vidqa.devices.memory_tracker import Tracker

Result = TypeVar("Result")

# Modules that loading a model imports, measured with torch 2.15 and transformers 5.23: 2,560, and bitsandbytes' own.
_MODULES, _BITSANDBYTES_MODULES = 2560, 590


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
