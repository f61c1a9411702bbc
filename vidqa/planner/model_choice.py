"""The choice among models: the best plan of several, and the table of plans by GPU and model."""

from collections.abc import Sequence
from dataclasses import replace

from vidqa.config import EngineConfig
from vidqa.models.registry import Checkpoint
from vidqa.planner.placement import weight_choices
from vidqa.planner.planner import Forecast, try_plan
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.types import Device, Plan, Request, VideoInfo


def forecast(problems: Sequence[PlanningProblem]) -> Forecast:
    """Return the plan with the highest score; if none fits, why not for the first problem.

    The limits of a plan that was chosen among several models say why.
    """
    results = [try_plan(problem) for problem in problems]
    best = max(results, key=lambda one: one.plan.score if one.plan else float("-inf"))
    if best.plan is None or len(problems) == 1:
        return best
    return replace(best, plan=replace(best.plan, limits=(_why_best(best.plan, results), *best.plan.limits)))


def _why_best(best: Plan, results: Sequence[Forecast]) -> str:
    plans = [one.plan for one in results if one.plan and one.plan is not best]
    lines = [f"{best.model} in {best.run_config.weights} is expected to answer best here ({best.score:.1f} points)"]
    lines += [f"{other.model} in {other.run_config.weights}: {other.score:.1f}" for other in plans]
    return "; ".join([*lines, *(str(one.refusal.what) for one in results if one.refusal)])


def plan_best(problems: Sequence[PlanningProblem]) -> tuple[int, Plan]:
    """Return the plan with the highest score and the index of its problem; raise the first DoesNotFit if none fits."""
    best = forecast(problems)
    return problems.index(best.task), best.required_plan()


def gpu_model_matrix(
    checkpoints: Sequence[Checkpoint],
    gpus: Sequence[Device],
    precisions: Sequence[str],
    video: VideoInfo,
    request: Request,
    config: EngineConfig,
) -> list[tuple[Device, list[tuple[str, str, Plan | None]]]]:
    """Return for every GPU the plan of each (model, weights); None if it does not fit or the GPU cannot run it."""

    def cell(checkpoint: Checkpoint, weights: str, device: Device) -> Plan | None:
        stored, choices = checkpoint.spec.stored, weight_choices(device, checkpoint.spec)
        precision = choices[0] if weights == "native" else weights
        if precision not in choices or (stored and stored.weights != precision):
            return None
        chosen = replace(config, weights=precision)
        return try_plan(*planning_problems([checkpoint], video, request, chosen, device)).plan

    return [
        (device, [(one.name, weights, cell(one, weights, device)) for one in checkpoints for weights in precisions])
        for device in gpus
    ]
