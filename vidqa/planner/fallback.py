"""After an allocation failed: the same request with less, one step at a time.

First what costs no quality, then the KV cache's precision, then half of what is seen; the
loaded weights stay unless loading them was what failed. What the user set is kept.
Arithmetic only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vidqa.errors import DoesNotFit
from vidqa.planner.placement import placements, weight_choices
from vidqa.planner.planner import plan_video
from vidqa.planner.search import PlanningProblem
from vidqa.types import Plan
from vidqa.utils.units import format_bytes

MAX_STEPS = 3


@dataclass(frozen=True, slots=True)
class Lowered:
    """A narrower task, its plan, and what was given up, in words."""

    task: PlanningProblem
    plan: Plan
    step: str


def lower(task: PlanningProblem, plan: Plan, phase: str) -> Lowered:
    """The next smaller plan after `phase` ran out of memory; raises DoesNotFit with the numbers when there is none.

    `task` carries the memory that is free now. A step counts only if that phase takes less by it.
    """
    for step, narrower in _steps(task, plan, phase):
        try:
            smaller = plan_video(narrower)
        except DoesNotFit:
            continue
        if smaller.phase_bytes[phase] < plan.phase_bytes[phase]:
            return Lowered(narrower, smaller, step)
    raise gave_up(task, plan, phase)


def gave_up(task: PlanningProblem, plan: Plan, phase: str) -> DoesNotFit:
    """The end of all steps, with its numbers."""
    run_config = plan.run_config
    return DoesNotFit(
        f"The {phase} phase ran out of memory: {format_bytes(plan.predicted_peak_bytes)} were planned for "
        f"{run_config.frames} frames of {run_config.width}x{run_config.height} in {run_config.weights}, "
        f"{format_bytes(task.budget_bytes)} "
        f"are there on {task.device.name}, and no smaller plan is left.",
        "Close other programs on the device, ask for fewer --frames or a smaller --size, or use a smaller model.",
    )


def _steps(task: PlanningProblem, plan: Plan, phase: str) -> Iterator[tuple[str, PlanningProblem]]:
    """Narrower tasks in the order of what they cost."""
    config, run_config = task.config, plan.run_config
    if phase == "load":
        yield from _lighter_loads(task, plan)
        return
    off_device = task.device.kind == "cuda"
    place = replace(run_config.placement, vision_offloaded=off_device)
    lean = replace(
        task, config=replace(config, placement=place), chunks=task.chunks[-1:], pinned_weights=run_config.weights
    )
    moved = ", vision tower off the device" if off_device and place != run_config.placement else ""
    yield f"smallest chunks{moved}", lean
    if config.kv is None:
        small = replace(lean, config=replace(lean.config, kv="int8"))
        yield "int8 KV cache", small
        lean = small if phase != "vision" else lean
    slice_tokens = task.spec.slice_tokens(run_config.height, run_config.width)
    if phase == "vision":  # a group is what is too large, not the number of frames
        yield "half of the pixels", replace(lean, most_slice_tokens=slice_tokens // 2)
        yield "a quarter of the pixels", replace(lean, most_slice_tokens=slice_tokens // 4)
    yield "half of the visual tokens", replace(lean, most_visual_tokens=plan.visual_tokens // 2)


def _lighter_loads(task: PlanningProblem, plan: Plan) -> Iterator[tuple[str, PlanningProblem]]:
    """The embedding table on the host, then smaller weights."""
    run_config = plan.run_config
    if task.spec.stored is not None:
        return  # it is as it is
    if task.config.placement is None:
        for place in placements(task.spec, run_config.weights, task.device):
            if place.embedding_on_host and not run_config.placement.embedding_on_host:
                config = replace(task.config, placement=place)
                yield "embedding table in host memory", replace(task, config=config, pinned_weights=run_config.weights)
                break
    if task.config.weights is None:
        choices = weight_choices(task.device)
        for weights in choices[choices.index(run_config.weights) + 1 :]:
            yield f"{weights} weights", replace(task, pinned_weights=weights)
