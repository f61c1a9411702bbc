"""From a task to its plan: the best that fits the memory, the wait and the context, or why there is none.

Where nothing fits, the same search tells what does once some of the user's own settings are set
aside, as few as possible. Arithmetic only: the same numbers give the same plan on every machine.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vidqa.errors import DoesNotFit
from vidqa.memory import quality
from vidqa.memory.activations import prompt_tokens
from vidqa.memory.estimate import kv_capacity, margin_bytes, memory_lines, phase_bytes, required_bytes
from vidqa.memory.limits import told_limits
from vidqa.memory.search import (
    Space,
    Task,
    allowed_chunks,
    best_draft,
    chunked,
    fit,
    search_space,
    smallest_of_setup,
)
from vidqa.memory.seconds import estimate_seconds
from vidqa.memory.setups import setups
from vidqa.types import Draft, Plan
from vidqa.units import format_bytes
from vidqa.video.sampling import choose_indices, sampled_times


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


def plan_video(task: Task) -> Plan:
    """The best plan that fits; raises DoesNotFit with the smallest budget that would and the nearest plan."""
    found = try_plan(task)
    if isinstance(found, Refused):
        raise found.error
    return found


def try_plan(task: Task) -> Plan | Refused:
    """The best plan that fits, or why there is none."""
    space = search_space(task)
    found = best_draft(task, space)
    return _refused(task, space) if found is None else finish_plan(task, space, found)


def finish_plan(task: Task, space: Space, draft: Draft) -> Plan:
    """A draft with everything that is told about it: frames, lines, seconds and score."""
    request, spec = task.request, task.spec
    indices = choose_indices(
        task.video,
        frames=request.frames or (draft.frames if request.fps is None else None),
        fps=request.fps,
        start_seconds=request.start_seconds,
        end_seconds=request.end_seconds,
        bounds=task.bounds,
    )
    phase, lines = memory_lines(spec, draft, task.around)
    phases = phase_bytes(spec, draft, task.around)
    return Plan(
        model=task.model,
        device=task.device.torch_name,
        draft=draft,
        indices=indices,
        timestamps_seconds=sampled_times(task.video, indices),
        visual_tokens=spec.visual_tokens(draft.frames, draft.height, draft.width),
        prompt_tokens=prompt_tokens(spec, draft),
        kv_capacity_tokens=kv_capacity(spec, draft),
        lines=lines,
        phase_bytes=phases,
        peak_phase=phase,
        margin_bytes=margin_bytes(phases[phase]),
        budget_bytes=task.budget_bytes,
        limits=told_limits(task, space, draft),
        seconds=estimate_seconds(spec, draft, task.device, task.video),
        score=quality.score(spec, draft, space.most_slice_tokens),
    )


def smallest_draft(task: Task, space: Space) -> Draft:
    """The least that the user's own settings allow, in the setup that takes least memory."""
    least = [chunked(task, smallest_of_setup(space, setup), *allowed_chunks(task)[-1]) for setup in setups(task)]
    return min(least, key=lambda draft: required_bytes(task.spec, draft, task.around))


def _refused(task: Task, space: Space) -> Refused:
    """Why nothing fits: context, memory or time; with the number that would do."""
    draft = smallest_draft(task, space)
    tokens = task.spec.visual_tokens(draft.frames, draft.height, draft.width)
    asked = f"{draft.frames} frames of {draft.width}x{draft.height} ({tokens:,} visual tokens)"
    needed: int | None = required_bytes(task.spec, draft, task.around)
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
            f"{task.model} needs {format_bytes(needed)} for {asked} in {draft.weights}, and "
            f"{format_bytes(task.budget_bytes)} are {_allowed_by(task)} on {task.device.name}."
        )
        remedy = fits or f"The smallest budget that would do is {format_bytes(needed)}."
    else:
        draft, fastest, needed = *_fastest(task, space), None
        what = (
            f"The fastest plan for {asked} takes about {fastest:.0f} s, and --max-wait is "
            f"{task.config.max_wait_seconds:g} s."
        )
        remedy = f"Allow --max-wait {_enough(fastest):.0f}, or look at a shorter --start/--end range."
    wanted = replace(finish_plan(task, space, draft), limits=())
    return Refused(DoesNotFit(what, remedy, smallest_budget_bytes=needed), wanted, nearest)


def _told(plan: Plan) -> str:
    draft = plan.draft
    return (
        f"What fits: --weights {draft.weights} --frames {draft.frames} --size {draft.width}x{draft.height}, "
        f"with {format_bytes(plan.required_bytes)}."
    )


def _allowed_by(task: Task) -> str:
    return "free" if task.config.vram_bytes is None else "allowed by --vram"


def _enough(seconds: float) -> float:
    """A wait that a plan of so many seconds keeps for sure, as it is told."""
    return round(seconds * 1.1 + 1)


def _fastest(task: Task, space: Space) -> tuple[Draft, float]:
    """The fastest draft that fits the memory, with the fewest and smallest frames that may be chosen, and its seconds.

    There must be one.
    """
    patient = replace(task, config=replace(task.config, max_wait_seconds=None))
    found = (fit(patient, space, smallest_of_setup(space, setup)) for setup in setups(task))
    fitting = [draft for draft in found if draft is not None]
    seconds = [estimate_seconds(task.spec, draft, task.device, task.video).total_seconds for draft in fitting]
    return min(zip(fitting, seconds, strict=True), key=lambda pair: pair[1])


def nearest_plan(task: Task) -> Plan | None:
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
    draft = best_draft(found, space)
    return None if draft is None else finish_plan(found, space, draft)


def _feasible_without(task: Task, names: list[str]) -> Task | None:
    """The task without some settings, if anything fits then."""
    for name in names:
        task = _SETTINGS[name][1](task)
    space = search_space(task)
    least = [smallest_of_setup(space, setup) for setup in setups(task)]
    if not any(fit(task, space, draft) for draft in least):
        return None
    if "wait" not in names:
        return task
    return replace(task, config=replace(task.config, max_wait_seconds=_enough(_fastest(task, space)[1])))


def _any_frames(task: Task) -> Task:
    return replace(task, request=replace(task.request, frames=None, fps=None))


def _any_size(task: Task) -> Task:
    return replace(task, request=replace(task.request, size=None))


def _any(*names: str) -> Callable[[Task], Task]:
    def without(task: Task) -> Task:
        return replace(task, config=replace(task.config, **dict.fromkeys(names)))  # type: ignore[arg-type]

    return without


def _has(*names: str) -> Callable[[Task], bool]:
    def is_given(task: Task) -> bool:
        return any(getattr(task.config, name) is not None for name in names)

    return is_given


# What the user may have settled: whether it is, and the task without it. What is missed most comes first.
_SETTINGS: dict[str, tuple[Callable[[Task], bool], Callable[[Task], Task]]] = {
    "weights": (_has("weights"), _any("weights")),
    "frames": (lambda task: task.request.frames is not None or task.request.fps is not None, _any_frames),
    "size": (lambda task: task.request.size is not None, _any_size),
    "wait": (_has("max_wait_seconds"), _any("max_wait_seconds")),
    "kv": (_has("kv"), _any("kv")),
    "placement": (_has("placement"), _any("placement")),
    "chunks": (_has("vision_chunk", "prefill_chunk"), _any("vision_chunk", "prefill_chunk")),
}
