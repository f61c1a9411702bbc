"""How many frames are encoded for a question that selects among them (`--focus`). Arithmetic only."""

from collections.abc import Iterator
from dataclasses import replace

from vidqa.planner.activation_memory import drops_tokens
from vidqa.planner.focus_memory import parked_bytes
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.question_scope import asks_about_whole
from vidqa.planner.search import SearchSpace, fits_memory, fits_wait
from vidqa.types import Request, RunConfig
from vidqa.utils.units import format_bytes

# A clip of which a plan reads more than a quarter stays even: even frames miss little, and a selection misses what the
# question does not name (bench_focus.py, `short`: 2 to 3 points less right where twice the frames were candidates).
_LONG_CLIP = 4
_FEWEST_PER_FRAME = 2  # candidates for each frame that is read: fewer leave too little to choose from
_STEP = 0.8  # from one number of candidates to the next smaller one


def may_focus(request: Request) -> bool:
    """Return whether a request's question may select frames: not where a rate was asked for, nor about the whole."""
    if request.focus == "always":
        return True
    return request.focus == "auto" and request.fps is None and not asks_about_whole(request.question)


def with_candidates(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> RunConfig:
    """Return the run configuration with as many candidates as memory and time allow; without any if that is too few.

    The most are those at the family's rate. A video of which a plan can read more than a quarter of them is read
    evenly, and so is one whose tokens are dropped.
    """
    plain = replace(run_config, candidate_frames=0)
    if not may_focus(problem.request) or drops_tokens(run_config):
        return plain
    if problem.request.focus != "always" and space.wanted_frames < _LONG_CLIP * run_config.frames:
        return plain
    counts = _counts(space.wanted_frames, run_config.frames, always=problem.request.focus == "always")
    for count in counts:
        one = replace(run_config, candidate_frames=count)
        if fits_memory(problem, one) and fits_wait(problem, one) and _fits_host(problem, one):
            return one
    return plain


def _counts(wanted: int, frames: int, *, always: bool) -> Iterator[int]:
    """Yield even numbers of candidates, the most first."""
    least = 2 if always else _FEWEST_PER_FRAME * frames
    count = wanted
    while count >= least:
        yield count
        count = int(count * _STEP) // 2 * 2


def _fits_host(problem: PlanningProblem, run_config: RunConfig) -> bool:
    """Return whether the host holds the embeddings; where it is the device, the budget does."""
    host = problem.host_bytes
    return host is None or parked_bytes(problem.spec, run_config) <= host


def explain_candidates(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> Iterator[str]:
    """Yield how many frames are encoded for the question to select from, or why it selects none."""
    request = problem.request
    if run_config.candidate_frames:
        size = format_bytes(parked_bytes(problem.spec, run_config))
        which = "the" if request.question else "a"
        read = "" if request.focus == "always" else (
            f", and the {run_config.frames} that {which} question points to are read"
        )  # fmt: skip
        yield (
            f"focus: {run_config.candidate_frames} frames are looked at{read}; their embeddings take {size} of the "
            "host's memory"
        )
    elif request.focus == "auto" and space.wanted_frames >= _LONG_CLIP * run_config.frames:
        yield why_even(problem, space, run_config)


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
    return "memory or time leave no room for more frames to choose from"


def host_bytes(problem: PlanningProblem, run_config: RunConfig) -> int:
    """Return the bytes of the host's memory that a plan takes beside the device's."""
    return 0 if problem.host_bytes is None else parked_bytes(problem.spec, run_config)
