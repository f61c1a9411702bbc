"""The history: what is saved is found again, and deleted text is in no file."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answer_builders import CLIP, made_answer, made_clip
from vidqa.errors import HistoryError
from vidqa.history.database import fold
from vidqa.history.store import History


@pytest.fixture
def history() -> History:
    """A history in memory."""
    return History(None)


@pytest.fixture
def session(history: History) -> int:
    """The id of a session in it."""
    return history.begin_session(CLIP, "demo")


def listed(history: History, session: int) -> list[tuple[str, str, str]]:
    """Question, answer and state of each turn that is listed."""
    return [(turn.question, turn.answer, turn.state) for turn in history.turns(session)]


def ask(history: History, session: int, question: str, answer: str) -> int:
    """A turn that was answered."""
    turn = history.begin_turn(session, question)
    history.finish_turn(turn, made_answer(answer))
    return turn


def test_a_reopened_history_has_the_same_sessions_and_turns(tmp_path: Path) -> None:
    history = History(tmp_path / "state" / "history.sqlite3")
    session = history.begin_session(made_clip("/videos/a.mp4"), "demo")
    turn = history.begin_turn(session, "what happens?", 5.0, 20.0)
    assert listed(history, session) == [("what happens?", "", "running")]
    history.save_partial(turn, "A red")
    assert listed(history, session) == [("what happens?", "A red", "running")]
    history.finish_turn(turn, made_answer("A red circle."))
    before = history.sessions(10), history.turns(session)
    history.close()

    again = History(tmp_path / "state" / "history.sqlite3")
    assert (again.sessions(10), again.turns(session)) == before
    (saved,), (found,) = before
    assert (saved.title, saved.video_path, saved.model) == ("what happens?", "/videos/a.mp4", "demo")
    assert saved.turn_count == 1
    assert (saved.video_seconds, saved.video_width, saved.video_height) == (60.0, 1280, 720)
    assert saved.created <= found.created <= found.updated == saved.updated
    assert (found.state, found.finish_reason, found.answer) == ("answered", "stop", "A red circle.")
    assert (found.start_seconds, found.end_seconds) == (5.0, 20.0)
    assert (found.plan["frames"], found.plan["weights"], found.plan["width"]) == (8, "bf16", 1008)
    assert (found.usage["tokens"], found.usage["tokens_per_s"]) == (11, 10.0)
    assert found.usage["measured_peak_bytes"] == 5 * 2**30
    assert (found.notes, found.degraded, found.error) == (("a note",), ("fewer frames",), "")
    again.close()


def test_stopped_and_failed_turns_keep_their_text(history: History, session: int) -> None:
    for state in ("stopped", "failed"):
        turn = history.begin_turn(session, state)
        history.save_partial(turn, "so far")
        history.fail_turn(turn, "Why it ended.", state)
    cancelled = history.begin_turn(session, "cancelled")
    history.finish_turn(cancelled, made_answer("half", "cancelled"))
    assert listed(history, session) == [
        ("stopped", "so far", "stopped"), ("failed", "so far", "failed"), ("cancelled", "half", "stopped")
    ]  # fmt: skip
    assert [turn.error for turn in history.turns(session)] == ["Why it ended.", "Why it ended.", ""]


def test_sessions_are_listed_by_their_last_use_and_only_with_a_turn(history: History) -> None:
    first, second, _ = (history.begin_session(made_clip(f"/videos/{name}.mp4"), "demo") for name in "abc")
    ask(history, first, "one", "1")
    ask(history, second, "two", "2")
    assert [saved.title for saved in history.sessions(10)] == ["two", "one"]
    ask(history, first, "three", "3")
    assert [(saved.title, saved.turn_count) for saved in history.sessions(10)] == [("one", 2), ("two", 1)]
    assert [saved.id for saved in history.sessions(1)] == [first]
    assert history.session(second).title == "two"
    with pytest.raises(HistoryError, match="no session 99"):
        history.session(99)


def test_recent_videos_are_listed_once_each(history: History) -> None:
    for name in "abab":
        history.begin_session(made_clip(f"/videos/{name}.mp4"), "demo")
    assert [video.path for video in history.recent_videos(10)] == ["/videos/b.mp4", "/videos/a.mp4"]
    assert [video.path for video in history.recent_videos(1)] == ["/videos/b.mp4"]
    assert history.recent_videos(1)[0].seconds == 60.0


def test_paths_are_absolute_and_may_have_any_bytes(history: History) -> None:
    odd = os.fsdecode(b"/videos/\xff\xfe.mp4")
    for path in (odd, "here.mp4"):
        history.begin_session(made_clip(path), "demo")
    assert {video.path for video in history.recent_videos(9)} == {odd, str(Path("here.mp4").absolute())}


def test_text_that_utf8_cannot_hold_is_escaped(history: History, session: int) -> None:
    ask(history, session, "a\ud800b", "nul \x00 and \x1b[2J stay")
    assert listed(history, session) == [("a\\ud800b", "nul \x00 and \x1b[2J stay", "answered")]
    assert len(history.search("a\ud800b")) == len(history.search("and \x1b[2J")) == 1


@pytest.mark.parametrize(
    "needle", ["100%", "a_b", "it's", '"so"', "\\", "*", "ÉCOLE", "e\u0301cole", "STRASSE", "ΣΊΣΥΦΟΣ"]
)
def test_search_is_literal_but_for_case(history: History, session: int, needle: str) -> None:
    ask(history, session, "plain", "100 axb its so / x ecole strase")
    hit = ask(history, session, "?", """100% a_b it's "so" \\ * école Straße σίσυφος""")
    (found,) = history.search(needle)
    assert (found.turn.id, found.session.id) == (hit, session)
    assert fold(found.snippet[found.start : found.end]) == fold(needle)
    assert [saved.id for saved in history.sessions(9, needle)] == [session]


def test_search_covers_questions_answers_and_paths_of_sessions(history: History) -> None:
    one, two = (history.begin_session(made_clip(f"/videos/{name}.mp4"), "demo") for name in ("beach", "wood"))
    asked, _ = ask(history, one, "Where is the dog?", "There."), ask(history, two, "What?", "Far away\na DOG\truns.")
    assert [hit.turn.session_id for hit in history.search("dog")] == [two, one]
    assert [hit.snippet for hit in history.search("dog")] == ["Far away a DOG runs.", "Where is the dog?"]
    assert [saved.id for saved in history.sessions(9, "BEACH")] == [one]
    assert (history.search("zebra"), history.search("  "), history.sessions(9, "zebra")) == ((), (), ())
    assert len(history.search("dog", 1)) == 1
    history.delete_turn(asked)
    assert [hit.turn.session_id for hit in history.search("dog")] == [two]


@given(st.text(max_size=300), st.data())
def test_every_part_of_an_answer_is_found_and_shown(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    needle = text[start : start + data.draw(st.integers(1, 40))]
    history = History(None)
    session = history.begin_session(CLIP, "demo")
    ask(history, session, "", text)
    for hit in history.search(needle):
        assert "\n" not in hit.snippet
        assert 0 <= hit.start < hit.end <= len(hit.snippet)
        shown = fold(hit.snippet[hit.start : hit.end])
        assert fold("".join(" " if c.isspace() else c for c in needle)) in shown
    # Composing (NFC) may join a needle's edge to its neighbour, which is then another letter.
    assert history.search(needle) or not needle.strip() or fold(needle) not in fold(text)
    history.close()


def test_an_answered_replacement_deletes_what_it_replaces(history: History, session: int) -> None:
    other = ask(history, history.begin_session(CLIP, "demo"), "elsewhere", "kept")
    for absent in (99, other):  # there is no such turn in this session
        turn = history.begin_turn(session, "first", replaces=absent)
        history.finish_turn(turn, made_answer("1"))
        assert history.search("elsewhere")
    old = ask(history, session, "secnd", "old")
    ask(history, session, "third", "3")
    turn = history.begin_turn(session, "second", replaces=old)
    assert listed(history, session)[2:] == [("third", "3", "answered"), ("second", "", "running")]
    assert (history.search("secnd"), history.sessions(9)[0].turn_count) == ((), 4)
    history.finish_turn(turn, made_answer("new"))
    assert listed(history, session)[2:] == [("third", "3", "answered"), ("second", "new", "answered")]


def test_a_failed_replacement_lists_the_old_answer_again(history: History, session: int) -> None:
    old = ask(history, session, "q", "old")
    failed = history.begin_turn(session, "q", replaces=old)
    history.fail_turn(failed, "Out of memory.", "failed")
    assert listed(history, session) == [("q", "old", "answered"), ("q", "", "failed")]
    turn = history.begin_turn(session, "q", replaces=failed)
    assert listed(history, session) == [("q", "", "running")]
    history.delete_turn(turn)
    assert listed(history, session) == [("q", "old", "answered"), ("q", "", "failed")]
    history.finish_turn(history.begin_turn(session, "q", replaces=failed), made_answer("new"))
    assert listed(history, session) == [("q", "new", "answered")]


def test_deleted_text_is_in_no_file(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3")
    kept, gone = (history.begin_session(made_clip(f"/videos/{name}.mp4"), "demo") for name in ("kept", "hidden-path"))
    ask(history, gone, "a whispered question", "a secret answer " * 500)
    turn = ask(history, kept, "another confidence", "said in private")
    ask(history, kept, "stays", "here")
    history.delete_session(gone)
    history.delete_turn(turn)
    assert listed(history, kept) == [("stays", "here", "answered")]
    assert (history.turns(gone), [saved.id for saved in history.sessions(9)]) == ((), [kept])
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"stays" in held
    for secret in (b"whispered", b"secret", b"hidden-path", b"confidence", b"private"):
        assert secret not in held
    history.close()


def test_a_turn_deleted_while_it_runs_stays_deleted(history: History, session: int) -> None:
    turn = history.begin_turn(session, "q")
    history.delete_session(session)
    history.save_partial(turn, "text")
    history.finish_turn(turn, made_answer("text"))
    assert (history.turns(session), history.sessions(9)) == ((), ())
    with pytest.raises(HistoryError, match="no such session"):
        history.begin_turn(session, "another")


def test_closing_stops_running_turns_and_a_later_answer_is_still_saved(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3")
    session = history.begin_session(CLIP, "demo")
    turn = history.begin_turn(session, "q")
    history.save_partial(turn, "half")
    history.close()
    history.close()
    assert listed(history, session) == [("q", "half", "stopped")]
    history.finish_turn(turn, made_answer("whole"))
    assert listed(history, session) == [("q", "whole", "answered")]
    assert history.turns(session)[0].error == ""
    history.close()


def test_a_history_in_memory_writes_no_file(
    history: History, session: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert history.opened() == ""
    ask(history, session, "q", "a")
    assert listed(history, session) == [("q", "a", "answered")] and list(tmp_path.iterdir()) == []
