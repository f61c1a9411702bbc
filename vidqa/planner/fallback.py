"""Smaller plans after an allocation failed, one step at a time. Arithmetic only.

First what costs no quality, then the KV cache's precision, then half of the visual tokens. Loaded weights stay unless
loading them was what failed. The user's settings are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vidqa.errors import DoesNotFit
from vidqa.planner.placement import placements, weight_choices
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import PlanningProblem
from vidqa.types import Plan
from vidqa.utils.units import format_bytes

MAX_STEPS = 3


@dataclass(frozen=True, slots=True)
class Lowered:
    """A narrower planning problem, its plan, and a text that says what was given up."""

    problem: PlanningProblem
    plan: Plan
    step: str


def lower(problem: PlanningProblem, plan: Plan, phase: str) -> Lowered:
    """Return the next smaller plan after `phase` ran out of memory; raise DoesNotFit if there is none.

    The problem's budget is the memory that is free now. A step counts only if that phase takes less memory by it.
    """
    for step, narrower in _steps(problem, plan, phase):
        try:
            smaller = plan_video(narrower)
        except DoesNotFit:
            continue
        if smaller.phase_bytes[phase] < plan.phase_bytes[phase]:
            return Lowered(narrower, smaller, step)
    raise gave_up(problem, plan, phase)


def gave_up(problem: PlanningProblem, plan: Plan, phase: str) -> DoesNotFit:
    """Return the error for a phase that ran out of memory when no smaller plan is left."""
    run_config = plan.run_config
    return DoesNotFit(
        f"The {phase} phase ran out of memory: {format_bytes(plan.predicted_peak_bytes)} were planned for "
        f"{run_config.frames} frames of {run_config.width}x{run_config.height} in {run_config.weights}, "
        f"{format_bytes(problem.budget_bytes)} "
        f"are there on {problem.device.name}, and no smaller plan is left.",
        "Close other programs on the device, ask for fewer --frames or a smaller --size, or use a smaller model.",
    )


def _steps(problem: PlanningProblem, plan: Plan, phase: str) -> Iterator[tuple[str, PlanningProblem]]:
    """Yield narrower problems, those that cost least quality first."""
    config, run_config = problem.config, plan.run_config
    if phase == "load":
        yield from _lighter_loads(problem, plan)
        return
    can_offload = problem.device.kind == "cuda"
    place = replace(run_config.placement, vision_offloaded=can_offload)
    lean = replace(
        problem, config=replace(config, placement=place), chunks=problem.chunks[-1:], pinned_weights=run_config.weights
    )
    moved = ", vision tower off the device" if can_offload and place != run_config.placement else ""
    yield f"smallest chunks{moved}", lean
    if config.kv is None:
        small = replace(lean, config=replace(lean.config, kv="int8"))
        yield "int8 KV cache", small
        lean = small if phase != "vision" else lean
    slice_tokens = problem.spec.slice_tokens(run_config.height, run_config.width)
    if phase == "vision":  # a group of slices is too large, whatever the number of frames
        yield "half of the pixels", replace(lean, most_slice_tokens=slice_tokens // 2)
        yield "a quarter of the pixels", replace(lean, most_slice_tokens=slice_tokens // 4)
    yield "half of the visual tokens", replace(lean, most_visual_tokens=plan.visual_tokens // 2)


def _lighter_loads(problem: PlanningProblem, plan: Plan) -> Iterator[tuple[str, PlanningProblem]]:
    """Yield problems with the embedding table on the host, then with smaller weights; none for stored quantization."""
    weights = plan.run_config.weights
    if problem.spec.stored is not None:
        return
    if problem.config.placement is None and not plan.run_config.placement.embedding_on_host:
        places = (one for one in placements(problem.spec, weights, problem.device) if one.embedding_on_host)
        if (place := next(places, None)) is not None:
            config = replace(problem.config, placement=place)
            yield "embedding table in host memory", replace(problem, config=config, pinned_weights=weights)
    if problem.config.weights is None:
        choices = weight_choices(problem.device, problem.spec)
        for smaller in choices[choices.index(weights) + 1 :]:
            yield f"{smaller} weights", replace(problem, pinned_weights=smaller)
