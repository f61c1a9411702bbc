"""Clips of a kind go together, nobody waits without end, and a batch never sees less than a clip alone would."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.batch.scripted import CARD, CONFIG, MODEL
from vidqa.batch.bucketing import groups
from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion, Preparing, request_of
from vidqa.batch.clip_record import Clip, Pending
from vidqa.batch.content_hash import hash_of, identify
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.config import EngineConfig
from vidqa.models.registry import find_checkpoints
from vidqa.planner.model_choice import forecast
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import planning_problems
from vidqa.types import Device, Request, VideoInfo
from vidqa.utils.units import parse_bytes

KINDS = st.lists(st.integers(0, 3), max_size=60)


def test_full_groups_go_at_once_and_the_rest_at_the_end() -> None:
    found = groups("aabacb", lambda item: (item, 2), 10)
    assert list(found) == [["a", "a"], ["b", "b"], ["a"], ["c"]]


def test_the_largest_group_goes_when_too_many_wait() -> None:
    assert list(groups("abbcdd", lambda item: (item, 9), 3)) == [["b", "b"], ["d", "d"], ["a"], ["c"]]


@given(KINDS, st.integers(0, 10))
def test_every_item_comes_once_in_a_group_of_its_kind(items: list[int], most: int) -> None:
    numbered = list(enumerate(items))
    found = list(groups(numbered, lambda one: (one[1], one[1] + 1), most))
    assert sorted(one for group in found for one in group) == numbered
    assert all(len({one[1] for one in group}) == 1 and len(group) <= group[0][1] + 1 for group in found)


def video(seconds: float, width: int = 1280, height: int = 720) -> VideoInfo:
    times = tuple(number / 25 for number in range(round(seconds * 25)))
    return VideoInfo(
        "clip.mp4", "mp4", "h264", width, height, width, height, 0, 1.0, 25.0, len(times), seconds, 0.0, True, times, {}
    )


def prepared(video: VideoInfo, card: Device, batch: int | None = None, **config: object) -> PlannedQuestion:
    checkpoints = find_checkpoints(MODEL, local=False)

    def plan(video: VideoInfo, request: Request, config: EngineConfig) -> Forecast:
        return forecast(planning_problems(checkpoints, video, request, config, card))

    job = PlannedQuestion(Pending(Clip("/clips/clip.mp4", "clip.mp4"), "c"))
    asking = CaptionRequest(PromptTemplate("", "What happens?"), Request("", ""))
    indices = Preparing(asking, replace(CONFIG, **config), plan, batch).prepare(job, video)  # type: ignore[arg-type]
    assert job.plan is not None and job.plan.indices == indices
    return job


def test_as_many_are_answered_at_once_as_lower_nothing() -> None:
    roomy = prepared(video(10), replace(CARD, free_bytes=parse_bytes("80GiB"), total_bytes=parse_bytes("80GiB")))
    tight = prepared(video(10), CARD)
    alone = prepared(video(10), CARD, batch=1)
    assert roomy.together == 16
    assert 1 <= tight.together < 16
    assert tight.plan is not None and alone.plan is not None
    assert (tight.plan.run_config.frames, tight.plan.run_config.width) == (
        alone.plan.run_config.frames,
        alone.plan.run_config.width,
    )
    assert tight.plan.required_bytes <= tight.plan.budget_bytes


def test_a_fixed_batch_is_the_most_too() -> None:
    card = replace(CARD, free_bytes=parse_bytes("80GiB"), total_bytes=parse_bytes("80GiB"))
    assert prepared(video(10), card, batch=4).together == 4


def test_clips_of_about_as_many_tokens_are_of_a_kind() -> None:
    kinds = [prepared(video(seconds, 320, 240), CARD).kind for seconds in (10, 10.1, 20, 60)]
    assert kinds[0] == kinds[1]
    assert len(set(kinds)) == 3


def test_content_is_the_same_under_another_name_and_another_after_a_change(tmp_path: Path) -> None:
    one, other, large = tmp_path / "one", tmp_path / "other", tmp_path / "large"
    one.write_bytes(b"a" * 1000)
    other.write_bytes(b"a" * 1000)
    assert identify(str(one)) == identify(str(other))
    other.write_bytes(b"a" * 999 + b"b")
    assert identify(str(one)) != identify(str(other))
    for place in (0, 3 * 2**20 - 1):  # the first and the last byte of a file that is not read whole
        large.write_bytes(b"\0" * 3 * 2**20)
        before = identify(str(large))
        with large.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert identify(str(large)) != before
    assert hash_of("a", "bc") != hash_of("ab", "c")


def test_a_prompt_with_a_file_name_that_is_no_text_is_asked_with_its_bytes_escaped() -> None:
    job = PlannedQuestion(Pending(Clip("/clips/caf\udce9/clip.mp4", "clip.mp4"), "c"))
    asked = request_of(job, video(10), CaptionRequest(PromptTemplate("", "What of {parent}?"), Request("", "")))
    assert (asked.question, asked.video) == ("What of caf\\udce9?", "/clips/caf\udce9/clip.mp4")
