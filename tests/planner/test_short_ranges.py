"""A short range is read densely enough to see a brief event, and no video in fewer frames than its checkpoint says."""

from dataclasses import replace

import pytest

from tests.planner.plan_builders import made_device, made_problem, made_video
from vidqa.config import EngineConfig
from vidqa.models.family import ModelFamily, families
from vidqa.models.registry import find_checkpoints
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.types import Request

EVERY_FAMILY = pytest.mark.parametrize("family", families(), ids=lambda family: family.TITLE)


def problem_of(family: ModelFamily, seconds: float = 60.0, gib: float = 24.0, **fields: object) -> PlanningProblem:
    spec = next(iter(family.RELEASED.values()))
    return replace(made_problem(gib, seconds, spec, **fields), bounds=family.REFERENCE_BOUNDS)


@EVERY_FAMILY
def test_a_range_as_long_as_a_found_moment_gets_16_frames(family: ModelFamily) -> None:
    plan = plan_video(problem_of(family, start_seconds=4.0, end_seconds=6.0))
    assert plan.run_config.frames == 16 and plan.interval_seconds < 0.15
    assert plan_video(problem_of(family, end_seconds=2.0)).run_config.frames == 16
    assert plan_video(problem_of(family, start_seconds=4.0, end_seconds=24.0)).run_config.frames == 40, "2 per second"


@EVERY_FAMILY
def test_a_range_of_few_frames_gets_all_of_them(family: ModelFamily) -> None:
    assert plan_video(problem_of(family, start_seconds=4.0, end_seconds=4.2)).run_config.frames == 6


@EVERY_FAMILY
def test_a_short_video_gets_the_fewest_frames_of_its_checkpoint(family: ModelFamily) -> None:
    least = family.REFERENCE_BOUNDS.min_frames
    assert plan_video(problem_of(family, 1.5)).run_config.frames == least >= 4
    assert plan_video(problem_of(family, 0.12)).run_config.frames == 2, "an even number of the three that there are"
    odd = problem_of(family, 1.5)
    assert plan_video(replace(odd, bounds=replace(odd.bounds, min_frames=5))).run_config.frames == 6


@EVERY_FAMILY
def test_the_frames_of_the_user_are_kept(family: ModelFamily) -> None:
    assert plan_video(problem_of(family, start_seconds=4.0, end_seconds=6.0, frames=2)).run_config.frames == 2


def test_time_limits_the_frames_of_a_short_range_and_the_plan_says_so() -> None:
    fields = {"start_seconds": 4.0, "end_seconds": 6.0, "size": (1008, 560), "device": made_device(24)}
    whole = plan_video(made_problem(24, **fields)).seconds.first_token_seconds
    plan = plan_video(made_problem(24, **fields, max_wait_seconds=0.6 * whole))
    assert 4 <= plan.run_config.frames < 16
    assert any(f"{plan.run_config.frames} of 16 frames (8 per second): time" in limit for limit in plan.limits)


def test_segments_of_a_whole_video_keep_the_rate() -> None:
    for end, frames in ((6.0, 4), (7.0, 6)):
        problem = made_problem(24, start_seconds=4.0, end_seconds=end, segment=True)
        assert plan_video(problem).run_config.frames == frames


def test_a_search_does_not_plan_for_dropped_tokens() -> None:
    video, config = made_video(600.0), EngineConfig(model="demo", prune=0.25)
    checkpoints = find_checkpoints("demo", local=True)
    for focus, prune in (("always", "off"), ("auto", 0.25)):
        request = Request(video.path, "a red circle", focus=focus)
        (problem,) = planning_problems(checkpoints, video, request, config, made_device(8))
        assert problem.config.prune == prune
