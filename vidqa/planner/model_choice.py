"""The choice among models: the best plan of several, and the table of plans by GPU and model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vidqa.config import EngineConfig
from vidqa.devices.gpu_catalog import as_device, find_gpu
from vidqa.errors import DoesNotFit
from vidqa.messages import base_name
from vidqa.models.checkpoint import download_bytes
from vidqa.models.family import family_of
from vidqa.models.registry import (
    Checkpoint,
    missing_checkpoints,
    released,
    runnable_checkpoints,
    runnable_models,
    short_name,
    short_names,
)
from vidqa.models.spec import ModelSpec
from vidqa.planner.placement import weight_choices
from vidqa.planner.planner import Forecast, try_plan
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.planner.quality import interpolate
from vidqa.planner.weight_memory import parameters
from vidqa.types import Device, Plan, Request, VideoInfo
from vidqa.utils.units import format_bytes

_FPS, _SECONDS = 30, 60  # of a typical video
_SAME_SIZE = 0.1  # parameters that a published model and a released checkpoint may differ by
_ANY_CARD = "rtx4090"  # a least budget hardly depends on the card


def forecast(problems: Sequence[PlanningProblem]) -> Forecast:
    """Return the plan with the highest score; if none fits, why not for the first problem.

    The limits of a plan that was chosen among several models say why.
    """
    return _best(problems)[1]


def _best(problems: Sequence[PlanningProblem]) -> tuple[int, Forecast]:
    """Return the best forecast and the place of its problem."""
    results = [try_plan(problem) for problem in problems]
    place = max(range(len(results)), key=lambda one: plan.score if (plan := results[one].plan) else float("-inf"))
    best = results[place]
    if best.plan is None:
        return place, _with_another_model(best)
    if len(problems) == 1:
        return place, best
    limits = (_why_best(best.plan, results), *best.plan.limits)
    return place, replace(best, plan=replace(best.plan, limits=limits))


def _with_another_model(refused: Forecast) -> Forecast:
    """Return a refusal for lack of memory with the released model that would fit, if no setting makes its own fit."""
    refusal, problem = refused.refusal, refused.problem
    if refusal is None or refusal.smallest_budget_bytes is None or refused.nearest is not None:
        return refused
    config = replace(problem.config, weights=None, kv=None, placement=None)
    problems = planning_problems(runnable_checkpoints(), problem.video, problem.request, config, problem.device)
    others = [try_plan(one) for one in problems]
    plan = max((one.plan for one in others if one.plan), key=lambda plan: plan.score, default=None)
    if plan is not None:
        run_config = plan.run_config
        hint = (
            f"{base_name(plan.model)} would fit: --model {short_name(plan.model)}, {run_config.frames} frames of "
            f"{run_config.width}x{run_config.height} in {run_config.weights}, {format_bytes(plan.required_bytes)}."
        )
    else:
        budgets = [
            (one.refusal.smallest_budget_bytes, one.problem.model)
            for one in others
            if one.refusal is not None and one.refusal.smallest_budget_bytes is not None
        ]
        if not budgets:
            return refused
        least, name = min(budgets)
        hint = (
            f"No released model fits; the smallest is {base_name(name)} (--model {short_name(name)}), from "
            f"{format_bytes(least)}."
        )
    remedy = f"{refusal.remedy} {hint}"
    return replace(
        refused, refusal=DoesNotFit(refusal.what, remedy, smallest_budget_bytes=refusal.smallest_budget_bytes)
    )


def _why_best(best: Plan, results: Sequence[Forecast]) -> str:
    plans = [one.plan for one in results if one.plan and one.plan is not best]
    lines = [f"{best.model} in {best.run_config.weights} is expected to answer best here ({best.score:.1f} points)"]
    lines += [f"{other.model} in {other.run_config.weights}: {other.score:.1f}" for other in plans]
    return "; ".join([*lines, *(str(one.refusal.what) for one in results if one.refusal)])


def plan_best(problems: Sequence[PlanningProblem]) -> tuple[int, Plan]:
    """Return the plan with the highest score and the index of its problem; raise the first DoesNotFit if none fits."""
    place, best = _best(problems)
    return place, best.required_plan()


@dataclass(frozen=True, slots=True)
class UsableModel:
    """A released checkpoint that is not on this machine and would answer here, with what it downloads and its plan."""

    repository: str
    short_name: str
    download_bytes: int
    plan: Plan


def usable_models(
    video: VideoInfo, request: Request, config: EngineConfig, device: Device, *, download_limit: int | None = None
) -> list[UsableModel]:
    """Return the missing models whose plans fit the memory and the time, the highest score first.

    A download above `download_limit`, the free disk space in bytes, is left out.
    """
    config, found = replace(config, weights=None, placement=None), []
    for one in missing_checkpoints():
        size = download_bytes(one.name)
        plan = try_plan(*planning_problems([one], video, request, config, device)).plan
        if plan is not None and (download_limit is None or size <= download_limit):
            found.append(UsableModel(one.name, short_name(one.name), size, plan))
    return sorted(found, key=lambda one: -one.plan.score)


def typical_video() -> VideoInfo:
    """Return a minute of 1280×720 to plan for where there is no video."""
    frames = _FPS * _SECONDS
    return VideoInfo(
        path="typical.mp4", container="mp4", codec="h264", width=1280, height=720, coded_width=1280, coded_height=720,
        rotation_degrees=0, pixel_aspect=1.0, fps=_FPS, frame_count=frames, duration_seconds=float(_SECONDS),
        start_seconds=0.0, constant_rate=True, pts_seconds=tuple(number / _FPS for number in range(frames)),
        sources={},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReleasedModel:
    """A released checkpoint: what it downloads, the least GPU memory that answers about a minute of video, its score.

    `score` are the points of Video-MME without subtitles; `score_source` says where they are published, or that they
    are interpolated. `runs`: the engine runs it; otherwise it can only be planned.
    """

    short_name: str
    repository: str
    family: str
    download_bytes: int
    least_bytes: int
    score: float
    score_source: str
    runs: bool


def released_models() -> list[ReleasedModel]:
    """Return the checkpoints with short names, by family and size."""
    device, video, request = as_device(find_gpu(_ANY_CARD)), typical_video(), Request("", "what happens?")
    return [
        ReleasedModel(
            short, name, family_of(spec).TITLE, download_bytes(name),
            _least_bytes(Checkpoint(name, spec, family_of(spec).REFERENCE_BOUNDS, None), video, request, device),
            expected_score(spec), _score_source(spec), name in runnable_models(),
        )
        for short, name in short_names().items()
        for spec in (released()[name],)
    ]  # fmt: skip


def expected_score(spec: ModelSpec) -> float:
    """Return the points of a model in 16 bit, published or interpolated by its size."""
    return interpolate(family_of(spec).MODEL_SCORES, parameters(spec))


def _score_source(spec: ModelSpec) -> str:
    size = parameters(spec)
    rows = family_of(spec).MODEL_SCORES
    guess = "interpolated by size" if rows[0].size < size < rows[-1].size else "extrapolated by size"
    return next((row.source for row in rows if abs(row.size / size - 1) < _SAME_SIZE), guess)


def _least_bytes(checkpoint: Checkpoint, video: VideoInfo, request: Request, device: Device) -> int:
    """Return the smallest budget in which any precision and placement answers."""
    (problem,) = planning_problems([checkpoint], video, request, EngineConfig(max_wait_seconds=None), device)
    refusal = try_plan(replace(problem, budget_bytes=1)).refusal
    assert refusal is not None and refusal.smallest_budget_bytes is not None
    return refusal.smallest_budget_bytes


@dataclass(frozen=True, slots=True)
class GpuRow:
    """A GPU with the plan of each model, None if it does not fit or the GPU cannot run it."""

    device: Device
    plans: tuple[tuple[str, Plan | None], ...]

    @property
    def best(self) -> Plan | None:
        """The plan with the highest score; None if nothing fits."""
        return max((plan for _, plan in self.plans if plan), key=lambda plan: plan.score, default=None)


def gpu_model_matrix(
    checkpoints: Sequence[Checkpoint], gpus: Sequence[Device], video: VideoInfo, request: Request, config: EngineConfig
) -> list[GpuRow]:
    """Return for every GPU the plan of each model, in the configured precision or the planner's choice."""

    def planned(checkpoint: Checkpoint, device: Device) -> Plan | None:
        stored = checkpoint.spec.stored
        if config.weights is not None and (
            config.weights not in weight_choices(device, checkpoint.spec)
            or (stored and stored.weights != config.weights)
        ):
            return None
        return try_plan(*planning_problems([checkpoint], video, request, config, device)).plan

    return [GpuRow(device, tuple((one.name, planned(one, device)) for one in checkpoints)) for device in gpus]
