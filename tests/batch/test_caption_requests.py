"""Planned questions: buckets of similar clips, batch sizes that cost no quality, prompts, content ids."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.batch.scripted import CARD, CONFIG, MODEL
from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion, RequestPlanner, bucketed, request_for
from vidqa.batch.clip_record import Clip, PendingClip, Span
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.batch.run_fingerprint import make_fingerprint
from vidqa.config import EngineConfig
from vidqa.models.registry import find_checkpoints
from vidqa.planner.model_choice import forecast
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import planning_problems
from vidqa.types import Device, Request, VideoInfo
from vidqa.utils.content_hash import content_id, hash_of

LARGE_CARD = replace(CARD, free_bytes=80 * 2**30, total_bytes=80 * 2**30)


@pytest.mark.parametrize(
    ("items", "size", "max_waiting", "expected"),
    [
        ("aabacb", 2, 10, ["aa", "bb", "a", "c"]),  # full groups immediately, the rest at the end
        ("abbcdd", 9, 3, ["bb", "dd", "a", "c"]),  # the largest when too many wait
    ],
)
def test_groups_are_yielded_when_full_or_when_too_many_wait(
    items: str, size: int, max_waiting: int, expected: list[str]
) -> None:
    assert ["".join(group) for group in bucketed(items, lambda item: (item, size), max_waiting)] == expected


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 10))
def test_every_item_comes_once_in_a_group_of_its_bucket(items: list[int], max_waiting: int) -> None:
    numbered = list(enumerate(items))
    groups = list(bucketed(numbered, lambda item: (item[1], item[1] + 1), max_waiting))
    assert sorted(item for group in groups for item in group) == numbered
    assert all(len({item[1] for item in group}) == 1 and len(group) <= group[0][1] + 1 for group in groups)


def video(seconds: float, width: int = 1280, height: int = 720) -> VideoInfo:
    times = tuple(number / 25 for number in range(round(seconds * 25)))
    return VideoInfo(
        "clip.mp4", "mp4", "h264", width, height, width, height, 0, 1.0, 25.0, len(times), seconds, 0.0, True, times, {}
    )


def question_for(path: str) -> PlannedQuestion:
    return PlannedQuestion(PendingClip(Clip(path, "clip.mp4"), "c"))


def planned(video: VideoInfo, card: Device, batch: int | None = None) -> PlannedQuestion:
    checkpoints = find_checkpoints(MODEL, local=False)

    def plan(video: VideoInfo, request: Request, config: EngineConfig) -> Forecast:
        return forecast(planning_problems(checkpoints, video, request, config, card))

    question = question_for("/clips/clip.mp4")
    caption_request = CaptionRequest(PromptTemplate("", "What happens?"), Request("", ""))
    indices = RequestPlanner(caption_request, CONFIG, plan, batch).plan(question, video)
    assert question.plan is not None and question.plan.indices == indices
    return question


def test_a_batch_is_as_large_as_costs_no_frames_and_no_resolution() -> None:
    large, small, single = planned(video(10), LARGE_CARD), planned(video(10), CARD), planned(video(10), CARD, batch=1)
    assert large.batch_size == 16
    assert planned(video(10), LARGE_CARD, batch=4).batch_size == 4
    assert 1 <= small.batch_size < 16
    assert small.plan is not None and single.plan is not None
    assert (small.plan.run_config.frames, small.plan.run_config.width) == (
        single.plan.run_config.frames, single.plan.run_config.width,
    )  # fmt: skip
    assert small.plan.required_bytes <= small.plan.budget_bytes


def test_clips_with_similar_token_counts_share_a_bucket() -> None:
    buckets = [planned(video(seconds, 320, 240), CARD).bucket for seconds in (10, 10.1, 20, 60)]
    assert buckets[0] == buckets[1]
    assert len(set(buckets)) == 3


def test_a_large_batch_shares_no_bucket_with_longer_prompts() -> None:
    plan = planned(video(10, 320, 240), CARD).plan
    assert plan is not None

    def question(tokens: int, batch: int) -> PlannedQuestion:
        return replace(question_for("a"), plan=replace(plan, prompt_tokens=tokens), batch_size=batch)

    assert question(512, 257).bucket[0] != question(1024, 1).bucket[0]


def test_a_file_name_that_is_not_utf8_is_escaped_in_the_prompt() -> None:
    caption_request = CaptionRequest(PromptTemplate("", "What of {parent}?"), Request("", ""))
    request = request_for(question_for("/clips/caf\udce9/clip.mp4"), video(10), caption_request)
    assert (request.question, request.video) == ("What of caf\\udce9?", "/clips/caf\udce9/clip.mp4")


def test_a_segment_is_no_range_that_is_read_densely() -> None:
    caption_request = CaptionRequest(PromptTemplate("", "What happens?"), Request("", ""), 2.0)
    question = replace(question_for("a"), span=Span(4.0, 6.0))
    request = request_for(question, video(10), caption_request)
    assert (request.start_seconds, request.end_seconds, request.segment) == (4.0, 6.0, True)


def test_a_content_id_depends_on_bytes_not_on_the_name(tmp_path: Path) -> None:
    one, other, large = tmp_path / "one", tmp_path / "other", tmp_path / "large"
    one.write_bytes(b"a" * 1000)
    other.write_bytes(b"a" * 1000)
    assert content_id(str(one)) == content_id(str(other))
    other.write_bytes(b"a" * 999 + b"b")
    assert content_id(str(one)) != content_id(str(other))
    for place in (0, 3 * 2**20 - 1):  # the first and the last byte of a file that is sampled
        large.write_bytes(b"\0" * 3 * 2**20)
        before = content_id(str(large))
        with large.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert content_id(str(large)) != before
    assert hash_of("a", "bc") != hash_of("ab", "c")


def test_a_named_pipe_is_an_error_instead_of_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(FileNotFoundError, match="Not a regular file"):
        content_id(str(tmp_path / "clip.mp4"))


def test_a_runs_fingerprint_has_the_settings_of_earlier_journals_alone() -> None:
    """A further setting would caption again all clips that were captioned before it existed."""
    caption_request = CaptionRequest(PromptTemplate("", "What happens?"), Request("", ""))
    fingerprint = make_fingerprint(caption_request, EngineConfig(model="demo"), find_checkpoints("demo", local=True)[0])
    assert sorted(fingerprint.settings) == [
        "end_seconds", "fps", "frames", "kv", "max_tokens", "quality", "seed", "segments", "size", "start_seconds",
        "stream", "system", "temperature", "top_p", "weights",
    ]  # fmt: skip


def test_another_limit_on_time_makes_another_run() -> None:
    checkpoint = find_checkpoints("demo", local=True)[0]
    waits: tuple[Any, ...] = ("auto", None, 20.0)
    captions = CaptionRequest(PromptTemplate("", "What happens?"), Request("", ""))
    keys = {make_fingerprint(captions, EngineConfig(max_wait_seconds=wait), checkpoint).key for wait in waits}
    assert len(keys) == 3
