"""What the next request reuses of the last question and the last search, and what stays in memory beside it.

The question's KV cache and embeddings are those of the conversation. A search does not change them, and a question does
not need a search's embeddings of other frames: they stay where memory holds them beside the new plan.
"""

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace

from vidqa.config import EngineConfig
from vidqa.devices.device import reread
from vidqa.engine.request_state import RequestCaches, RequestState, frames_of
from vidqa.errors import UsageError
from vidqa.events import Event
from vidqa.planner.budget import budget_bytes
from vidqa.planner.kept_memory import KeptBytes, plan_beside
from vidqa.planner.problem import PlanningProblem, host_share_bytes
from vidqa.types import Plan


def claim_caches(
    caches: RequestCaches, state: RequestState, plan: Plan, config: EngineConfig, *, searches: bool
) -> Generator[Event, None, Plan]:
    """Give a planned request the embeddings of its frames, if an earlier one left them; free what memory cannot keep.

    Yields the notes on these frames. Returns the plan, with what stays beside it counted.
    """
    for earlier in (caches.search, caches.question):
        if earlier is not None and state.vision_embeddings is None:
            yield from _adopt(state, earlier)
    if searches:  # the new one takes its place
        caches.search = None
    other = caches.question if searches else caches.search
    if other is None:
        return plan
    owner = "of the conversation" if searches else "of the search"
    beside, kept = None, _kept_bytes(owner, other, state)
    with suppress(UsageError):  # nothing is free
        beside = plan_beside(_problem_now(caches, state, config), plan, kept, searches=searches)
    if beside is not None:
        return beside
    if searches:
        caches.question = None
    else:
        caches.search = None
    return plan


def _adopt(state: RequestState, earlier: RequestState) -> Iterator[Event]:
    """Take over an earlier request's embeddings, and yield its notes on the frames, if the frames are equal.

    Then both are about the same part of a video, and neither the sizes nor the dropped tokens differ.
    """
    found = earlier.vision_embeddings
    if found is None or not found.complete or earlier.video_key[0] != state.video_key[0]:
        return
    if frames_of(earlier.plan) == frames_of(state.plan):
        state.vision_embeddings = found
        yield from state.note(*(note for note in earlier.notes if note.about == "frames"))


def _problem_now(caches: RequestCaches, state: RequestState, config: EngineConfig) -> PlanningProblem:
    """Return a request's planning problem with the memory as it is now; raises UsageError if nothing is free."""
    problem = state.problem
    host = None if problem.host_bytes is None else host_share_bytes(caches.embedding_bytes(state))
    return replace(problem, budget_bytes=budget_bytes(reread(problem.device), config), host_bytes=host)


def _kept_bytes(owner: str, earlier: RequestState, state: RequestState) -> KeptBytes:
    """Return what an earlier request, the `owner`, holds beside a new one."""
    rows, cached = earlier.vision_embeddings, earlier.cached_prompt
    return KeptBytes(
        owner,
        0 if cached is None else cached.cache.storage.device_bytes,
        0 if rows is None or rows is state.vision_embeddings else rows.rows.nbytes,
    )
