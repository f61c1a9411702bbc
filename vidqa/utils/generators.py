"""Running a generator to its end where its steps are not passed on."""

from collections.abc import Callable, Generator
from typing import Any, TypeVar

Step = TypeVar("Step")
Result = TypeVar("Result")


def finished(steps: Generator[Step, None, Result], report: Callable[[Step], Any] = lambda step: None) -> Result:
    """Run a generator to its end; `report` gets each step. Return its result."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        report(step)
