"""The choice among models: the best plan of several, and the table of plans by GPU and model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vidqa.config import EngineConfig
from vidqa.errors import DoesNotFit
from vidqa.models.registry import Checkpoint
from vidqa.planner.placement import weight_choices
from vidqa.planner.planner import Refused, try_plan
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.types import Device, Plan, Request, VideoInfo


@dataclass(frozen=True, slots=True)
class Forecast:
    """The plan that would run now, or why nothing fits (`refusal`, with `wanted` and `nearest` as in `Refused`).

    `task` is the chosen model's planning problem, or the first one where none fits.
    """

    task: PlanningProblem
    plan: Plan | None = None
    refusal: DoesNotFit | None = None
    wanted: Plan | None = None
    nearest: Plan | None = None


def forecast(problems: Sequence[PlanningProblem]) -> Forecast:
    """Return the plan with the highest score, or why none fits. Opens no file and loads nothing."""
    results = [try_plan(problem) for problem in problems]
    plans = [(number, plan) for number, plan in enumerate(results) if isinstance(plan, Plan)]
    refused = [result for result in results if isinstance(result, Refused)]
    if not plans:
        first = refused[0]
        return Forecast(problems[0], None, first.error, first.wanted, first.nearest)
    number, plan = max(plans, key=lambda pair: pair[1].score)
    if len(problems) > 1:
        plan = replace(plan, limits=(_why_best(plan, [other for _, other in plans], refused), *plan.limits))
    return Forecast(problems[number], plan)


def _why_best(best: Plan, plans: Sequence[Plan], refused: Sequence[Refused]) -> str:
    lines = [f"{best.model} in {best.run_config.weights} is expected to answer best here ({best.score:.1f} points)"]
    lines += [f"{other.model} in {other.run_config.weights}: {other.score:.1f}" for other in plans if other is not best]
    return "; ".join([*lines, *(str(one.error.what) for one in refused)])


def plan_best(problems: Sequence[PlanningProblem]) -> tuple[int, Plan]:
    """Return the plan with the highest score and the place of its problem; raise the first DoesNotFit if none fits.

    The limits of a plan that was chosen among several models say why.
    """
    best = forecast(problems)
    if best.plan is None:
        assert best.refusal is not None
        raise best.refusal
    return problems.index(best.task), best.plan


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
        stored, choices = checkpoint.spec.stored, weight_choices(device)
        precision = choices[0] if weights == "native" else weights
        if precision not in choices or (stored and stored.weights != precision):
            return None
        chosen = replace(config, weights=precision)
        result = try_plan(*planning_problems([checkpoint], video, request, chosen, device))
        return result if isinstance(result, Plan) else None

    return [
        (device, [(one.name, weights, cell(one, weights, device)) for one in checkpoints for weights in precisions])
        for device in gpus
    ]
