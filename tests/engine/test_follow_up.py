"""A follow-up question gives the answer that the whole conversation would give, without reading the video again."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from tests.engine.asking import ANSWER, CLIP, EMPTY, QUESTION, answer_in, stages_of
from tests.engine.test_fallback import failing
from vidqa import EngineConfig, Request, Session
from vidqa.engine.prefix_cache import CachedPrompt
from vidqa.errors import VideoNotFound
from vidqa.events import Degraded, Event, Noted, StageProgress, StageStarted
from vidqa.models.family import TextSegment, VisionSegment
from vidqa.types import Turn

CONFIG = EngineConfig(isolate_decoder=False, remember=False, conversation_tokens=512)
QUESTIONS = (QUESTION, "what color is it?", "which way does it move?", "how many objects are there?")


def events_of(session: Session, request: Request) -> list[Event]:
    return list(session.ask(request))


def prefilled(events: list[Event]) -> int:
    """Tokens that were really run through the model before the answer."""
    chunks = [event for event in events if isinstance(event, StageProgress) and event.stage == "prefill"]
    return chunks[-1].done


def converse(session: Session, questions: tuple[str, ...], system: str | None = None) -> list[list[Event]]:
    """Ask one question after the other, each with the turns before it."""
    turns: list[list[Event]] = []
    history: tuple[Turn, ...] = ()
    for question in questions:
        turns.append(events_of(session, Request(CLIP, question, history=history, system=system, max_tokens=32)))
        history += (Turn(question, answer_in(turns[-1]).text),)
    return turns


@pytest.mark.parametrize("system", [None, "Answer in English."])
def test_a_follow_up_answers_as_a_fresh_run_with_the_same_history(system: str | None) -> None:
    with Session(CONFIG) as session:
        turns = converse(session, QUESTIONS, system)
    history: tuple[Turn, ...] = ()
    with Session(CONFIG) as fresh:
        for question, events in zip(QUESTIONS, turns, strict=True):
            fresh.forget()
            request = Request(CLIP, question, history=history, system=system, max_tokens=32)
            again = answer_in(events_of(fresh, request))
            assert answer_in(events).text == again.text
            assert answer_in(events).timing.tokens == again.timing.tokens
            history += (Turn(question, again.text),)
    assert answer_in(turns[0]).text == ANSWER
    assert answer_in(turns[1]).text.startswith("red")


def test_only_the_new_turn_is_read() -> None:
    with Session(CONFIG) as session:
        turns = converse(session, QUESTIONS)
    assert {"video", "vision"} <= set(stages_of(turns[0]))
    for events in turns[1:]:
        assert stages_of(events) == ["prefill", "decode"]
        assert answer_in(events).timing.video_seconds == answer_in(events).timing.load_seconds == 0
        assert len([event for event in events if isinstance(event, StageProgress) and event.stage == "prefill"]) == 1
    assert answer_in(turns[3]).plan.indices == answer_in(turns[0]).plan.indices


@pytest.mark.parametrize("other", [{"frames": 4}, {"size": (112, 84)}, {"start_seconds": 1.0}, {"end_seconds": 2.0}])
def test_other_pictures_are_read_anew(other: dict[str, Any]) -> None:
    with Session(CONFIG) as session:
        events_of(session, Request(CLIP, QUESTION))
        assert "vision" in stages_of(events_of(session, Request(CLIP, QUESTION, **other)))


def test_a_file_that_changed_is_read_anew_and_one_that_went_is_an_error(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(CLIP, clip)
    with Session(CONFIG) as session:
        first = answer_in(events_of(session, Request(str(clip), QUESTION)))
        shutil.copy(EMPTY, clip)
        second = events_of(session, Request(str(clip), QUESTION))
        assert "vision" in stages_of(second)
        assert first.text == ANSWER and answer_in(second).text.startswith("nothing")
        clip.unlink()
        with pytest.raises(VideoNotFound):
            events_of(session, Request(str(clip), QUESTION))


def test_another_file_of_the_same_size_and_time_is_read_anew(tmp_path: Path) -> None:
    """As after `cp --preserve` of another clip over the first."""
    clip, other = tmp_path / "clip.mp4", Path(EMPTY)
    size = max(Path(CLIP).stat().st_size, other.stat().st_size) + 16
    with Session(CONFIG) as session:
        turns = []
        for source in (Path(CLIP), other):
            content = source.read_bytes()
            rest = size - len(content)
            clip.write_bytes(content + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8))  # a box of nothing
            os.utime(clip, ns=(10**18, 10**18))
            turns.append(answer_in(events_of(session, Request(str(clip), QUESTION))).text)
    assert turns == [ANSWER, "nothing visible."]


def test_a_folder_of_pictures_is_read_anew_where_a_picture_or_its_times_changed(tmp_path: Path) -> None:
    folder, times = tmp_path / "f", tmp_path / "times.txt"
    folder.mkdir()
    with av.open(CLIP) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)][::8]
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    times.write_text("".join(f"{number / 3}\n" for number in range(len(pictures))))
    timed, rated = (
        Request(str(folder), QUESTION, timestamps=str(times)),
        Request(str(folder), QUESTION, picture_fps=3.0),
    )
    with Session(CONFIG) as session:
        first = events_of(session, timed)
        assert answer_in(first).text == "a red circle moves right."
        assert "vision" not in stages_of(events_of(session, timed))
        times.write_text("".join(f"{number / 2}\n" for number in range(len(pictures))))
        assert "vision" in stages_of(events_of(session, timed))
        assert "vision" in stages_of(events_of(session, rated))
        assert "vision" in stages_of(events_of(session, replace(rated, picture_fps=2.0)))
        assert "vision" not in stages_of(events_of(session, replace(rated, picture_fps=2.0)))
        pictures[0].save(folder / "5.png")
        assert "vision" in stages_of(events_of(session, replace(rated, picture_fps=2.0)))
        events_of(session, timed)
        times.unlink()
        with pytest.raises(VideoNotFound, match=r"There is no file .*times\.txt"):
            events_of(session, timed)


def test_another_system_prompt_keeps_the_embeddings() -> None:
    with Session(CONFIG) as session:
        events_of(session, Request(CLIP, QUESTION))
        events = events_of(session, Request(CLIP, QUESTION, system="Be brief."))
    assert stages_of(events) == ["prefill", "decode"]  # neither decoded nor encoded again
    fresh = Session(CONFIG)
    with fresh:
        again = answer_in(events_of(fresh, Request(CLIP, QUESTION, system="Be brief.")))
    assert answer_in(events).text == again.text


def test_a_long_conversation_drops_its_oldest_turns_with_a_note() -> None:
    small = replace(CONFIG, conversation_tokens=64)
    with Session(small) as session:
        turns = converse(session, QUESTIONS * 4)
    notes = [[event.text for event in events if isinstance(event, Noted)] for events in turns]
    assert not notes[0]
    assert "no longer remembered" in notes[-1][-1]
    for events in turns:  # the video stays: nothing is decoded or encoded again
        assert events is turns[0] or stages_of(events) == ["prefill", "decode"]
    last = next(event for event in turns[-1] if isinstance(event, Noted))
    dropped = int(last.text.split("oldest ")[1].split()[0])
    assert 0 < dropped < len(turns) - 1  # the most recent turns stay
    with Session(small) as fresh:
        history = tuple(Turn(one, answer_in(events).text) for one, events in zip(QUESTIONS * 4, turns, strict=True))
        request = Request(CLIP, QUESTIONS[-1], history=history[dropped:-1], max_tokens=32)
        assert answer_in(events_of(fresh, request)).text == answer_in(turns[-1]).text


def test_a_conversation_that_was_not_planned_for_is_planned_anew() -> None:
    with Session(replace(CONFIG, conversation_tokens=0)) as session:
        first = events_of(session, Request(CLIP, QUESTION, max_tokens=16))
        second = events_of(session, Request(CLIP, QUESTION, max_tokens=300))
    assert "vision" in stages_of(second)
    assert answer_in(first).text == answer_in(second).text


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_stopped_question_leaves_the_video_to_the_next_one(when: str) -> None:
    with Session(CONFIG) as session:
        events_of(session, Request(CLIP, QUESTION))
        history = (Turn(QUESTION, ANSWER),)
        for event in session.ask(Request(CLIP, QUESTIONS[1], history=history)):
            if isinstance(event, StageStarted) and event.stage == when:
                break
        events = events_of(session, Request(CLIP, QUESTIONS[2], history=history))
    assert stages_of(events) == ["prefill", "decode"]
    assert answer_in(events).text == "right."


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_memory_that_runs_out_in_a_follow_up_is_survived(phase: str) -> None:
    schedule: dict[str, Callable[[str], None]] = {"fault": failing("load", times=0)}
    with Session(CONFIG, fault=lambda entered: schedule["fault"](entered)) as session:
        events_of(session, Request(CLIP, QUESTION))
        schedule["fault"] = failing(phase, times=1)
        history = (Turn(QUESTION, ANSWER),)
        events = events_of(session, Request(CLIP, QUESTIONS[1], history=history))
    assert [event.phase for event in events if isinstance(event, Degraded)] == [phase]
    assert "vision" not in stages_of(events)  # the embeddings were still there
    assert answer_in(events).text.startswith("red")


def test_shared_ids() -> None:
    class Cache:
        """Only its length is turns for."""

        length = 20

        def truncate(self, length: int) -> None:
            self.length = length

    cache = Cache()
    prefix, other = (TextSegment((1, 2)), VisionSegment(5)), (TextSegment((1, 3)), VisionSegment(5))
    read = CachedPrompt(cache, prefix, 12)  # type: ignore[arg-type]
    read.set_tail((5, 6, 7, 8, 9, 10, 11, 12, 13))
    assert read.tail == (5, 6, 7, 8, 9, 10, 11, 12)  # 20 - 2 - 10
    assert read.common_tokens(prefix, (5, 6, 7, 1)) == 3
    assert read.common_tokens(prefix, (5, 6, 7)) == 2  # the last one's logits are needed
    assert read.common_tokens(prefix, (9,)) == 0
    assert read.common_tokens(other, (5, 6)) is None
    assert CachedPrompt(cache, prefix).common_tokens(prefix, (5, 6)) is None  # type: ignore[arg-type]
    read.truncate(2)
    assert (cache.length, read.tail) == (14, (5, 6))
