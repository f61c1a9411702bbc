"""What lies one step beside a plan: a little better, and whether it would fit; a little cheaper.

Asks the planner with narrower or wider requests. Arithmetic only.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from vidqa.memory.limits import reason
from vidqa.memory.planner import finish_plan
from vidqa.memory.search import Space, Task, fit, search_space
from vidqa.types import Draft, Plan

Kind = Literal["better", "cheaper"]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Alternative:
    """A neighbour of a plan, and the limit that holds it back, if one does."""

    kind: Kind
    plan: Plan
    held_back_by: str | None


def alternatives(task: Task, plan: Plan) -> tuple[Alternative, ...]:
    """One step better and one step cheaper, where there is such a step."""
    space = search_space(task)
    steps: tuple[tuple[Kind, Draft | None], ...] = (
        ("better", _step(space, plan.draft, 1)),
        ("cheaper", _step(space, plan.draft, -1)),
    )
    return tuple(_alternative(task, space, kind, draft) for kind, draft in steps if draft is not None)


def _alternative(task: Task, space: Space, kind: Kind, draft: Draft) -> Alternative:
    fitting = fit(task, space, draft)
    held_back = None if fitting else reason(task, space, draft)
    return Alternative(kind, finish_plan(task, space, fitting or draft), held_back)


def _step(space: Space, draft: Draft, direction: int) -> Draft | None:
    """More frames at the same size, else larger frames; or fewer frames, else smaller ones."""
    count = _neighbour(space.counts, draft.frames, direction)
    if count is not None:
        return replace(draft, frames=count)
    size = _neighbour(space.sizes, (draft.height, draft.width), direction)
    return None if size is None else replace(draft, height=size[0], width=size[1])


def _neighbour(values: tuple[Value, ...], value: Value, direction: int) -> Value | None:
    place = values.index(value) + direction if value in values else -1
    return values[place] if 0 <= place < len(values) else None
