"""How many frames are encoded for a question to select from, which questions select, and what it costs."""

from dataclasses import replace

import pytest

from tests.planner.plan_builders import GIB, SPEC_7B, made_cpu, made_problem, made_video
from vidqa.planner.alternatives import alternatives
from vidqa.planner.candidate_frames import may_focus
from vidqa.planner.focus_memory import parked_bytes, reference_layer, scored_slices
from vidqa.planner.memory_model import tensor_bytes
from vidqa.planner.planner import plan_video
from vidqa.planner.problem import most_text_tokens
from vidqa.planner.question_scope import asks_about_whole
from vidqa.types import Request
from vidqa.video.change_signal import make_signal

LONG = 1200.0  # seconds
NAMED = "what does the red circle do?"


@pytest.mark.parametrize(
    "question",
    [
        "Summarise the video.", "summarize this", "What happens?", "what is happening in this video?",
        "Describe the video",
        "describe the whole clip in detail", "What is the video about?", "give me an overview", "main events?",
        "Fasse das Video zusammen.", "what's happening?", "what happens at the end?", "what happens first?",
        "what is the last thing that happens?", "how does it begin?", "Give a detailed description.",
        "Describe everything you see in detail.", "describe it", "what do you see in this video?",
        "outline the video", "Please caption this.", "caption", "can you outline it?", "Give me a short outline.",
        "write a caption for this video", "suggest captions", "give me a detailed two-sentence caption",
        "Write a caption from which this video could be made again.", "what is the plot?", "what is the plot about?",
        "Caption this video in one sentence.", "Please caption this clip briefly.", "Write the caption of this video.",
        "Give me the caption for this video", "Outline the video in three bullet points",
        "Describe the plot in two sentences", "explain the plot step by step",
        "describe the plot of the film", "What's the plot of this story?", "give me the outline",
    ],
)  # fmt: skip
def test_questions_about_the_whole_stay_even(question: str) -> None:
    assert asks_about_whole(question)
    assert not may_focus(Request("clip.mp4", question, focus="auto"))


@pytest.mark.parametrize(
    "question",
    [NAMED, "what happens when the door opens?", "which color is the car?", "describe the man with the hat",
     "when does the dog bark?",
     "describe this man", "what does the dog do at the end?", "what is the first goal?",
     "what happens after the blue square appears?",
     "what is the outline of the red circle?", "what is written in the caption?", "which caption is shown?",
     "what does the plot on the screen show?", "what color is the caption?", "read the caption",
     "write down the caption", "write the caption on the wall", "When does the man write a caption under the photo?",
     "what is the caption?", "what is shown in the plot?"],
)  # fmt: skip
def test_questions_about_something_select(question: str) -> None:
    assert may_focus(Request("clip.mp4", question, focus="auto"))
    assert not may_focus(Request("clip.mp4", question)) and not may_focus(
        Request("clip.mp4", question, focus="auto", fps=1.0)
    )


def test_off_is_the_plan_of_before_and_short_clips_stay_as_they_are() -> None:
    for seconds in (10.0, LONG):
        off = plan_video(made_problem(8, seconds, question=NAMED))
        assert (off.candidates, off.host_bytes, off.run_config.candidate_frames) == ((), 0, 0)
        if seconds < LONG:
            assert plan_video(made_problem(8, seconds, question=NAMED, focus="auto")) == off


def test_candidates_come_at_the_familys_rate_and_frames_are_those_of_the_plan() -> None:
    off = plan_video(made_problem(8, LONG, question=NAMED, frames=32))
    plan = plan_video(made_problem(8, LONG, question=NAMED, frames=32, focus="auto", host_bytes=8 * GIB))
    assert plan.run_config.frames == 32 and plan.indices == off.indices
    assert len(plan.candidates) == plan.run_config.candidate_frames == 2400
    assert plan.candidate_seconds[-1] == pytest.approx(LONG, abs=0.1)
    assert plan.host_bytes == parked_bytes(plan_spec(), plan.run_config) <= 8 * GIB
    assert plan.choices == (
        "focus: 2,400 frames are looked at, and the 32 that the question points to are read; their embeddings take "
        "2.5 GiB of the host's memory",
    )
    assert plan.seconds.vision_seconds > 20 * off.seconds.vision_seconds
    assert plan.seconds.prefill_seconds > off.seconds.prefill_seconds


def plan_spec() -> object:
    return made_problem(8).spec


def test_host_memory_limits_the_candidates() -> None:
    problem = made_problem(8, LONG, question=NAMED, frames=32, focus="auto", host_bytes=GIB // 8)
    plan = plan_video(problem)
    assert 64 <= len(plan.candidates) < 2400 and plan.host_bytes <= GIB // 8
    none = plan_video(replace(problem, host_bytes=2**20))
    assert none.candidates == ()
    assert none.choices == (
        "focus: even, there is no room for enough frames to choose from: 64 would take 67.5 MiB, and 1.0 MiB of the "
        "host's memory are for them; a smaller --size makes room",
    )


def test_the_wait_limits_the_candidates() -> None:
    problem = made_problem(8, LONG, question=NAMED, frames=32, focus="auto", host_bytes=64 * GIB, max_wait_seconds=60.0)
    plan = plan_video(problem)
    assert plan.seconds.first_token_seconds <= 60.0
    assert len(plan.candidates) < len(plan_video(made_problem(
        8, LONG, question=NAMED, frames=32, focus="auto", host_bytes=64 * GIB
    )).candidates)  # fmt: skip
    (line,) = plan.choices
    assert ". All 2,400 would take about " in line
    assert line.endswith("(--max-wait 60); a longer --max-wait, fewer --frames or a smaller --size make room")


def test_fewer_frames_are_read_where_that_makes_room_to_choose() -> None:
    """The time is just too short for twice as many candidates as the plan has frames."""
    problem = made_problem(16, 3600.0, question=NAMED, focus="auto", host_bytes=64 * GIB, max_wait_seconds=66.0)
    even = plan_video(replace(problem, request=replace(problem.request, focus="off")))
    plan = plan_video(problem)
    assert (even.run_config.frames, even.candidates) == (224, ())
    assert plan.run_config.frames == 128 and 448 <= len(plan.candidates) < 500
    assert plan.seconds.first_token_seconds <= 66 and plan.run_config.width == even.run_config.width
    rest = "128 of 7,200 frames (2 per second): the rest of what fits is for frames to choose from (--focus)"
    assert rest in plan.limits and not any("rest of what fits" in limit for limit in even.limits)
    assert "the 128 that the question points to are read, fewer than an even plan's, to leave room" in plan.choices[0]
    tight = plan_video(replace(problem, config=replace(problem.config, max_wait_seconds=65.5)))
    assert tight.run_config.frames == 112 and len(tight.candidates) >= 448
    for other in alternatives(problem, plan):
        assert not other.plan.candidates and "fewer than" not in " ".join(other.plan.choices), "all of it is read"


def test_all_frames_are_tried_first_since_they_need_no_scan() -> None:
    """Of two frames a second, 2,400 are all that the video has: there is no time of a scan."""
    video = made_video(1200, fps=2.0)
    problem = made_problem(8, 1200, question=NAMED, focus="auto", frames=32, sample="auto", host_bytes=64 * GIB)
    problem = replace(problem, video=video, scan_seconds=9.0)
    free = plan_video(problem)
    assert len(free.candidates) == 2400
    limit = free.seconds.first_token_seconds + 1.0
    assert len(plan_video(replace(problem, config=replace(problem.config, max_wait_seconds=limit))).candidates) == 2400


def test_frames_that_were_asked_for_and_half_of_which_make_no_room_stay_and_a_line_says_what_helps() -> None:
    problem = made_problem(16, 3600.0, question=NAMED, focus="auto", host_bytes=64 * GIB, max_wait_seconds=40.0)
    asked = replace(problem, request=replace(problem.request, frames=224))
    for one, seconds in ((problem, 65), (asked, 78)):
        plan = plan_video(one)
        assert plan.run_config.frames == 224 and not plan.candidates
        assert plan.choices == (
            f"focus: even, there is no room for enough frames to choose from: 448 would take about {seconds} s to the "
            "first word (--max-wait 40); a longer --max-wait, fewer --frames or a smaller --size make room",
        )


def test_where_the_host_is_the_device_the_budget_holds_them() -> None:
    problem = made_problem(
        16, LONG, device=made_cpu(bf16=True), question=NAMED, frames=16, focus="auto", max_wait_seconds=None
    )
    plan = plan_video(replace(problem, overhead=replace(problem.overhead, host_pixels=1280 * 720)))
    assert plan.candidates and plan.host_bytes == 0 and plan.required_bytes <= plan.budget_bytes
    names = [line.name for line in plan.lines]
    assert "vision embeddings, kept" in names


def test_scoring_takes_little_beside_the_cache() -> None:
    plan = plan_video(made_problem(24, LONG, SPEC_7B, question=NAMED, frames=64, focus="auto", host_bytes=64 * GIB))
    run_config = plan.run_config
    plain = replace(run_config, candidate_frames=0)
    more = tensor_bytes(SPEC_7B, run_config)["prefill"] - tensor_bytes(SPEC_7B, plain)["prefill"]
    assert more < 0.2 * GIB
    assert reference_layer(SPEC_7B) == 19
    assert 4 <= scored_slices(SPEC_7B, run_config) <= 32


@pytest.mark.parametrize("events", [1, 25])  # as few that even frames would miss them, and more than are read
def test_candidates_lie_where_the_video_changes(events: int) -> None:
    problem = made_problem(8, 600.0, question=NAMED, frames=32, focus="auto", sample="auto", host_bytes=8 * GIB)
    starts = [round((number + 0.5) * 15_000 / events) for number in range(events)]
    changing = {index for start in starts for index in range(start, start + 20)}  # 0.8 s each
    signal = make_signal(problem.video, range(15_000), [0.5 if index in changing else 0.0 for index in range(15_000)])
    plan = plan_video(replace(problem, signal=signal))
    assert len(plan.candidates) == 1200
    seen = set(plan.candidates) & changing
    assert len(seen) >= 18 * events  # even ones are 0.5 s apart: two of each
    assert plan.sampling is not None and plan.sampling.kind == "change"


def test_candidates_stay_even_where_all_of_the_video_changes() -> None:
    problem = made_problem(8, 600.0, question=NAMED, frames=32, focus="auto", sample="auto", host_bytes=8 * GIB)
    plan = plan_video(replace(problem, signal=make_signal(problem.video, range(15_000), [0.5] * 15_000)))
    even = plan_video(replace(problem, request=replace(problem.request, sample="uniform")))
    assert plan.candidates == even.candidates and plan.sampling is not None and plan.sampling.kind == "uniform"


def test_a_plan_without_a_question_has_room_for_one_that_selects_and_claims_nothing_about_it() -> None:
    settings = {"frames": 32, "focus": "auto", "host_bytes": 8 * GIB}
    unasked, asked, even = (
        plan_video(made_problem(8, LONG, question=question, **settings)) for question in ("", NAMED, "what happens?")
    )
    assert unasked.candidates == asked.candidates and unasked.lines == asked.lines and not even.candidates
    assert any("the 32 that a question points to are read" in choice for choice in unasked.choices)
    assert not any("about the whole" in choice for choice in unasked.choices)
    assert any("about the whole" in choice for choice in even.choices)
    assert most_text_tokens(Request("clip.mp4", "")) == most_text_tokens(Request("clip.mp4", "what happens?"))


def test_a_search_reads_none_of_the_frames_that_it_looks_at() -> None:
    plan = plan_video(made_problem(8, LONG, question=NAMED, focus="always", host_bytes=8 * GIB))
    (line,) = plan.choices
    assert "frames are looked at; their embeddings take" in line
