"""Caches of an earlier request beside a plan: what is counted, and where it does not fit."""

from dataclasses import replace

import pytest

from tests.planner.plan_builders import GIB, made_cpu, made_problem
from vidqa.planner.kept_memory import KeptBytes, plan_beside
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import PlanningProblem
from vidqa.types import PHASES, Plan

MIB = 2**20
NAMED = "what does the red circle do?"


def searching(gib: float = 8) -> tuple[PlanningProblem, Plan]:
    problem = made_problem(gib, 1200.0, question=NAMED, frames=32, focus="always", host_bytes=2 * GIB)
    return problem, plan_video(problem)


def bytes_of(plan: Plan) -> dict[str, int]:
    return {line.name: line.bytes for line in plan.lines}


def test_a_question_has_both_in_every_phase_after_the_load() -> None:
    problem = made_problem(8, 60.0, device=made_cpu(bf16=True), frames=8)
    plan = plan_video(problem)
    beside = plan_beside(problem, plan, KeptBytes("of the search", embeddings=40 * MIB))
    assert beside is not None and bytes_of(beside)["vision embeddings, of the search"] == 40 * MIB
    assert beside.required_bytes == plan.required_bytes + 40 * MIB + beside.margin_bytes - plan.margin_bytes
    for phase in PHASES:
        assert beside.phase_bytes[phase] - plan.phase_bytes[phase] == (40 * MIB if phase != "load" else 0)
    assert replace(beside, lines=plan.lines, phase_bytes=plan.phase_bytes, margin_bytes=plan.margin_bytes) == plan


def test_a_search_takes_a_kept_cache_in_the_place_of_its_own() -> None:
    problem, plan = searching()
    own = plan.phase_bytes["prefill"] - _prefill_without_cache(problem, plan)
    beside = plan_beside(problem, plan, KeptBytes("of the conversation", kv=own), searches=True)
    assert beside is not None
    assert beside.phase_bytes["prefill"] == plan.phase_bytes["prefill"]
    assert beside.phase_bytes["vision"] == plan.phase_bytes["vision"] + own, "its own comes after the vision"


def _prefill_without_cache(problem: PlanningProblem, plan: Plan) -> int:
    empty = plan_beside(problem, plan, KeptBytes("of the conversation", kv=1), searches=True)
    assert empty is not None
    return empty.phase_bytes["prefill"] - 1


@pytest.mark.parametrize("searches", [True, False])
def test_what_does_not_fit_is_refused_at_the_byte(searches: bool) -> None:
    problem, plan = searching()
    kept = KeptBytes("of the conversation", kv=600 * MIB)
    beside = plan_beside(problem, plan, kept, searches=searches)
    assert beside is not None
    enough = replace(problem, budget_bytes=beside.required_bytes)
    assert plan_beside(enough, plan, kept, searches=searches) == beside
    less = replace(enough, budget_bytes=beside.required_bytes - 1)
    assert plan_beside(less, plan, kept, searches=searches) is None


def test_embeddings_of_both_share_the_hosts_budget() -> None:
    problem, plan = searching()
    assert problem.host_bytes is not None and 0 < plan.host_bytes <= problem.host_bytes
    left = problem.host_bytes - plan.host_bytes
    beside = plan_beside(problem, plan, KeptBytes("of the conversation", kv=MIB, embeddings=left), searches=True)
    assert beside is not None and beside.host_bytes == problem.host_bytes
    assert "vision embeddings, of the conversation" not in bytes_of(beside), "no memory of the device"
    more = KeptBytes("of the conversation", kv=MIB, embeddings=left + 1)
    assert plan_beside(problem, plan, more, searches=True) is None
