"""A question selects its frames from candidates that are encoded once: in a session, with follow-ups and faults."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from tests.engine.asking import ANSWER, CLIP, CONFIG, QUESTION, TWO_EVENTS, answer_in, of_kind, stages_of
from tests.engine.test_fallback import failing
from tests.engine.test_scan_stage import _EVENT
from tests.subtitle_files import srt
from vidqa import Request, Session
from vidqa.engine.frame_focus import nearest_slices
from vidqa.engine.prompt import build_prompt, layout_of, text_tokens
from vidqa.errors import Interrupted
from vidqa.events import Degraded, Event, Found, Noted, StageProgress, StageStarted
from vidqa.types import Turn
from vidqa.utils.cues import Cue
from vidqa.video.reader import open_video

NAMED = "what does the red circle do?"
COLOR = "what color is it?"
FOCUSED = Request(CLIP, NAMED, frames=4, focus="always", max_tokens=24)
TALKING = replace(CONFIG, conversation_tokens=512)


class CountingOpener:
    """Opens videos, and counts how often and which frames were read."""

    def __init__(self) -> None:
        self.opened = 0

    def __call__(self, request: Request, stopped: Any) -> Any:
        self.opened += 1
        return open_video(request.video, isolated=False, stopped=stopped)


def events_of(session: Session, request: Request) -> list[Event]:
    return list(session.ask(request))


def prefilled(events: list[Event]) -> list[int]:
    return [event.done for event in of_kind(events, StageProgress) if event.stage == "prefill"]


def test_off_and_a_short_clip_are_what_they_were() -> None:
    plain = Request(CLIP, QUESTION, max_tokens=24)
    with Session(CONFIG) as session:
        answers = []
        for request in (plain, replace(plain, focus="off"), replace(plain, focus="auto")):
            session.forget()
            events = events_of(session, request)
            answers.append(answer_in(events))
            assert "focus" not in stages_of(events)
    first, *others = answers
    assert first.text == ANSWER and first.plan.candidates == () and first.plan.selection is None
    for other in others:
        same = replace(other.plan, seconds=first.plan.seconds, budget_bytes=0, lines=(), phase_bytes={})
        assert (other.text, same) == (
            first.text, replace(first.plan, budget_bytes=0, lines=(), phase_bytes={})
        )  # fmt: skip


def test_a_question_selects_and_says_so() -> None:
    with Session(CONFIG) as session:
        events = events_of(session, FOCUSED)
    answer, plan = answer_in(events), answer_in(events).plan
    assert stages_of(events)[:4] == ["load", "video", "vision", "focus"]
    assert plan.run_config.frames == len(plan.indices) == 4 < len(plan.candidates) == plan.run_config.candidate_frames
    assert plan.selection is not None and len(plan.selection.scores) == len(plan.candidates) // 2
    assert [place // 2 for place in plan.frame_places[::2]] == list(plan.selection.chosen)
    assert plan.indices == tuple(plan.candidates[place] for place in plan.frame_places)
    assert list(plan.timestamps_seconds) == sorted(plan.timestamps_seconds)
    notes = [note for note in answer.notes if note.startswith("looked at")]
    assert notes and f"looked at {len(plan.candidates)} frames, read the 4 that" in notes[0]
    assert plan.selection.scoring_seconds > 0
    assert "right" in answer.text  # also of a model that does not know questions by name


def test_a_follow_up_selects_anew_without_opening_the_video() -> None:
    opener = CountingOpener()
    with Session(TALKING, opener=opener) as session:
        first = events_of(session, FOCUSED)
        answer = answer_in(first)
        history = (Turn(NAMED, answer.text),)
        second = events_of(session, replace(FOCUSED, question=COLOR, history=history))
        again = events_of(session, replace(FOCUSED, question=COLOR, history=history))
    assert opener.opened == 1
    assert stages_of(second) == ["focus", "prefill", "decode"] == stages_of(again)
    assert answer_in(second).text.startswith("red")
    scores = [answer_in(events).plan.selection for events in (first, second, again)]
    assert scores[0] is not None and scores[1] is not None and scores[2] is not None
    assert scores[0].scores != scores[1].scores == scores[2].scores
    # The same selection leaves its prompt in the cache: only the last ids run again.
    assert len(prefilled(again)) == 1 and answer_in(again).text == answer_in(second).text


def test_a_follow_up_is_what_a_fresh_session_answers() -> None:
    with Session(TALKING) as session:
        first = answer_in(events_of(session, FOCUSED))
        request = replace(FOCUSED, question=COLOR, history=(Turn(NAMED, first.text),))
        second = answer_in(events_of(session, request))
        session.forget()
        fresh = answer_in(events_of(session, request))
    assert second.text == fresh.text and second.plan.indices == fresh.plan.indices


def test_a_question_about_the_whole_reads_what_is_nearest_to_the_plans_frames_and_scores_nothing() -> None:
    with Session(TALKING) as session:
        events_of(session, FOCUSED)
        events = events_of(session, replace(FOCUSED, question=QUESTION))
    plan = answer_in(events).plan
    assert stages_of(events) == ["prefill", "decode"]
    assert plan.selection is not None and plan.selection.scores == ()
    assert plan.selection.chosen == (0, 3)
    assert any("the question is about the whole" in event.text for event in of_kind(events, Noted))


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [([0.4, 5.0, 8.6], (0, 5, 9)), ([4.0, 4.1, 4.2], (4, 5, 6)), ([9.0, 9.0, 9.0], (7, 8, 9)), ([-1.0, 30.0], (0, 9)),
     ([5.0] * 12, tuple(range(10)))],
)  # fmt: skip
def test_each_wanted_time_has_a_slice_of_its_own(wanted: list[float], chosen: tuple[int, ...]) -> None:
    assert nearest_slices(range(10), wanted) == chosen


def test_a_question_about_the_whole_keeps_the_frames_by_change_after_one_that_selected(tmp_path: Path) -> None:
    """Three short events in four minutes: evenly read candidates would show none of them."""
    scene, events = _EVENT.scene, (41.3, 118.7, 200.2)
    path = tmp_path / "long.mp4"
    write_long_clip(LongClip(240.0, tuple(LongEvent(scene, at, 0.8) for at in events), seed=3, fps=25), path)
    request = Request(str(path), QUESTION, frames=16, focus="auto", sample="auto", max_tokens=24)
    with Session(TALKING) as session:
        fresh = answer_in(events_of(session, request))
        selected = answer_in(events_of(session, replace(request, question="which colour is the circle?")))
        again = answer_in(events_of(session, request))
    assert selected.plan.selection is not None and selected.plan.selection.scores
    assert again.plan.selection is not None and not again.plan.selection.scores
    for plan in (fresh.plan, again.plan):
        assert all(any(at <= seconds < at + 0.8 for seconds in plan.timestamps_seconds) for at in events)
    assert again.text == fresh.text
    assert any("read the 16 nearest to the plan's own frames" in note for note in again.notes)


def test_a_question_that_selects_after_one_about_the_whole_encodes_candidates() -> None:
    """The first encoded the frames of an even plan alone."""
    request = replace(FOCUSED, focus="auto", frames=2)
    with Session(TALKING) as session:
        even = events_of(session, replace(request, question=QUESTION))
        events = events_of(session, request)
    assert answer_in(even).plan.candidates == () and "vision" in stages_of(events)
    assert answer_in(events).plan.candidates


def test_off_after_a_question_that_selected_reads_evenly() -> None:
    with Session(TALKING) as session:
        selected = answer_in(events_of(session, FOCUSED))
        even = answer_in(events_of(session, replace(FOCUSED, focus="off")))
        session.forget()
        fresh = answer_in(events_of(session, replace(FOCUSED, focus="off")))
    assert selected.plan.selection is not None
    assert even.plan.selection is None and even.plan.indices == fresh.plan.indices and even.text == fresh.text


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_memory_that_runs_out_keeps_the_candidates(phase: str) -> None:
    opener = CountingOpener()
    with Session(CONFIG, fault=failing(phase, times=1), opener=opener) as session:
        events = events_of(session, FOCUSED)
    assert [event.phase for event in of_kind(events, Degraded)] == [phase]
    assert opener.opened == 1 and stages_of(events).count("vision") == 1
    assert "right" in answer_in(events).text


def test_notes_of_a_larger_plan_end_with_it() -> None:
    """Each attempt says what it selected; the answer has what the last one did, and what is true of the request."""
    request = replace(FOCUSED, video=TWO_EVENTS, frames=None, system="Be brief.")
    with Session(CONFIG, fault=failing("decode", times=2)) as session:
        events = events_of(session, request)
    answer, said = answer_in(events), [event.text for event in of_kind(events, Noted)]
    assert [event.step for event in of_kind(events, Degraded)] == ["int8 KV cache", "half of the visual tokens"]
    assert len(set(said)) == len(said) >= 2 and all(note.startswith("looked at") for note in said)
    assert answer.notes == (said[-1],)
    assert f"looked at {len(answer.plan.candidates)} frames, read the {len(answer.plan.indices)} that" in said[-1]
    assert len(answer.degraded) == 2


def test_a_stop_while_frames_are_selected_leaves_the_candidates_to_the_next_question() -> None:
    opener = CountingOpener()
    with Session(TALKING, opener=opener) as session:
        events_of(session, FOCUSED)
        with pytest.raises(Interrupted):
            for event in session.ask(replace(FOCUSED, question="which way does it go?")):
                if isinstance(event, StageStarted) and event.stage == "focus":
                    session.cancel()
        events = events_of(session, replace(FOCUSED, question=COLOR))
    assert answer_in(events).text.startswith("red")


def test_a_stop_while_frames_are_selected_leaves_the_cached_prompt_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds the question before the stopped one: the same frames do not make it the stopped one's."""
    monkeypatch.setattr("vidqa.engine.frame_focus.select_slices", lambda scores, seconds, count: (0, 3))
    with Session(TALKING) as session:
        fresh = answer_in(events_of(session, replace(FOCUSED, question=COLOR)))
        session.forget()
        events_of(session, FOCUSED)
        with pytest.raises(Interrupted):
            for event in session.ask(replace(FOCUSED, question=COLOR)):
                if isinstance(event, StageStarted) and event.stage == "focus":
                    session.cancel()
        events = events_of(session, replace(FOCUSED, question=COLOR))
    assert "vision" not in stages_of(events)
    assert answer_in(events).text == fresh.text


def test_a_search_after_a_question_reads_its_candidates() -> None:
    opener = CountingOpener()
    with Session(TALKING, opener=opener) as session:
        question = Request(CLIP, "a red circle", focus="always", max_tokens=1)
        events_of(session, question)
        events = list(session.find(question))
        again = events_of(session, question)
    assert isinstance(events[-1], Found) and stages_of(events) == ["focus"]
    assert opener.opened == 2  # for the plan of the search: nothing is decoded
    assert stages_of(again) == ["focus", "prefill", "decode"]


def test_several_at_once_answer_those_that_select_alone() -> None:
    even = Request(CLIP, QUESTION, frames=4, max_tokens=24)
    with Session(CONFIG) as session:
        answers = {number: event for number, event in session.ask_many([even, FOCUSED, even])}
    texts = [answer_in([answers[number]]) for number in range(3)]
    assert texts[0].text == texts[2].text == ANSWER
    assert texts[1].plan.selection is not None and texts[0].plan.selection is None


def test_find_scores_the_whole_video() -> None:
    with Session(CONFIG) as session:
        events = list(session.find(Request(CLIP, "a red circle")))
        found = events[-1]
        assert isinstance(found, Found) and found.plan.selection is not None
        shown, pictures = session.pictures(Request(CLIP, ""), replace(found.plan, indices=(0, 5)))
    assert stages_of(events) == ["load", "video", "vision", "focus"]
    assert len(found.plan.selection.scores) == len(found.plan.selection.seconds) == len(found.plan.candidates) // 2
    assert len(pictures) == 2 and pictures[0].shape[:2] == (shown.run_config.height, shown.run_config.width)


def test_subtitles_follow_the_selected_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan chose them for even frames; they are chosen anew, of all lines, within the tokens planned for them."""
    clip = tmp_path / "clip.mp4"
    shutil.copy(CLIP, clip)
    lines = [Cue(n / 50, n / 50 + 0.01, f"line {n} of a talk") for n in range(199)]
    clip.with_suffix(".srt").write_text(srt(lines))
    request, selections = replace(FOCUSED, video=str(clip)), iter([(0, 3), (1, 2)])
    monkeypatch.setattr("vidqa.engine.frame_focus.select_slices", lambda scores, seconds, count: next(selections))
    read, places = set[tuple[Cue, ...]](), None
    with Session(replace(TALKING, subtitle_share=0.01)) as session:
        for question in (NAMED, COLOR, "what happens?"):
            events = events_of(session, replace(request, question=question))
            plan = answer_in(events).plan
            assert plan.subtitles is not None and plan.subtitles.left_out > 100
            for seconds in plan.timestamps_seconds:
                nearest = min(abs(cue.start_seconds - seconds) for cue in plan.subtitles.cues)
                assert nearest <= 0.021, (question, seconds)  # the time between two lines
            assert session.loaded is not None
            prompt = build_prompt(session.loaded, question, None)
            text, bare = (
                text_tokens(layout_of(prompt, one, session.loaded)) for one in (plan, replace(plan, subtitles=None))
            )
            assert text - bare <= plan.run_config.subtitle_tokens
            assert plan.prompt_tokens == plan.visual_tokens + text
            said = [event.text for event in of_kind(events, Noted) if event.text.startswith("subtitles: ")]
            assert len(said) == (plan.frame_places != places)  # else the lines are in the cache already
            for note in said:
                assert note.startswith(f"subtitles: {len(plan.subtitles.cues)} line")
                assert f"{plan.subtitles.left_out} left out" in note
            read.add(plan.subtitles.cues)
            places = plan.frame_places
    assert len(read) == 2
