"""How many frames are encoded for a question that selects among them (`--focus`). Arithmetic only."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from vidqa.planner.activation_memory import drops_tokens
from vidqa.planner.explain import first_token_seconds, gives_up_frames, wait_option
from vidqa.planner.focus_memory import parked_bytes
from vidqa.planner.memory_model import required_bytes
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.question_scope import asks_about_whole
from vidqa.planner.search import SearchSpace, fits_memory, fits_wait
from vidqa.types import Request, RunConfig
from vidqa.utils.units import format_bytes

# A clip of which a plan reads more than a quarter stays even: even frames miss little, and a selection misses what the
# question does not name (bench_focus.py, `short`: 2 to 3 points less right where twice the frames were candidates).
_LONG_CLIP = 4
# Candidates for each frame of the even plan: fewer leave too little to choose from, and show hardly more of the video.
_FEWEST_PER_FRAME = 2


def may_focus(request: Request) -> bool:
    """Return whether a request's question may select frames: not where a rate was asked for, nor about the whole."""
    if request.focus == "always":
        return True
    return request.focus == "auto" and request.fps is None and not asks_about_whole(request.question)


def with_candidates(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> RunConfig:
    """Return the run configuration with as many candidates as memory and time allow; without any if that is too few.

    The most are those at the family's rate. A video of which a plan can read more than a quarter of them is read
    evenly, and so is one whose tokens are dropped. Where there is no room beside the frames, and the request names no
    number of them, fewer are read if that makes room, half of them at least.
    """
    plain = replace(run_config, candidate_frames=0)
    if not may_focus(problem.request) or drops_tokens(run_config):
        return plain
    if problem.request.focus != "always" and space.wanted_frames < _LONG_CLIP * run_config.frames:
        return plain
    least = 2 if problem.request.focus == "always" else _FEWEST_PER_FRAME * run_config.frames
    for one in (run_config, *_with_fewer(problem, space, run_config)):
        if count := _most_candidates(problem, one, least, space.wanted_frames):
            return replace(one, candidate_frames=count)
    return plain


def _with_fewer(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> Iterator[RunConfig]:
    """Yield the run configuration with fewer frames, down to half, if the planner may choose their number."""
    if problem.request.frames is None and problem.request.focus == "auto":
        for count in reversed(space.counts):
            if count < run_config.frames <= 2 * count:
                yield space.with_frames(run_config, count)


def _most_candidates(problem: PlanningProblem, run_config: RunConfig, least: int, most: int) -> int:
    """Return the largest even number of candidates, from `least` to `most`, that fits; 0 if none does.

    All frames of a video can take less time than fewer: then there is nothing to scan for.
    """
    pairs = range(least // 2, most // 2 + 1)
    if pairs and _fits(problem, replace(run_config, candidate_frames=2 * pairs[-1])):
        return 2 * pairs[-1]
    fitting = bisect_left(
        pairs, True, key=lambda pair: not _fits(problem, replace(run_config, candidate_frames=2 * pair))
    )
    return 2 * pairs[fitting - 1] if fitting else 0


def _fits(problem: PlanningProblem, run_config: RunConfig) -> bool:
    """Return whether memory, host and time have room; where the host is the device, its budget holds the embeddings."""
    host = problem.host_bytes
    on_host = host is None or parked_bytes(problem.spec, run_config) <= host
    return on_host and fits_memory(problem, run_config) and fits_wait(problem, run_config)


def explain_candidates(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> Iterator[str]:
    """Yield how many frames are encoded for the question to select from, or why it selects none."""
    request = problem.request
    if run_config.candidate_frames:
        size = format_bytes(parked_bytes(problem.spec, run_config))
        which = "the" if request.question else "a"
        read = "" if request.focus == "always" else (
            f", and the {run_config.frames} that {which} question points to are read"
        )  # fmt: skip
        if gives_up_frames(problem, space, run_config):
            read += ", fewer than an even plan's, to leave room for these"
        looked_at = f"{run_config.candidate_frames:,} frames are looked at{read}"
        line = f"focus: {looked_at}; their embeddings take {size} of the host's memory"
        held_back = _held_back(problem, replace(run_config, candidate_frames=space.wanted_frames))
        yield f"{line}. All {held_back}" if held_back else line
    elif request.focus == "auto" and space.wanted_frames >= _LONG_CLIP * run_config.frames:
        selects = may_focus(request) and not drops_tokens(run_config)
        if not (selects and _fits(problem, _fewest(problem, space, run_config))):  # as for a plan beside another one
            yield why_even(problem, space, run_config)


def _fewest(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> RunConfig:
    """Return a run configuration with so few candidates that a plan has fewer only without any."""
    *_, fewest = (run_config, *_with_fewer(problem, space, run_config))
    return replace(fewest, candidate_frames=_FEWEST_PER_FRAME * run_config.frames)


def _held_back(problem: PlanningProblem, run_config: RunConfig) -> str:
    """Return what forbids so many candidates, with its number, and which options make room; empty if nothing does."""
    needed, parked = required_bytes(problem.spec, run_config, problem.overhead), parked_bytes(problem.spec, run_config)
    would, remedy = f"{run_config.candidate_frames:,} would", "fewer --frames or a smaller --size make room"
    if needed > problem.budget_bytes:
        over, budget = format_bytes(needed - problem.budget_bytes), format_bytes(problem.budget_bytes)
        return f"{would} need {over} beyond the {budget} of memory; {remedy}"
    if problem.host_bytes is not None and parked > problem.host_bytes:
        host = f"{format_bytes(problem.host_bytes)} of the host's memory are for them"
        return f"{would} take {format_bytes(parked)}, and {host}; a smaller --size makes room"
    if fits_wait(problem, run_config):
        return ""
    seconds = f"{first_token_seconds(problem, run_config):.0f} s to the first word ({wait_option(problem)})"
    return f"{would} take about {seconds}; a longer --max-wait, {remedy}"


def why_even(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> str:
    """Return why a question selects no frames."""
    return f"focus: even, {_why_even(problem, space, run_config)}"


def _why_even(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> str:
    request, wanted = problem.request, space.wanted_frames
    if asks_about_whole(request.question):
        return "the question is about the whole video"
    if drops_tokens(run_config):
        return "since visual tokens are dropped (--prune)"
    if request.fps is not None:
        return "at the rate that was asked for (--fps)"
    if wanted < _LONG_CLIP * run_config.frames:
        return f"{run_config.frames} of {wanted} frames are read: too few are left to choose from"
    held_back = _held_back(problem, _fewest(problem, space, run_config))
    return "there is no room for enough frames to choose from" + (f": {held_back}" if held_back else "")


def host_bytes(problem: PlanningProblem, run_config: RunConfig) -> int:
    """Return the bytes of the host's memory that a plan takes beside the device's."""
    return 0 if problem.host_bytes is None else parked_bytes(problem.spec, run_config)
