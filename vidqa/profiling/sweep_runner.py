"""Sweeps over frame counts or sizes: each point is planned here and run in a separate process per side.

So running out of memory is a row, and each point starts from the same state. This process loads no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vidqa.config import EngineConfig
from vidqa.devices.device import find_device
from vidqa.errors import DoesNotFit
from vidqa.models.registry import Checkpoint, find_checkpoints
from vidqa.planner.model_choice import plan_best
from vidqa.planner.placement import compute_dtype
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.planner.transformers_memory import vanilla_peak_bytes
from vidqa.profiling.isolated_run import WORKER_COMMAND, IsolatedRun, run_job
from vidqa.profiling.sweep_points import Side, SweepPoint, SweepRow, frame_points, make_row, size_points
from vidqa.types import Device, Plan, Request, VideoInfo


@dataclass(frozen=True, slots=True)
class Sweep:
    """One model on one device over the points of one video."""

    checkpoint: Checkpoint
    device: Device
    video: VideoInfo
    request: Request
    config: EngineConfig
    points: tuple[SweepPoint, ...]
    notes: tuple[str, ...]
    limit_bytes: int | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values per token in the device's precision."""
        from vidqa.types import ELEMENT_BYTES

        spec = self.checkpoint.spec
        return spec.kv_bytes_per_token(ELEMENT_BYTES[compute_dtype(self.device, spec)])


def prepare(
    video: VideoInfo,
    request: Request,
    config: EngineConfig,
    counts: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    limit_bytes: int | None,
) -> Sweep:
    """Return the sweep over `counts`, or over `sizes` at the tokens of counts[0] frames.

    Raises ModelMissing if the weights are not on this machine, UsageError if the points cannot be sampled.
    """
    device = find_device(config.device)
    candidates = find_checkpoints(config.model, local=True)
    found = candidates[0]
    if len(candidates) > 1:
        found = candidates[plan_best(planning_problems(candidates, video, request, config, device))[0]]
    found.local_folder()  # raises for a missing model before anything runs
    if sizes:
        points, notes = size_points(video, found.spec, found.bounds, sizes, counts[0], request)
    else:
        points, notes = frame_points(video, found.spec, found.bounds, counts, request)
    budget = limit_bytes if config.vram_bytes is None else config.vram_bytes
    fixed = replace(config, model=_name(found), device=device.torch_name, vram_bytes=budget, remember=False)
    return Sweep(found, device, video, request, fixed, tuple(points), tuple(notes), limit_bytes)


def _name(found: Checkpoint) -> str:
    """Return the name by which the child process finds the same checkpoint."""
    return str(found.folder) if found.folder is not None and found.name != "demo" else found.name


def run_sweep(sweep: Sweep, sides: Sequence[Side], command: Sequence[str] = WORKER_COMMAND) -> Iterator[SweepRow]:
    """Yield a row per point and side as they are measured."""
    for point in sweep.points:
        for side in sides:
            yield _run_point(sweep, point, side, command)


def _run_point(sweep: Sweep, point: SweepPoint, side: Side, command: Sequence[str]) -> SweepRow:
    request = point.request(sweep.request)
    (problem,) = planning_problems([sweep.checkpoint], sweep.video, request, sweep.config, sweep.device)
    if side == "transformers":
        run = IsolatedRun(side, request, sweep.config, sweep.limit_bytes)
        return make_row(side, point, _predicted_baseline(problem, point), run_job(run, command))
    try:
        plan = plan_video(problem)
    except DoesNotFit as error:
        return make_row(side, point, error.smallest_budget_bytes, {"outcome": "does_not_fit", "detail": error.what})
    run = IsolatedRun(side, request, with_plan(sweep.config, plan), sweep.limit_bytes)
    return make_row(side, point, plan.predicted_peak_bytes, run_job(run, command))


def with_plan(config: EngineConfig, plan: Plan) -> EngineConfig:
    """Return the config with the plan's choices for loading, which the warm-up's plan could make otherwise."""
    run_config = plan.run_config
    kv: dict[str, Any] = {"kv": "int8"} if run_config.kv == "int8" else {}
    return replace(config, weights=run_config.weights, placement=run_config.placement, **kv)


def _predicted_baseline(problem: PlanningProblem, point: SweepPoint) -> int:
    """Return the process's peak with unfused attention, as where no fused kernel takes grouped queries (a T4)."""
    dtype = compute_dtype(problem.device, problem.spec)
    tensors = vanilla_peak_bytes(problem.spec, point.visual_tokens, problem.text_tokens, dtype)
    return tensors + problem.overhead.total_bytes
