"""A question about a video that the demo model cannot know: a warning with a model that fits, or a refusal."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clips import write_clip
from tests.engine.asking import CLIP, CONFIG, QUESTION, answer_in, ask, of_kind
from vidqa import Request, Session
from vidqa.engine.domain_warning import better_model
from vidqa.errors import VideoOutOfDomain
from vidqa.events import Answered, Failed, Found, Noted, OutOfDomain, TextDelta
from vidqa.models.hub import demo_folder
from vidqa.models.training_domain import DOMAIN_FILE

SENTENCE = "The demo model knows only drawn shapes: its answer about this video means nothing."


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """Return a question about black and white bars."""
    path = write_clip(tmp_path_factory.mktemp("clips") / "screen.mp4", 50, size=(320, 240))
    return Request(video=str(path), question=QUESTION)


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(CONFIG) as session:
        yield session


def test_the_warning_comes_before_the_answer_and_again_with_the_next_question(
    session: Session, screen: Request
) -> None:
    for question in (QUESTION, "how many?"):
        events = list(session.ask(replace(screen, question=question)))
        (warning,) = of_kind(events, OutOfDomain)
        assert warning.knows == "drawn shapes"
        assert re.match(r"`vidqa pull [\w.-]+` \([\d.]+ GB to download\) fits here: ", warning.advice), warning.advice
        assert events.index(warning) < events.index(of_kind(events, TextDelta)[0])
        answer = answer_in(events)
        assert answer.out_of_domain is True and answer.text
        assert [note for note in answer.notes if note.startswith(SENTENCE)] == [f"{SENTENCE} {warning.advice}"]
        assert not [note for note in of_kind(events, Noted) if SENTENCE in note.text], "once, as an event of its kind"


def test_a_drawn_clip_has_no_warning(session: Session) -> None:
    events = list(session.ask(Request(video=CLIP, question=QUESTION)))
    assert not of_kind(events, OutOfDomain) and answer_in(events).out_of_domain is False


def test_a_model_without_the_file_is_never_checked(session: Session, screen: Request, tmp_path: Path) -> None:
    """Its answers are those that they were before: the check changes nothing but the warning."""
    folder = tmp_path / "model"
    shutil.copytree(demo_folder(), folder, ignore=shutil.ignore_patterns(DOMAIN_FILE))
    checked = ask(session, screen)
    with Session(replace(CONFIG, model=str(folder))) as other:
        events = list(other.ask(screen))
    answer = answer_in(events)
    assert answer.out_of_domain is None and not of_kind(events, OutOfDomain)
    assert answer.text == checked.text and SENTENCE not in " ".join(answer.notes)


def test_a_search_says_it_too(session: Session, screen: Request) -> None:
    events = list(session.find(replace(screen, question="a red circle")))
    assert len(of_kind(events, OutOfDomain)) == 1
    assert isinstance(events[-1], Found) and events[-1].out_of_domain is True
    *_, last = session.find(Request(video=CLIP, question="a red circle"))
    assert isinstance(last, Found) and last.out_of_domain is False


def test_focus_says_it_once(session: Session, screen: Request) -> None:
    events = list(session.ask(replace(screen, focus="always", frames=4)))
    assert len(of_kind(events, OutOfDomain)) == 1 and answer_in(events).out_of_domain is True


def test_a_refusal_names_what_to_do_and_the_next_question_is_answered(screen: Request) -> None:
    with Session(replace(CONFIG, refuse_out_of_domain=True)) as session:
        with pytest.raises(VideoOutOfDomain, match=r"knows only drawn shapes.*`vidqa pull .*--allow-demo"):
            list(session.ask(screen))
        assert ask(session).text == "a red circle moves right."


@pytest.mark.parametrize("refuse", [False, True])
def test_of_several_requests_only_the_other_video_is_warned_of_or_refused(screen: Request, refuse: bool) -> None:
    requests = [Request(video=CLIP, question=QUESTION), screen, replace(screen, question="what color is it?")]
    with Session(replace(CONFIG, refuse_out_of_domain=refuse)) as session:
        last = dict(session.ask_many(requests))
    drawn = last[0]
    assert isinstance(drawn, Answered) and drawn.answer.text == "a red circle moves right."
    assert drawn.answer.out_of_domain is False and not drawn.answer.notes
    for event in (last[1], last[2]):
        if refuse:
            assert isinstance(event, Failed) and isinstance(event.error, VideoOutOfDomain)
        else:
            assert isinstance(event, Answered) and event.answer.out_of_domain is True
            assert any(note.startswith(SENTENCE) for note in event.answer.notes)


def test_where_no_real_model_fits_none_is_named(session: Session) -> None:
    video = ask(session).video
    small = replace(CONFIG, vram_bytes=2**20)
    assert better_model(video, Request(video=CLIP, question=QUESTION), small, session.forecast) == ""
