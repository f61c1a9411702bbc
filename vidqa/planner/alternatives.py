"""Neighbours of a plan: one step better and whether it would fit, and one step cheaper. Arithmetic only."""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from vidqa.planner.explain import limiting_reason
from vidqa.planner.planner import finish_plan
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.search import SearchSpace, fit, search_space
from vidqa.types import Plan, RunConfig

Kind = Literal["better", "cheaper"]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Alternative:
    """A neighbour of a plan, and the limit that holds it back, if one does."""

    kind: Kind
    plan: Plan
    held_back_by: str | None


def alternatives(problem: PlanningProblem, plan: Plan) -> tuple[Alternative, ...]:
    """Return one step better and one step cheaper, where there is such a step."""
    space, found = search_space(problem), []
    directions: tuple[tuple[Kind, int], ...] = (("better", 1), ("cheaper", -1))
    for kind, direction in directions:
        if (step := _step(space, plan.run_config, direction)) is not None:
            fitting = fit(problem, space, step)
            reason = None if fitting else limiting_reason(problem, space, step)
            found.append(Alternative(kind, finish_plan(problem, space, fitting or step), reason))
    return tuple(found)


def _step(space: SearchSpace, run_config: RunConfig, direction: int) -> RunConfig | None:
    """Return more frames at the same size, else larger frames; or fewer frames, else smaller ones. All are read."""
    run_config = replace(run_config, candidate_frames=0)
    if (count := _neighbour(space.counts, run_config.frames, direction)) is not None:
        return space.with_frames(run_config, count)
    size = _neighbour(space.sizes, (run_config.height, run_config.width), direction)
    return None if size is None else replace(run_config, height=size[0], width=size[1])


def _neighbour(values: tuple[Value, ...], value: Value, direction: int) -> Value | None:
    index = values.index(value) + direction if value in values else -1
    return values[index] if 0 <= index < len(values) else None
