"""Questions and searches of a session reuse each other's embeddings, and a search keeps the conversation's caches."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.clips import write_clip
from tests.engine.asking import ANSWER, CLIP, CONFIG, QUESTION, answer_in, of_kind, stages_of
from tests.engine.test_fallback import failing
from vidqa import Request, Session
from vidqa.engine import kept_caches
from vidqa.engine.prefill import Prefill
from vidqa.errors import Interrupted
from vidqa.events import Degraded, Event, Found, MemorySampled, Noted, OutOfDomain, Planned, StageStarted
from vidqa.types import Plan, Turn

TALKING = replace(CONFIG, conversation_tokens=512)
NAMED, COLOR, TEXT = "what does the red circle do?", "what color is it?", "a red circle"
FOCUSED = Request(CLIP, NAMED, frames=2, focus="auto", max_tokens=24)
FOLLOW_UP = Request(CLIP, COLOR, history=(Turn(QUESTION, ANSWER),))
LEFT_OF = {"conversation": "of the conversation", "search": "of the search"}


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every chunk that runs through the language model."""
    rows: list[int] = []
    run = Prefill._run

    def counted(self: Prefill, many: int) -> None:
        rows.append(many)
        run(self, many)

    monkeypatch.setattr(Prefill, "_run", counted)
    return rows


def ask(session: Session, request: Request) -> list[Event]:
    return list(session.ask(request))


def search(session: Session, text: str = TEXT, **how: Any) -> list[Event]:
    return list(session.find(Request(**{"video": CLIP, "question": text} | how)))


def plan_of(events: Iterable[Event]) -> Plan:
    return of_kind(events, Planned)[-1].plan


def scores(events: list[Event]) -> tuple[float, ...]:
    assert isinstance(events[-1], Found) and events[-1].plan.selection is not None
    return events[-1].plan.selection.scores


def kept_lines(plan: Plan, owner: str) -> dict[str, int]:
    return {line.name: line.bytes for line in plan.lines if line.name.endswith(LEFT_OF[owner])}


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """What sessions say that had no question or search before."""
    found = {}
    with Session(TALKING) as session:
        for name, request in (("focused", FOCUSED), ("plain", Request(CLIP, QUESTION)), ("follow-up", FOLLOW_UP)):
            session.forget()
            found[name] = answer_in(ask(session, request)).text
        for text in (TEXT, "a blue square"):
            session.forget()
            found[text] = scores(search(session, text))
    return found


def test_a_question_that_selects_reuses_what_a_search_encoded(fresh: dict[str, Any]) -> None:
    with Session(TALKING) as session:
        first = search(session)
        events = ask(session, FOCUSED)
    assert stages_of(first) == ["load", "video", "vision", "focus"]
    assert stages_of(events) == ["focus", "prefill", "decode"]
    assert len(answer_in(events).plan.candidates) == len(plan_of(first).candidates)
    assert answer_in(events).text == fresh["focused"] and answer_in(events).timing.vision_seconds == 0


def test_a_question_that_reads_all_frames_of_a_search_reuses_them_too(fresh: dict[str, Any]) -> None:
    with Session(TALKING) as session:
        search(session)
        events = ask(session, Request(CLIP, QUESTION))
    assert stages_of(events) == ["prefill", "decode"] and answer_in(events).text == fresh["plain"] == ANSWER


def test_a_second_search_reuses_what_the_first_one_encoded(fresh: dict[str, Any]) -> None:
    with Session(TALKING) as session:
        first, second = search(session), search(session, "a blue square")
    assert stages_of(second) == ["focus"]
    assert scores(first) == pytest.approx(fresh[TEXT])
    assert scores(second) == pytest.approx(fresh["a blue square"])


def test_a_search_reuses_what_a_question_that_selects_encoded(fresh: dict[str, Any]) -> None:
    with Session(TALKING) as session:
        ask(session, FOCUSED)
        events = search(session)
        again = ask(session, replace(FOCUSED, question=COLOR))
    assert stages_of(events) == ["focus"] and scores(events) == pytest.approx(fresh[TEXT])
    assert stages_of(again) == ["focus", "prefill", "decode"] and answer_in(again).text.startswith("red")
    assert kept_lines(plan_of(events), "conversation").keys() == {"KV cache, of the conversation"}  # shared embeddings


@pytest.mark.parametrize("how", [{"start_seconds": 1.0}, {"size": (84, 84)}])
def test_other_frames_are_encoded_anew(how: dict[str, Any]) -> None:
    with Session(TALKING) as session:
        search(session)
        assert stages_of(search(session, **how)) == ["video", "vision", "focus"]
        assert stages_of(ask(session, replace(FOCUSED, focus="always", **how))) == ["focus", "prefill", "decode"]


def test_another_version_of_the_file_is_encoded_anew(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(Path(CLIP).read_bytes())
    with Session(TALKING) as session:
        search(session, video=str(path))
        path.write_bytes(Path(CLIP).with_name("demo-color.mp4").read_bytes())
        assert "vision" in stages_of(search(session, video=str(path)))


def test_a_search_of_other_frames_keeps_those_of_the_conversation_too() -> None:
    few = Request(CLIP, QUESTION, frames=2)
    with Session(TALKING) as session:
        text = answer_in(ask(session, few)).text
        found = search(session)
        events = ask(session, replace(few, question=COLOR, history=(Turn(QUESTION, text),)))
    assert stages_of(found) == ["video", "vision", "focus"]
    assert kept_lines(plan_of(found), "conversation").keys() == {
        "KV cache, of the conversation", "vision embeddings, of the conversation"
    }  # fmt: skip
    assert stages_of(events) == ["prefill", "decode"] and answer_in(events).text.startswith("red")


def test_a_question_that_selects_after_one_about_the_whole_reuses_the_search_between_them() -> None:
    with Session(TALKING) as session:
        ask(session, replace(FOCUSED, question=QUESTION))
        search(session)
        events = ask(session, replace(FOCUSED, question=COLOR, history=FOLLOW_UP.history))
    assert stages_of(events) == ["focus", "prefill", "decode"] and answer_in(events).text.startswith("red")


def test_a_follow_up_after_a_search_runs_its_own_tokens_alone(prefilled: list[int], fresh: dict[str, Any]) -> None:
    with Session(TALKING) as session:
        ask(session, Request(CLIP, QUESTION))
        del prefilled[:]
        ask(session, FOLLOW_UP)
        alone = sum(prefilled)
        session.forget()
        ask(session, Request(CLIP, QUESTION))
        search(session, "a blue square")
        search(session, size=(84, 84))
        parked = session._caches.embedding_bytes() - 92_160  # without those of the 8 frames of the conversation
        del prefilled[:]
        events = ask(session, FOLLOW_UP)
    assert sum(prefilled) == alone < 40 < answer_in(events).plan.prompt_tokens
    assert stages_of(events) == ["prefill", "decode"] and answer_in(events).text == fresh["follow-up"]
    assert list(kept_lines(answer_in(events).plan, "search").values()) == [parked]


def test_what_stays_is_in_the_plan_and_the_tensors_keep_it() -> None:
    with Session(TALKING) as session:
        ask(session, Request(CLIP, QUESTION, size=(280, 280), frames=8))
        plain = plan_of(search(session, size=(56, 56)))
        for events in (search(session, size=(84, 84)), ask(session, Request(CLIP, QUESTION, frames=2))):
            plan = plan_of(events)
            assert plan.predicted_peak_bytes == max(plan.phase_bytes.values())
            peaks = [sample.tensor_peak_bytes or 0 for sample in of_kind(events, MemorySampled)]
            assert session.loaded is not None and session.loaded.model.weights_bytes < max(peaks) <= plan.tensor_bytes
    assert kept_lines(plain, "conversation")["vision embeddings, of the conversation"] > 2**18


def test_the_conversation_is_freed_where_the_search_does_not_fit_beside_it(
    monkeypatch: pytest.MonkeyPatch, fresh: dict[str, Any]
) -> None:
    with Session(TALKING) as session:
        ask(session, Request(CLIP, QUESTION))
        beside = plan_of(search(session, size=(84, 84))).required_bytes
        monkeypatch.setattr(kept_caches, "budget_bytes", lambda device, config: beside - 2**20)
        found = search(session, "a red circle", size=(84, 84))
        assert kept_lines(plan_of(found), "conversation") == {} and session._caches.question is None
        monkeypatch.undo()
        events = ask(session, FOLLOW_UP)
    assert "vision" in stages_of(events) and answer_in(events).text == fresh["follow-up"]


def test_a_searchs_embeddings_are_freed_where_a_question_does_not_fit_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Session(TALKING) as session:
        search(session, size=(84, 84))
        monkeypatch.setattr(kept_caches, "budget_bytes", lambda device, config: 2**20)
        answer = answer_in(ask(session, Request(CLIP, QUESTION)))
        assert answer.text == ANSWER and kept_lines(answer.plan, "search") == {}
        monkeypatch.undo()
        assert "vision" in stages_of(search(session, size=(84, 84)))


def test_memory_that_runs_out_in_a_search_frees_the_conversation() -> None:
    schedule = {"fault": failing("load", times=0)}
    with Session(TALKING, fault=lambda phase: schedule["fault"](phase)) as session:
        ask(session, Request(CLIP, QUESTION))
        schedule["fault"] = failing("vision", times=1)
        events = search(session, size=(84, 84))
        assert [event.phase for event in of_kind(events, Degraded)] == ["vision"]
        assert isinstance(events[-1], Found) and session._caches.question is None


@pytest.mark.parametrize(("stage", "kept"), [("vision", False), ("focus", True)])
def test_a_stopped_search_leaves_the_conversation_and_what_was_encoded(stage: str, kept: bool) -> None:
    with Session(TALKING) as session:
        ask(session, Request(CLIP, QUESTION))
        with pytest.raises(Interrupted):
            for event in session.find(Request(CLIP, TEXT, size=(84, 84))):
                if isinstance(event, StageStarted) and event.stage == stage:
                    session.cancel()
        events = ask(session, FOLLOW_UP)
        assert stages_of(events) == ["prefill", "decode"] and answer_in(events).text.startswith("red")
        assert ("vision" not in stages_of(search(session, size=(84, 84)))) is kept


def test_a_stopped_questions_embeddings_are_listed_as_of_the_conversation() -> None:
    with Session(TALKING) as session:
        with pytest.raises(Interrupted):
            for event in session.ask(FOCUSED):
                if isinstance(event, StageStarted) and event.stage == "focus":
                    session.cancel()
        found = plan_of(search(session, size=(84, 84)))
    assert kept_lines(found, "search") == {}
    assert kept_lines(found, "conversation").keys() == {"vision embeddings, of the conversation"}


def test_reused_frames_that_the_model_cannot_know_bring_the_warning(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "bars.mp4", 50, size=(320, 240))
    with Session(TALKING) as session:
        for events in (search(session, video=str(path)), search(session, "a bar", video=str(path))):
            assert len(of_kind(events, OutOfDomain)) == 1
            assert isinstance(events[-1], Found) and events[-1].out_of_domain is True
        answer = answer_in(ask(session, Request(str(path), QUESTION)))
    assert answer.out_of_domain is True and answer.timing.vision_seconds == 0


def test_notes_on_the_frames_come_with_them(tmp_path: Path) -> None:
    path, data = tmp_path / "cut.mp4", bytearray(Path(CLIP).read_bytes())
    start = data.find(b"mdat") + 4
    end = data.find(b"moov") if data.find(b"moov") > start else len(data)
    data[end - (end - start) // 4 : end - 8] = bytes((end - start) // 4 - 8)
    path.write_bytes(data)
    with Session(TALKING) as session:
        first, second = search(session, video=str(path)), search(session, "a bar", video=str(path))
    said = [[note.text for note in of_kind(events, Noted) if note.about == "frames"] for events in (first, second)]
    assert said[0] and said[0] == said[1] and stages_of(second) == ["focus"]
