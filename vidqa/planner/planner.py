"""The planner: the best plan that fits memory, time and context, or why there is none. Arithmetic only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vidqa.errors import DoesNotFit
from vidqa.planner import quality
from vidqa.planner.activation_memory import kept_video_tokens, kept_visual_tokens, prompt_tokens
from vidqa.planner.candidate_frames import explain_candidates, host_bytes, with_candidates
from vidqa.planner.explain import explain_limits, explain_sampling, first_token_seconds, wait_option
from vidqa.planner.latency import estimate_seconds
from vidqa.planner.memory_model import kv_capacity, lines_of, margin_bytes, memory_parts, required_bytes
from vidqa.planner.placement import candidates
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.search import (
    SearchSpace,
    allowed_chunks,
    best_run_config,
    by_change,
    chunked,
    fit,
    frame_indices,
    has_too_many_tokens,
    placed_frames,
    search_space,
    smallest,
)
from vidqa.planner.subtitle_budget import cues_in_range, keeps_the_video, subtitle_rooms, with_cues
from vidqa.types import Plan, RunConfig
from vidqa.utils.units import format_bytes
from vidqa.video.frame_sampling import sampled_times


@dataclass(frozen=True, slots=True)
class Forecast:
    """The plan of a planning problem (`problem`), or why nothing fits (`refusal`) and two plans for comparison.

    `wanted` is the smallest plan that keeps the user's settings: it is too large, and its lines say what takes the
    memory. `nearest` fits, with as few of the user's settings dropped as possible; None if nothing fits without them.
    """

    problem: PlanningProblem
    plan: Plan | None = None
    refusal: DoesNotFit | None = None
    wanted: Plan | None = None
    nearest: Plan | None = None

    def required_plan(self) -> Plan:
        """Return the plan; raise DoesNotFit if there is none."""
        if self.plan is None:
            assert self.refusal is not None
            raise self.refusal
        return self.plan


def _raised_wait_limit(problem: PlanningProblem, plan: Plan) -> Iterator[str]:
    """Yield how far the request's frames exceed the automatic limit on time, and a plan that would keep it."""
    usual = problem.usual_wait_seconds
    if problem.raised_wait_seconds is None or usual is None or plan.seconds.first_token_seconds <= usual:
        return
    line = f"time: these frames take about {plan.seconds.first_token_seconds:.0f} s to the first word, past the usual "
    line += f"{usual:.0f} s (--max-wait auto)"
    free = replace(
        problem, request=replace(problem.request, frames=None, fps=None, size=None), raised_wait_seconds=None
    )
    space = search_space(free)
    if (kept := best_run_config(free, space)) is not None:
        line += f"; --frames {kept.frames} --size {kept.width}x{kept.height} would keep it"
    yield line


def plan_video(problem: PlanningProblem) -> Plan:
    """Return the best plan that fits; raise DoesNotFit with the smallest sufficient budget and the nearest plan."""
    return try_plan(problem).required_plan()


def try_plan(problem: PlanningProblem) -> Forecast:
    """Return the best plan that fits, or why there is none. Opens no file and loads nothing."""
    without = _try_plan(replace(problem, subtitle_tokens=0))
    if without.plan is None or problem.video.subtitles is None:
        return without
    cues = cues_in_range(problem.video, problem.request)
    for tokens in subtitle_rooms(problem, cues):
        found = _try_plan(replace(problem, subtitle_tokens=tokens))
        if found.plan is not None and keeps_the_video(problem, without.plan, found.plan):
            return replace(found, plan=with_cues(problem, found.plan, cues))
    return replace(without, plan=with_cues(problem, without.plan, cues)) if cues else without


def _try_plan(problem: PlanningProblem) -> Forecast:
    problem = replace(problem, raised_wait_seconds=None)  # of an earlier plan, whose rates may have been others
    space = search_space(problem)
    best = best_run_config(problem, space)
    if best is None and (raised := _with_raised_wait(problem, space)) is not None:
        problem, best = raised, best_run_config(raised, space)
    if best is None:
        return _refusal(problem, space)
    plan = finish_plan(problem, space, with_candidates(problem, space, best))
    return Forecast(problem, replace(plan, limits=(*_raised_wait_limit(problem, plan), *plan.limits)))


def _with_raised_wait(problem: PlanningProblem, space: SearchSpace) -> PlanningProblem | None:
    """Return the problem with the time that the request's own frames and size need, if only time forbids them.

    The automatic limit chooses where nothing was asked for; it does not refuse what was.
    """
    request = problem.request
    if problem.config.max_wait_seconds != "auto" or (request.frames, request.fps, request.size) == (None, None, None):
        return None
    fastest = _fastest(problem, space)
    return None if fastest is None else replace(problem, raised_wait_seconds=sufficient_wait(fastest[1]))


def finish_plan(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> Plan:
    """Return the plan of a run configuration: frame indices, memory, limits, seconds and score."""
    spec = problem.spec
    indices, sampling = placed_frames(problem, run_config.frames)
    many: tuple[int, ...] = ()
    if run_config.candidate_frames:
        # A question selects only a few of them, so a brief event needs several candidates.
        many, sampling = by_change(problem, frame_indices(problem, run_config.candidate_frames), close=0.0)
        run_config = replace(run_config, candidate_frames=len(many))
    parts = memory_parts(spec, run_config, problem.overhead.host_pixels)
    phases, phase, lines = lines_of(parts, problem.overhead)
    plan = Plan(
        model=problem.model,
        device=problem.device.torch_name,
        run_config=run_config,
        indices=indices,
        timestamps_seconds=sampled_times(problem.video, indices),
        visual_tokens=kept_visual_tokens(spec, run_config),
        prompt_tokens=prompt_tokens(spec, run_config),
        kv_capacity_tokens=kv_capacity(spec, run_config),
        lines=lines,
        phase_bytes=phases,
        peak_phase=phase,
        margin_bytes=margin_bytes(phases[phase]),
        budget_bytes=problem.budget_bytes,
        limits=explain_limits(problem, space, run_config),
        seconds=estimate_seconds(problem, run_config),
        score=quality.score(spec, run_config, space.most_slice_tokens),
        video_tokens=spec.visual_tokens(run_config.frames, run_config.height, run_config.width),
        sampling=sampling,
        candidates=many,
        candidate_seconds=sampled_times(problem.video, many),
        host_bytes=host_bytes(problem, run_config),
    )
    return replace(plan, choices=(*explain_sampling(plan), *explain_candidates(problem, space, run_config)))


def _smallest_run_config(problem: PlanningProblem, space: SearchSpace) -> RunConfig:
    """Return the run configuration that takes least memory with the user's settings."""
    chunks = allowed_chunks(problem)[-1]
    least = (chunked(problem, smallest(space, candidate), *chunks) for candidate in candidates(problem))
    return min(least, key=lambda run_config: required_bytes(problem.spec, run_config, problem.overhead))


def _refusal(problem: PlanningProblem, space: SearchSpace) -> Forecast:
    """Return why nothing fits (context, memory or time), with the number that would be enough."""
    run_config = _smallest_run_config(problem, space)
    answer_tokens = problem.request.max_tokens
    tokens = kept_visual_tokens(problem.spec, run_config)
    frames = f"{run_config.frames} frames of {run_config.width}x{run_config.height} ({tokens:,} visual tokens)"
    needed = required_bytes(problem.spec, run_config, problem.overhead)
    smallest_budget: int | None = needed
    nearest = nearest_plan(problem)
    fits = _options(nearest) if nearest else ""
    if has_too_many_tokens(problem, space, run_config):
        total = kept_video_tokens(problem.spec, run_config) + problem.text_tokens + answer_tokens
        what = (
            f"{frames}, the question and {answer_tokens} tokens of answer make {total:,} tokens, and the "
            f"model's context is {problem.spec.context_tokens:,}."
        )
        remedy = "Use fewer --frames, a smaller --size, a shorter --start/--end range or fewer --max-tokens."
        remedy = f"{remedy} {fits}".strip()
    elif needed > problem.budget_bytes:
        available = "free" if problem.config.vram_bytes is None else "allowed by --vram"
        what = (
            f"{problem.model} needs {format_bytes(needed)} for {frames} in {run_config.weights}, and "
            f"{format_bytes(problem.budget_bytes)} are {available} on {problem.device.name}."
        )
        remedy = fits or f"The smallest budget that would do is {format_bytes(needed)}."
    else:
        fastest = _fastest(problem, space)
        assert fastest is not None
        (run_config, seconds), smallest_budget = fastest, None
        what = (
            f"The fastest plan for {frames} takes about {seconds:.0f} s to the first word, and the limit is "
            f"{problem.max_wait_seconds:g} s ({wait_option(problem)})."
        )
        remedy = f"Allow --max-wait {sufficient_wait(seconds):.0f}, or look at a shorter --start/--end range."
    wanted = replace(finish_plan(problem, space, run_config), limits=())
    return Forecast(problem, None, DoesNotFit(what, remedy, smallest_budget_bytes=smallest_budget), wanted, nearest)


def _options(plan: Plan) -> str:
    run_config = plan.run_config
    return (
        f"What fits: --weights {run_config.weights} --frames {run_config.frames} "
        f"--size {run_config.width}x{run_config.height}, with {format_bytes(plan.required_bytes)}."
    )


def sufficient_wait(seconds: float) -> float:
    """Return a `--max-wait` that a plan of so many seconds keeps, in whole seconds as the message shows it."""
    return round(seconds * 1.1 + 1)


def _fastest(problem: PlanningProblem, space: SearchSpace) -> tuple[RunConfig, float] | None:
    """Return the fastest run configuration of the fewest, smallest frames and its seconds; None if none fits memory."""
    patient = replace(problem, config=replace(problem.config, max_wait_seconds=None))
    found = (fit(patient, space, smallest(space, candidate)) for candidate in candidates(problem))
    timed = [(one, first_token_seconds(problem, one)) for one in found if one]
    return min(timed, key=lambda pair: pair[1], default=None)


def nearest_plan(problem: PlanningProblem) -> Plan | None:
    """Return the plan that fits with as few of the user's settings dropped as possible; None if none fits.

    All are dropped; then each is restored if something still fits, the most important first. `--max-wait` grows to
    what is needed. Settings of a loaded model stay.
    """
    dropped = [name for name in _SETTINGS if any(value is not None for value in _values(problem, name))]
    found = _feasible_without(problem, dropped)
    for name in list(dropped):
        fewer = [other for other in dropped if other != name]
        if (restored := _feasible_without(problem, fewer)) is not None:
            dropped, found = fewer, restored
    if found is None:
        return None
    space = search_space(found)
    run_config = best_run_config(found, space)
    return None if run_config is None else finish_plan(found, space, run_config)


# Settings of the user, the most important first: where they are in a planning problem, and their fields.
_SETTINGS = {
    "weights": ("config", ("weights",)),
    "frames": ("request", ("frames", "fps")),
    "size": ("request", ("size",)),
    "wait": ("config", ("max_wait_seconds",)),
    "kv": ("config", ("kv",)),
    "placement": ("config", ("placement",)),
    "chunks": ("config", ("vision_chunk", "prefill_chunk")),
}


def _values(problem: PlanningProblem, name: str) -> list[object]:
    owner, fields = _SETTINGS[name]
    return [getattr(getattr(problem, owner), field) for field in fields]


def _feasible_without(problem: PlanningProblem, names: list[str]) -> PlanningProblem | None:
    """Return the problem without some settings; None if nothing fits then."""
    for owner, fields in map(_SETTINGS.__getitem__, names):
        changed: Any = replace(getattr(problem, owner), **dict.fromkeys(fields))
        problem = replace(problem, **{owner: changed})
    space = search_space(problem)
    if all(fit(problem, space, smallest(space, candidate)) is None for candidate in candidates(problem)):
        return None
    if "wait" not in names:
        return problem
    fastest = _fastest(problem, space)
    assert fastest is not None
    return replace(problem, config=replace(problem.config, max_wait_seconds=sufficient_wait(fastest[1])))
