"""Which subtitles a plan takes, what they cost, and what is left of the video."""

from dataclasses import replace

import pytest

from tests.planner.plan_builders import SPEC_2B, made_cpu, made_problem
from vidqa.models.families.qwen3_vl import RELEASED as QWEN3
from vidqa.planner.explain import subtitle_note, unheard_note
from vidqa.planner.memory_model import kv_capacity, required_bytes
from vidqa.planner.planner import nearest_plan, try_plan
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.subtitle_budget import choose_cues, cues_in_range, most_cue_tokens
from vidqa.types import Plan
from vidqa.utils.cues import Cue, Subtitles


def lines(count: int, seconds: float, text: str = "Somebody says a few words here.") -> tuple[Cue, ...]:
    """So many lines, evenly over a time."""
    step = seconds / count
    return tuple(Cue(number * step, number * step + step / 2, f"{text} {number}") for number in range(count))


def with_lines(problem: PlanningProblem, cues: tuple[Cue, ...]) -> PlanningProblem:
    return replace(problem, video=replace(problem.video, subtitles=Subtitles("clip.srt", "en", cues)))


def planned(problem: PlanningProblem) -> Plan:
    return try_plan(problem).required_plan()


def test_without_subtitles_a_plan_is_what_it_was() -> None:
    problem = made_problem(8.0)
    plan = planned(problem)
    assert plan.subtitles is None and plan.run_config.subtitle_tokens == 0
    assert planned(replace(with_lines(problem, lines(5, 60.0)), request=replace(problem.request, subs="off"))) == plan
    assert planned(with_lines(problem, ())) == plan


def test_subtitles_are_planned_as_text() -> None:
    problem, cues = made_problem(8.0), lines(20, 60.0)
    without, plan = planned(problem), planned(with_lines(problem, cues))
    tokens = sum(most_cue_tokens(cue, SPEC_2B) for cue in cues)
    assert plan.subtitles is not None and plan.subtitles.cues == cues and plan.subtitles.left_out == 0
    assert plan.run_config.subtitle_tokens == tokens
    assert plan.prompt_tokens - plan.visual_tokens == without.prompt_tokens - without.visual_tokens + tokens
    assert plan.kv_capacity_tokens == kv_capacity(problem.spec, plan.run_config)
    assert (plan.run_config.frames, plan.visual_tokens) == (without.run_config.frames, without.visual_tokens)
    assert list(subtitle_note(plan)) == ["subtitles: 20 lines of clip.srt (en)"]


@pytest.mark.parametrize("gib", [5.0, 5.5, 6.0, 8.0, 24.0])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_video_keeps_its_share_and_everything_fits(gib: float, share: float) -> None:
    problem = made_problem(gib, seconds=3600.0, subtitle_share=share)
    without, plan = planned(problem), planned(with_lines(problem, lines(1500, 3600.0)))
    assert plan.subtitles is not None
    assert len(plan.subtitles.cues) + plan.subtitles.left_out == 1500
    assert plan.visual_tokens >= without.visual_tokens * (1 - share)
    room = problem.context_left * share
    assert plan.run_config.subtitle_tokens <= room
    assert sum(most_cue_tokens(cue, SPEC_2B) for cue in plan.subtitles.cues) <= room
    assert required_bytes(problem.spec, plan.run_config, problem.overhead) <= problem.budget_bytes
    assert plan.prompt_tokens + plan.run_config.max_tokens <= problem.spec.context_tokens


def test_time_bounds_them_too() -> None:
    """On a CPU the prefill of an hour of talk would take minutes."""
    problem = made_problem(16.0, seconds=3600.0, device=made_cpu(bf16=True), max_wait_seconds="auto")
    without, plan = planned(problem), planned(with_lines(problem, lines(1500, 3600.0)))
    assert plan.seconds.first_token_seconds <= 90
    assert plan.visual_tokens >= without.visual_tokens * 0.75
    assert plan.subtitles is not None and plan.subtitles.left_out > 1000
    (note,) = subtitle_note(plan)
    assert f"{plan.subtitles.left_out} left out to keep room for frames (--subs-share)" in note


def test_subtitles_leave_the_question_its_candidates() -> None:
    fields = {"question": "what does the red circle do?", "frames": 32, "host_bytes": 64 * 2**30}
    for seconds in (20.0, 60.0):
        alone = made_problem(8, 1200, focus="auto", max_wait_seconds=seconds, **fields)
        assert planned(alone).candidates
        assert planned(with_lines(alone, lines(600, 1200))).candidates


def test_one_short_line_is_enough() -> None:
    plan = planned(with_lines(made_problem(8.0), (Cue(1.0, 2.0, "Yes."),)))
    assert plan.subtitles is not None and len(plan.subtitles.cues) == 1
    assert list(subtitle_note(plan)) == ["subtitles: 1 line of clip.srt (en)"]


def test_given_frames_and_size_are_kept() -> None:
    problem = made_problem(8.0, seconds=3600.0, frames=8, size=(112, 84))
    plan = planned(with_lines(problem, lines(100, 3600.0)))
    assert (plan.run_config.frames, plan.run_config.width, plan.run_config.height) == (8, 112, 84)
    assert plan.subtitles is not None and plan.subtitles.left_out == 0


def test_nothing_fits_and_the_reason_is_not_the_subtitles() -> None:
    problem = replace(made_problem(8.0), budget_bytes=2**20)
    assert str(try_plan(with_lines(problem, lines(10, 60.0))).refusal) == str(try_plan(problem).refusal)
    assert nearest_plan(problem) is None


def test_families_with_text_between_slices_count_it_where_it_waits() -> None:
    spec = QWEN3["Qwen/Qwen3-VL-4B-Instruct"]
    problem, cues = made_problem(24.0, spec=spec, weights="bf16"), lines(200, 60.0, "many words " * 10)
    without, plan = planned(problem), planned(with_lines(problem, cues))
    assert plan.subtitles is not None and plan.subtitles.cues == cues
    assert plan.required_bytes > without.required_bytes
    assert plan.required_bytes <= problem.budget_bytes


def test_only_the_requested_time_counts() -> None:
    cues = lines(60, 60.0)
    problem = with_lines(made_problem(8.0, start_seconds=10.2, end_seconds=12.0), cues)
    assert cues_in_range(problem.video, problem.request) == cues[10:13]
    plan = planned(problem)
    assert plan.subtitles is not None and plan.subtitles.cues == cues[10:13] and plan.subtitles.left_out == 0
    late = with_lines(made_problem(8.0), (Cue(100.0, 101.0, "after the end"),))
    assert cues_in_range(late.video, late.request) == ()


def one_token(cue: Cue) -> int:
    return 1


def test_the_nearest_to_the_moments_are_kept() -> None:
    cues = tuple(Cue(float(second), second + 0.5, str(second)) for second in range(100))
    assert [cue.text for cue in choose_cues(cues, [20.2, 70.9], 2, one_token)] == ["20", "71"]
    assert [cue.text for cue in choose_cues(cues, [20.2, 70.9], 4, one_token)] == ["19", "20", "70", "71"]
    assert choose_cues(cues, [20.2], 0, one_token) == ()
    assert choose_cues(cues, [1.0, 2.0], 1000, one_token) == cues


def test_too_few_for_every_moment_are_spread_over_all_of_them() -> None:
    cues = tuple(Cue(float(second), second + 0.9, str(second)) for second in range(64))
    kept = [int(cue.text) for cue in choose_cues(cues, [second + 0.5 for second in range(64)], 8, one_token)]
    assert kept == [0, 8, 16, 24, 32, 40, 48, 56]


def test_a_long_line_does_not_shut_out_the_others() -> None:
    cues = (Cue(0.0, 1.0, "x" * 400), Cue(1.0, 2.0, "y"), Cue(2.0, 3.0, "z"))
    assert choose_cues(cues, [0.5], 2, lambda cue: len(cue.text)) == cues[1:]


def test_the_sound_is_said_to_be_unheard_where_nothing_is_written() -> None:
    problem = made_problem(8.0)
    loud, off = replace(problem.video, has_sound=True), replace(problem.request, subs="off")
    (note,) = unheard_note(loud, problem.request)
    assert "--subs" in note
    assert not [*unheard_note(loud, off), *unheard_note(problem.video, problem.request)]
    written = replace(loud, subtitles=Subtitles("clip.srt", "", lines(1, 1.0)))
    assert not list(unheard_note(written, problem.request))
