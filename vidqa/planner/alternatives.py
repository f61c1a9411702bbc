"""What lies one step beside a plan: a little better, and whether it would fit; a little cheaper.

Asks the planner with narrower or wider requests. Arithmetic only.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from vidqa.planner.explain import reason
from vidqa.planner.planner import finish_plan
from vidqa.planner.search import PlanningProblem, SearchSpace, fit, search_space
from vidqa.types import Plan, RunConfig

Kind = Literal["better", "cheaper"]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Alternative:
    """A neighbour of a plan, and the limit that holds it back, if one does."""

    kind: Kind
    plan: Plan
    held_back_by: str | None


def alternatives(task: PlanningProblem, plan: Plan) -> tuple[Alternative, ...]:
    """One step better and one step cheaper, where there is such a step."""
    space = search_space(task)
    steps: tuple[tuple[Kind, RunConfig | None], ...] = (
        ("better", _step(space, plan.run_config, 1)),
        ("cheaper", _step(space, plan.run_config, -1)),
    )
    return tuple(_alternative(task, space, kind, run_config) for kind, run_config in steps if run_config is not None)


def _alternative(task: PlanningProblem, space: SearchSpace, kind: Kind, run_config: RunConfig) -> Alternative:
    fitting = fit(task, space, run_config)
    held_back = None if fitting else reason(task, space, run_config)
    return Alternative(kind, finish_plan(task, space, fitting or run_config), held_back)


def _step(space: SearchSpace, run_config: RunConfig, direction: int) -> RunConfig | None:
    """More frames at the same size, else larger frames; or fewer frames, else smaller ones."""
    count = _neighbour(space.counts, run_config.frames, direction)
    if count is not None:
        return replace(run_config, frames=count)
    size = _neighbour(space.sizes, (run_config.height, run_config.width), direction)
    return None if size is None else replace(run_config, height=size[0], width=size[1])


def _neighbour(values: tuple[Value, ...], value: Value, direction: int) -> Value | None:
    place = values.index(value) + direction if value in values else -1
    return values[place] if 0 <= place < len(values) else None
