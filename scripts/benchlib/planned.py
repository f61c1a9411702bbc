"""Planned against measured memory of one model under one memory cap."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from benchlib.accelerator import Accelerator
from benchlib.bench import Bench, PlanRequest, Sizes
from benchlib.models import build, load, short_name, some_prompt
from benchlib.rows import Row, Samples
from benchlib.runs import SyntheticReader, ask, synthetic_video
from benchlib.sections import Skipped, run_limited
from vidqa.config import EngineConfig
from vidqa.devices.device import find_device
from vidqa.errors import DoesNotFit
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
from vidqa.models.loader import DTYPES, Loaded
from vidqa.models.registry import Checkpoint
from vidqa.models.spec import ModelSpec
from vidqa.planner.budget import RuntimeOverhead, runtime_overhead
from vidqa.planner.memory_model import frames_ahead_bytes, margin_bytes
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.types import Device, Placement, Plan, Request

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Setup:
    """A model in a precision (None: the planner's choice) under a memory cap."""

    model: str
    spec: ModelSpec
    weights: str | None
    cap_gib: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One plan and its measured bytes, which are not valid if it was `stopped` or ran `out_of_memory`."""

    model: str
    weights: str
    cap_gib: float
    frames: int
    width: int
    height: int
    tokens: int
    answer_tokens: int
    predicted: int
    reserved: int
    runtime: int
    driver: int
    out_of_memory: bool
    stopped: bool = False

    @property
    def measured(self) -> int:
        """The process's peak: its runtime and the reserved bytes."""
        return self.runtime + self.reserved

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted / self.measured - 1

    @property
    def finished(self) -> bool:
        """Whether the plan ran to its end."""
        return not self.out_of_memory and not self.stopped


def capped(device: Device, cap_gib: float) -> Device:
    """Return the device with this much memory."""
    size = min(int(cap_gib * GIB), device.free_bytes + device.process_bytes)
    return replace(device, total_bytes=size, free_bytes=size, process_bytes=0, other_bytes=0)


def make_plans(
    found: Checkpoint, device: Device, config: EngineConfig, overhead: RuntimeOverhead | None = None,
    requests: Sequence[PlanRequest] = Sizes().plans,
) -> Iterator[tuple[PlanningProblem, Plan]]:  # fmt: skip
    """Yield the plans of all requests that fit under the cap; `around` is the measured overhead, else the usual one."""
    for seconds, frames, size, answer in requests:
        request = Request("noise", "what happens?", frames=frames, size=size, max_tokens=answer)
        (problem,) = planning_problems([found], synthetic_video(int(seconds * 25)), request, config, device)
        problem = replace(problem, overhead=overhead or problem.overhead)
        try:
            yield problem, plan_video(problem)
        except DoesNotFit:
            continue


def run_plan(loaded: Loaded, problem: PlanningProblem, plan: Plan, meter: Any = None) -> Any:
    """Run one plan to its last token; return its tracker."""
    prompt = some_prompt()
    reader = SyntheticReader(problem.video, size=(plan.run_config.height, plan.run_config.width))
    return ask(loaded, problem, plan, prompt, reader, meter).tracker


def measure(
    accelerator: Accelerator, setup: Setup, requests: Sequence[PlanRequest], plan_seconds: float
) -> Iterator[Measured]:
    """Run the plans under the cap, with one model per precision and placement. Raises Skipped if no plan fits."""
    real = find_device(str(accelerator.device))
    device, runtime = capped(real, setup.cap_gib), accelerator.runtime_bytes()
    found = Checkpoint(setup.model, setup.spec, REFERENCE_BOUNDS, None)
    config = EngineConfig(device=real.torch_name, weights=setup.weights, remember=False)
    exact = replace(runtime_overhead(device, synthetic_video(25)), context_bytes=runtime)
    models: dict[tuple[str, str, Placement], list[tuple[PlanningProblem, Plan]]] = {}
    for problem, plan in make_plans(found, device, config, exact, requests):
        run_config = plan.run_config
        models.setdefault((run_config.weights, run_config.dtype, load_placement(run_config.placement)), []).append(
            (problem, plan)
        )
    if not models:
        raise Skipped(f"no plan fits under {setup.cap_gib} GiB")
    for (weights, dtype, place), plans in models.items():
        loaded = _loaded(accelerator, setup.spec, weights, dtype, place)
        accelerator.cap(int(setup.cap_gib * GIB))
        try:
            for problem, plan in plans:
                yield run_one(accelerator, setup, loaded, replace(problem, device=real), plan, plan_seconds)
        finally:
            accelerator.cap(None)
            del loaded


def load_placement(place: Placement) -> Placement:
    """Return the part of a placement that loading decides."""
    return replace(place, vision_offloaded=False, kv_on_host=False)


def _loaded(accelerator: Accelerator, spec: ModelSpec, weights: str, dtype: str, place: Placement) -> Loaded:
    model = build(spec, accelerator.device, DTYPES[dtype], weights, place)
    return load(model, accelerator.device, DTYPES[dtype], weights, place)


def run_one(
    accelerator: Accelerator, setup: Setup, loaded: Loaded, problem: PlanningProblem, plan: Plan, plan_seconds: float
) -> Measured:
    """Run one plan within its time."""
    with accelerator.peak(loaded.model.model) as peak:
        end = run_limited(lambda: run_plan(loaded, problem, plan, peak.meter), plan_seconds)
    run_config = plan.run_config
    # On a CPU the prefetcher's frames are not counted.
    unseen = frames_ahead_bytes(problem.spec, run_config, problem.overhead.host_pixels)
    # The load phase is over when these plans run, so the largest other phase is compared.
    phases = {
        name: size - unseen * (name in ("vision", "prefill"))
        for name, size in plan.phase_bytes.items()
        if name != "load"
    }
    return Measured(
        setup.model, run_config.weights, setup.cap_gib, run_config.frames, run_config.width, run_config.height,
        plan.prompt_tokens, run_config.max_tokens, max(phases.values()), peak.reserved, accelerator.runtime_bytes(),
        accelerator.driver_bytes(), end == "out of memory", end == "stopped",
    )  # fmt: skip


def summarise(rows: Sequence[Measured]) -> dict[str, Any]:
    """Return median and 95th percentile of the error, the largest excess over the plan and its margin, and failures."""
    good = [row for row in rows if row.finished]
    errors = Samples.of([abs(row.error) for row in good] or [float("inf")])
    return {
        "plans": len(rows),
        "median_error": round(errors.p50, 5),
        "p95_error": round(errors.p95, 5),
        "worst_under_bytes": max([0, *(row.measured - row.predicted for row in good)]),
        "beyond_margin_bytes": max([0, *(row.measured - row.predicted - margin_bytes(row.predicted) for row in good)]),
        "worst_driver_difference": round(max((abs(row.driver / row.measured - 1) for row in good), default=0.0), 5),
        "out_of_memory": sum(row.out_of_memory for row in rows),
        "stopped": sum(row.stopped for row in rows),
    }


def planned(section: str, model: str, weights: str, which: int) -> Callable[[Bench], Iterator[Row]]:
    """Return the section about one model in `bf16` or `nf4` under the `which`th cap. nf4 needs bitsandbytes."""

    def run(bench: Bench) -> Iterator[Row]:
        if weights == "nf4" and find_spec("bitsandbytes") is None:
            raise Skipped("bitsandbytes is not installed")
        bench.drop_model()
        precision = short_name(bench.dtype) if weights == "bf16" else weights
        setup, rows = Setup(model, bench.spec(model), precision, bench.sizes.caps_gib[which]), list[Measured]()
        for number, row in enumerate(measure(bench.accelerator, setup, bench.sizes.plans, bench.sizes.plan_seconds)):
            rows.append(row)
            yield plan_row(section, number + 1, row)
        found = summarise(rows)
        yield Row(section, "plans", found["plans"], "", "that fit under the cap")
        yield Row(section, "median error", found["median_error"], "share", "|planned / measured - 1|")
        yield Row(section, "measured above planned and margin", found["beyond_margin_bytes"] / MIB, "MiB", "the worst")
        yield Row(section, "measured above planned", found["worst_under_bytes"] / MIB, "MiB", "the worst")
        yield Row(section, "out of memory or stopped", found["out_of_memory"] + found["stopped"], "", "plans")
        formula = "the driver's word for this process against runtime + reserved, the worst"
        yield Row(section, "NVML's difference", found["worst_driver_difference"], "share", formula)

    return run


def plan_row(section: str, number: int, row: Measured) -> Row:
    """Return the row of one plan."""
    what = f"{row.frames} frames of {row.width}x{row.height}, {row.tokens} tokens, {row.answer_tokens} answered"
    formula = (
        f"{row.predicted / GIB:.4f} GiB planned / ({row.runtime / GIB:.4f} GiB runtime + {row.reserved / GIB:.4f} GiB "
        f"reserved) - 1"
    )
    note = f"{what}; {row.weights}; NVML {row.driver / GIB:.4f} GiB"
    note += "; OUT OF MEMORY" * row.out_of_memory + "; stopped after its time" * row.stopped
    return Row(section, f"plan {number:02}", row.error if row.finished else None, "share", formula, note=note)
