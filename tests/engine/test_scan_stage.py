"""Questions whose frames follow the video's change: the demo model sees a short event that even frames miss."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from demo_world.world import Actor, Scene
from tests.engine.asking import CLIP, CONFIG, QUESTION, answer_in, of_kind, stages_of
from vidqa import Request, Session
from vidqa.engine.request_state import video_cache_key
from vidqa.errors import Interrupted
from vidqa.events import Answered, Planned, StageProgress
from vidqa.planner.problem import scan_limit_seconds
from vidqa.planner.search import needs_scan
from vidqa.types import Answer, VideoInfo
from vidqa.utils.frame_choice import Sampling
from vidqa.video.reader import probe_facts
from vidqa.video.signal_cache import SIGNALS

_RED = Actor(
    kind="moves", shape="circle", color="red", end_color="red", direction="right", across=0.34,
    x=0.16, y=0.52, end_x=0.84, end_y=0.52, appear=0.0, leave=2.0, start=0.0, stop=1.0, change=0.5, turn_degrees=0,
)  # fmt: skip
_EVENT = LongEvent(Scene((_RED,), "plain", 0), 41.3, 1.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two minutes of stillness with a second in which a circle crosses the picture."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    write_long_clip(LongClip(120.0, (_EVENT,), seed=3, fps=25), path)
    return str(path)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(CONFIG) as opened:
        yield opened


def inside(answer: Answer) -> int:
    return sum(41.3 <= seconds < 42.3 for seconds in answer.plan.timestamps_seconds)


def test_auto_sees_what_even_frames_miss(session: Session, clip: str) -> None:
    even = answer_in(list(session.ask(Request(clip, QUESTION, frames=12))))
    assert even.text == "nothing visible." and inside(even) == 0 and even.plan.sampling is None
    events = list(session.ask(Request(clip, QUESTION, frames=12, sample="auto")))
    found = answer_in(events)
    assert found.text == "a red circle moves right." and inside(found) >= 4
    assert len(found.plan.indices) == 12 and found.plan.sampling is not None
    assert found.plan.run_config == even.plan.run_config
    assert found.plan.choices[-1].startswith("frames by change: ")
    stages = stages_of(events)
    assert stages[0] == "scan" and found.plan.seconds.scan_seconds > 0
    done = [event for event in of_kind(events, StageProgress) if event.stage == "scan"]
    assert done[-1].done == done[-1].total == 3000
    (planned,) = of_kind(events, Planned)
    assert planned.plan.indices == found.plan.indices


def test_the_next_question_scans_nothing(session: Session, clip: str) -> None:
    list(session.ask(Request(clip, QUESTION, frames=12, sample="change")))
    events = list(session.ask(Request(clip, "what colour is it?", frames=10, sample="change")))
    assert "scan" not in stages_of(events) and inside(answer_in(events)) >= 4
    assert answer_in(events).plan.seconds.scan_seconds == 0


def test_several_requests_at_once_have_their_own_frames(session: Session, clip: str) -> None:
    requests = [Request(clip, QUESTION, frames=12, sample=sample) for sample in ("uniform", "change")]
    answers = {
        number: event.answer for number, event in session.ask_many(requests) if isinstance(event, Answered)
    }  # fmt: skip
    assert [answers[0].text, answers[1].text] == ["nothing visible.", "a red circle moves right."]


def test_an_ordinary_clip_keeps_its_even_frames_and_its_answer(session: Session) -> None:
    even = answer_in(list(session.ask(Request(CLIP, QUESTION))))
    events = list(session.ask(Request(CLIP, QUESTION, sample="auto")))
    auto = answer_in(events)
    assert auto.text == even.text and auto.plan.indices == even.plan.indices
    assert auto.plan.sampling == Sampling("uniform", "they are 0.6 s apart and miss little")
    assert auto.plan.limits == even.plan.limits
    assert "scan" not in stages_of(events) and auto.plan.seconds.scan_seconds == 0


def test_frames_that_lie_closely_are_scanned_where_repeats_make_room(session: Session) -> None:
    request = Request("not-scanned.mp4", QUESTION, sample="auto")
    problem = session.forecast(_video(), request).problem
    plan = session.forecast(_video(), request).required_plan()
    assert not needs_scan(problem, plan)
    assert needs_scan(problem, replace(plan, run_config=replace(plan.run_config, drop_repeats=True)))
    few = session.forecast(_video(), replace(request, frames=6))
    assert few.required_plan().interval_seconds < 1 and not needs_scan(few.problem, few.required_plan())
    change = session.forecast(_video(), replace(request, sample="change"))
    assert change.required_plan().sampling is None and needs_scan(change.problem, change.required_plan())


@pytest.mark.parametrize(
    ("frames", "reason"),
    [(1, "one frame is too few to follow the change"), (2, "2 frames are too few to follow the change"),
     (100_000, "there are no other frames to choose")],
)  # fmt: skip
def test_frames_that_stay_where_they_are_take_no_scan_and_say_why(session: Session, frames: int, reason: str) -> None:
    request = Request("not-scanned.mp4", QUESTION, frames=frames, sample="change", max_tokens=8)
    found = session.forecast(replace(_video(), frame_count=40, pts_seconds=_video().pts_seconds[:40]), request)
    plan = found.required_plan()
    assert plan.sampling == Sampling("uniform", reason)
    assert not needs_scan(found.problem, plan) and plan.seconds.scan_seconds == 0


def test_distant_frames_are_scanned(session: Session, clip: str) -> None:
    distant = session.forecast(probe_facts(clip), Request("not-scanned.mp4", QUESTION, frames=12, sample="auto"))
    plan = distant.required_plan()
    assert plan.sampling is None and needs_scan(distant.problem, plan) and plan.seconds.scan_seconds > 0


def test_frames_of_different_sampling_are_not_reused(clip: str) -> None:
    request = Request(clip, QUESTION)
    assert video_cache_key(request) != video_cache_key(replace(request, sample="change"))


def test_a_scan_can_be_stopped(tmp_path: Path) -> None:
    path = tmp_path / "other.mp4"
    write_long_clip(LongClip(60.0, (replace(_EVENT, start_seconds=20.0),), seed=7), path)
    with Session(CONFIG) as session:
        request = Request(str(path), QUESTION, frames=12, sample="change")
        for event in session.ask(request):
            assert isinstance(event, StageProgress) or stages_of([event]) == ["scan"]
            session.cancel()
            break
        events = session.ask(request)
        with pytest.raises(Interrupted, match="scanned"):
            for _ in events:
                session.cancel()
        assert SIGNALS.find(request, on_disk=False) is None
        assert answer_in(list(session.ask(request))).plan.sampling is not None


@pytest.mark.parametrize("kind", ["plan", "see"])
def test_a_plan_after_a_stop_scans(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "other.mp4"
    write_long_clip(LongClip(60.0, (replace(_EVENT, start_seconds=20.0),), seed=8), path)
    request = Request(str(path), QUESTION, frames=12, sample="change")
    with Session(CONFIG) as session:
        session.cancel()
        plan = session.plan(request) if kind == "plan" else session.see(request)[0]
    assert plan.sampling is not None


def test_a_forecast_uses_a_known_signal_and_opens_nothing(session: Session, clip: str) -> None:
    request = Request(clip, QUESTION, frames=12, sample="change")
    plan = answer_in(list(session.ask(request))).plan
    video = answer_in(list(session.ask(request))).video
    found = session.forecast(video, request)
    assert found.problem.signal is not None and found.required_plan().indices == plan.indices


def test_the_scan_has_a_part_of_the_time() -> None:
    device = Session(CONFIG).forecast(_video(), Request(CLIP, QUESTION)).problem.device
    limits = [
        scan_limit_seconds(device, replace(CONFIG, max_wait_seconds=wait), first)
        for wait, first in (("auto", 1.0), ("auto", 60.0), ("auto", 200.0), (6.0, 1.0), (None, 150.0))
    ]
    assert limits == [4.0, 15.0, 30.0, 2.0, 37.5]
    video = replace(_video(), coded_width=19_200, coded_height=10_800)  # slow to decode
    unscanned = Session(CONFIG).forecast(video, Request("not-scanned.mp4", QUESTION, sample="change"))
    assert unscanned.required_plan().seconds.scan_seconds == 4.0
    assert "scan" not in str(unscanned.required_plan().limits)
    close = Session(CONFIG).forecast(video, Request("not-scanned.mp4", QUESTION, sample="auto"))
    assert close.required_plan().seconds.scan_seconds == 0


def _video() -> VideoInfo:

    return probe_facts(CLIP)
