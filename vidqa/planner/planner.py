"""From a task to its plan: the best that fits the memory, the wait and the context, or why there is none.

Where nothing fits, the same search tells what does once some of the user's own settings are set
aside, as few as possible. Arithmetic only: the same numbers give the same plan on every machine.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vidqa.errors import DoesNotFit
from vidqa.planner import quality
from vidqa.planner.activation_memory import prompt_tokens
from vidqa.planner.explain import told_limits
from vidqa.planner.latency import estimate_seconds
from vidqa.planner.memory_model import kv_capacity, margin_bytes, memory_lines, phase_bytes, required_bytes
from vidqa.planner.placement import setups
from vidqa.planner.search import (
    PlanningProblem,
    SearchSpace,
    allowed_chunks,
    best_draft,
    chunked,
    fit,
    search_space,
    smallest_of_setup,
)
from vidqa.types import Plan, RunConfig
from vidqa.utils.units import format_bytes
from vidqa.video.frame_sampling import choose_indices, sampled_times


@dataclass(frozen=True, slots=True)
class Refused:
    """Why nothing fits, and the plans around that.

    `wanted` is the least of what was asked, which is too large: its lines say where the memory would
    go. `nearest` fits, with as few of the user's own settings set aside as possible; None where even
    without them nothing does.
    """

    error: DoesNotFit
    wanted: Plan
    nearest: Plan | None


def plan_video(task: PlanningProblem) -> Plan:
    """The best plan that fits; raises DoesNotFit with the smallest budget that would and the nearest plan."""
    found = try_plan(task)
    if isinstance(found, Refused):
        raise found.error
    return found


def try_plan(task: PlanningProblem) -> Plan | Refused:
    """The best plan that fits, or why there is none."""
    space = search_space(task)
    found = best_draft(task, space)
    return _refused(task, space) if found is None else finish_plan(task, space, found)


def finish_plan(task: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> Plan:
    """A draft with everything that is told about it: frames, lines, seconds and score."""
    request, spec = task.request, task.spec
    indices = choose_indices(
        task.video,
        frames=request.frames or (run_config.frames if request.fps is None else None),
        fps=request.fps,
        start_seconds=request.start_seconds,
        end_seconds=request.end_seconds,
        bounds=task.bounds,
    )
    phase, lines = memory_lines(spec, run_config, task.around)
    phases = phase_bytes(spec, run_config, task.around)
    return Plan(
        model=task.model,
        device=task.device.torch_name,
        run_config=run_config,
        indices=indices,
        timestamps_seconds=sampled_times(task.video, indices),
        visual_tokens=spec.visual_tokens(run_config.frames, run_config.height, run_config.width),
        prompt_tokens=prompt_tokens(spec, run_config),
        kv_capacity_tokens=kv_capacity(spec, run_config),
        lines=lines,
        phase_bytes=phases,
        peak_phase=phase,
        margin_bytes=margin_bytes(phases[phase]),
        budget_bytes=task.budget_bytes,
        limits=told_limits(task, space, run_config),
        seconds=estimate_seconds(spec, run_config, task.device, task.video),
        score=quality.score(spec, run_config, space.most_slice_tokens),
    )


def smallest_draft(task: PlanningProblem, space: SearchSpace) -> RunConfig:
    """The least that the user's own settings allow, in the setup that takes least memory."""
    least = [chunked(task, smallest_of_setup(space, setup), *allowed_chunks(task)[-1]) for setup in setups(task)]
    return min(least, key=lambda run_config: required_bytes(task.spec, run_config, task.around))


def _refused(task: PlanningProblem, space: SearchSpace) -> Refused:
    """Why nothing fits: context, memory or time; with the number that would do."""
    run_config = smallest_draft(task, space)
    tokens = task.spec.visual_tokens(run_config.frames, run_config.height, run_config.width)
    asked = f"{run_config.frames} frames of {run_config.width}x{run_config.height} ({tokens:,} visual tokens)"
    needed: int | None = required_bytes(task.spec, run_config, task.around)
    assert needed is not None
    nearest = nearest_plan(task)
    fits = _told(nearest) if nearest else ""
    if tokens > space.most_tokens:
        total = tokens + task.text_tokens + task.request.max_tokens
        what = (
            f"{asked}, the question and {task.request.max_tokens} tokens of answer make {total:,} tokens, and the "
            f"model's context is {task.spec.context_tokens:,}."
        )
        remedy = "Use fewer --frames, a smaller --size, a shorter --start/--end range or fewer --max-tokens."
        remedy = f"{remedy} {fits}".strip()
    elif needed > task.budget_bytes:
        what = (
            f"{task.model} needs {format_bytes(needed)} for {asked} in {run_config.weights}, and "
            f"{format_bytes(task.budget_bytes)} are {_allowed_by(task)} on {task.device.name}."
        )
        remedy = fits or f"The smallest budget that would do is {format_bytes(needed)}."
    else:
        run_config, fastest, needed = *_fastest(task, space), None
        what = (
            f"The fastest plan for {asked} takes about {fastest:.0f} s, and --max-wait is "
            f"{task.config.max_wait_seconds:g} s."
        )
        remedy = f"Allow --max-wait {_enough(fastest):.0f}, or look at a shorter --start/--end range."
    wanted = replace(finish_plan(task, space, run_config), limits=())
    return Refused(DoesNotFit(what, remedy, smallest_budget_bytes=needed), wanted, nearest)


def _told(plan: Plan) -> str:
    run_config = plan.run_config
    return (
        f"What fits: --weights {run_config.weights} --frames {run_config.frames} "
        f"--size {run_config.width}x{run_config.height}, "
        f"with {format_bytes(plan.required_bytes)}."
    )


def _allowed_by(task: PlanningProblem) -> str:
    return "free" if task.config.vram_bytes is None else "allowed by --vram"


def _enough(seconds: float) -> float:
    """A wait that a plan of so many seconds keeps for sure, as it is told."""
    return round(seconds * 1.1 + 1)


def _fastest(task: PlanningProblem, space: SearchSpace) -> tuple[RunConfig, float]:
    """The fastest draft that fits the memory, with the fewest and smallest frames that may be chosen, and its seconds.

    There must be one.
    """
    patient = replace(task, config=replace(task.config, max_wait_seconds=None))
    found = (fit(patient, space, smallest_of_setup(space, setup)) for setup in setups(task))
    fitting = [run_config for run_config in found if run_config is not None]
    seconds = [estimate_seconds(task.spec, run_config, task.device, task.video).total_seconds for run_config in fitting]
    return min(zip(fitting, seconds, strict=True), key=lambda pair: pair[1])


def nearest_plan(task: PlanningProblem) -> Plan | None:
    """The plan that fits with as few of the user's settings set aside as possible; None where none fits without any.

    All are set aside, then one after the other is taken back where something still fits, what is missed most
    first. A wait grows to what is needed. What is loaded stays.
    """
    aside = [name for name, (is_given, _) in _SETTINGS.items() if is_given(task)]
    found = _feasible_without(task, aside)
    for name in list(aside):
        fewer = [other for other in aside if other != name]
        if (kept := _feasible_without(task, fewer)) is not None:
            aside, found = fewer, kept
    if found is None:
        return None
    space = search_space(found)
    run_config = best_draft(found, space)
    return None if run_config is None else finish_plan(found, space, run_config)


def _feasible_without(task: PlanningProblem, names: list[str]) -> PlanningProblem | None:
    """The task without some settings, if anything fits then."""
    for name in names:
        task = _SETTINGS[name][1](task)
    space = search_space(task)
    least = [smallest_of_setup(space, setup) for setup in setups(task)]
    if not any(fit(task, space, run_config) for run_config in least):
        return None
    if "wait" not in names:
        return task
    return replace(task, config=replace(task.config, max_wait_seconds=_enough(_fastest(task, space)[1])))


def _any_frames(task: PlanningProblem) -> PlanningProblem:
    return replace(task, request=replace(task.request, frames=None, fps=None))


def _any_size(task: PlanningProblem) -> PlanningProblem:
    return replace(task, request=replace(task.request, size=None))


def _any(*names: str) -> Callable[[PlanningProblem], PlanningProblem]:
    def without(task: PlanningProblem) -> PlanningProblem:
        return replace(task, config=replace(task.config, **dict.fromkeys(names)))  # type: ignore[arg-type]

    return without


def _has(*names: str) -> Callable[[PlanningProblem], bool]:
    def is_given(task: PlanningProblem) -> bool:
        return any(getattr(task.config, name) is not None for name in names)

    return is_given


# What the user may have settled: whether it is, and the task without it. What is missed most comes first.
_SETTINGS: dict[str, tuple[Callable[[PlanningProblem], bool], Callable[[PlanningProblem], PlanningProblem]]] = {
    "weights": (_has("weights"), _any("weights")),
    "frames": (lambda task: task.request.frames is not None or task.request.fps is not None, _any_frames),
    "size": (lambda task: task.request.size is not None, _any_size),
    "wait": (_has("max_wait_seconds"), _any("max_wait_seconds")),
    "kv": (_has("kv"), _any("kv")),
    "placement": (_has("placement"), _any("placement")),
    "chunks": (_has("vision_chunk", "prefill_chunk"), _any("vision_chunk", "prefill_chunk")),
}
