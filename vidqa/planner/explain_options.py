"""Explanations of the options that a session offers, beside a plan's limits: what one does, or why it does nothing."""

from collections.abc import Iterator

from vidqa.planner.candidate_frames import explain_candidates, why_even
from vidqa.planner.explain import sampling_text, subtitle_note
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.search import needs_scan, search_space
from vidqa.types import Plan

_WHERE = {"auto": "in the video or beside it", "embedded": "in the video"}


def explain_options(problem: PlanningProblem, plan: Plan, *, subs_chosen: bool) -> Iterator[str]:
    """Yield what `sample`, `focus`, `prune` and `subs` do in a plan, where its choices do not say it; else nothing.

    Missing subtitles are named if the user chose some in the session (`subs_chosen`): else an answer's note does.
    """
    request, sampling, prune = problem.request, plan.sampling, problem.config.prune
    if needs_scan(problem, plan):
        yield "even frames until the video is scanned, which is done before the next answer"
    elif problem.signal is not None and sampling is not None and sampling.kind == "uniform" and not sampling.still:
        yield sampling_text(plan, sampling)
    if request.focus == "auto":
        space = search_space(problem, forecast=False)
        if not any(explain_candidates(problem, space, plan.run_config)):
            yield why_even(problem, space, plan.run_config)
    if isinstance(prune, int | float) and plan.visual_tokens >= plan.video_tokens:
        yield f"prune: no visual token is dropped at the share {prune:g}"
    if plan.subtitles is not None:
        yield from subtitle_note(plan)
    elif subs_chosen and request.subs != "off" and problem.video.subtitles is None:
        yield f"subtitles: there are none {_WHERE.get(request.subs, 'in the file')}"
