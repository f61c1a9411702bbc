"""`vidqa history`, and the questions of `vidqa ask` in it."""

import json
from pathlib import Path

import pytest

from tests.answer_builders import made_answer, made_clip
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.errors import ModelError
from vidqa.history.records import SavedTurn
from vidqa.history.store import FILE_NAME, History

DEMO = str(Path(__file__).parents[2] / "assets" / "demo.mp4")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def ask(*words: str) -> int:
    return run(["ask", DEMO, *words, "--model", "demo", "--decode-in-process"])


def saved(state: Path) -> list[tuple[SavedTurn, ...]]:
    """The turns of each conversation, the last used first."""
    history = History(state / FILE_NAME)
    turns = [history.turns(session.id) for session in history.sessions(100)]
    history.close()
    return turns


def write(state: Path, *questions: str, answer: str = "A dog runs.") -> None:
    history = History(state / FILE_NAME)
    for number, question in enumerate(questions):
        session = history.begin_session(made_clip(f"/clips/{number}.mp4"), "demo")
        history.finish_turn(history.begin_turn(session, question), made_answer(answer))
    history.close()


def test_the_questions_of_a_command_are_one_conversation_with_figures_and_range(state: Path) -> None:
    assert ask("what happens?", "--then", "what color is it at the end?", "--start", "0.5", "--quiet") == ExitCode.OK
    ((first, second),) = saved(state)
    assert (first.question, first.state, first.start_seconds) == ("what happens?", "answered", 0.5)
    assert first.answer == "a red circle moves right." and first.usage["tokens"] == 6
    assert (second.question, second.answer) == ("what color is it at the end?", "red.")


@pytest.mark.parametrize("way", ["flag", "setting"])
def test_nothing_is_kept_where_that_is_wanted(way: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "setting":
        monkeypatch.setenv("VIDQA_TUI_HISTORY", "false")
    assert ask("what happens?", "--quiet", *(["--no-history"] if way == "flag" else [])) == ExitCode.OK
    assert not (state / FILE_NAME).exists()


def test_a_question_that_fails_is_kept_with_its_reason(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise ModelError("The weights are damaged.", "Fetch them again.")

    monkeypatch.setattr("vidqa.engine.attempt.Attempt.run", breaks)
    assert ask("what happens?", "--quiet") == ExitCode.FAILED
    (((turn,),)) = saved(state)
    assert turn.state == "failed" and "The weights are damaged." in turn.error


def test_a_history_that_cannot_be_written_costs_no_answer(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.mkdir()
    (state / FILE_NAME).mkdir()
    assert ask("what happens?") == ExitCode.OK
    out, err = capsys.readouterr()
    assert out == "a red circle moves right.\n" and err.count("note: This conversation is not saved") == 1


@pytest.mark.parametrize("words", [[], ["list"]])
def test_a_list_has_a_line_for_each_conversation_the_last_first(
    words: list[str], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(state, "what happens?", "who is \x1b[31mthere?")
    assert run(["history", *words]) == ExitCode.OK
    second, first = capsys.readouterr().out.splitlines()
    assert second.split()[0] == "2" and "1 question " in second and "1.mp4 1:00.0" in second
    assert "\x1b" not in second and second.endswith("there?") and first.endswith("what happens?")
    assert run(["history", "list", "--limit", "1"]) == ExitCode.OK
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert run(["history", "list", "--limit", "0"]) == ExitCode.USAGE


def test_an_empty_history_and_a_text_that_is_not_there_are_said(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["history"]) == ExitCode.OK
    assert run(["history", "search", "cat"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert not out and "There are no conversations yet" in err and "has the text 'cat'" in err


def test_a_search_ignores_case_and_shows_where_the_text_stands(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(state, "what happens?", "who is there?", answer="A brown DOG runs.")
    assert run(["history", "search", "who is"]) == ExitCode.OK
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[0] == "2" and "who is there?" in line
    assert run(["history", "search", "dog", "--json"]) == ExitCode.OK
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["conversation"]["id"] for hit in hits] == [2, 1] and "brown DOG" in hits[0]["snippet"]


def test_an_export_is_printed_or_written_as_the_name_says_and_keeps_a_file(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(state, "what happens?")
    assert run(["history", "export", "1"]) == ExitCode.OK
    assert "> what happens?" in capsys.readouterr().out
    target = tmp_path / "talk.json"
    for name in ("talk.json", "talk-2.json"):
        assert run(["history", "export", "1", str(target)]) == ExitCode.OK
        assert f"written to {tmp_path / name}" in capsys.readouterr().err
        assert json.loads((tmp_path / name).read_text())["turns"][0]["answer"] == "A dog runs."
    assert run(["history", "export", "1", "--format", "srt"]) == ExitCode.OK
    assert " --> " in capsys.readouterr().out


def test_an_export_that_cannot_be_says_why(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(state, "what happens?")
    for words, code, text in (
        (["7"], ExitCode.FAILED, "The history has no session 7."),
        (["1", str(tmp_path / "talk.doc")], ExitCode.USAGE, "does not say a format"),
        (["1", str(tmp_path / "none" / "talk.md")], ExitCode.USAGE, "There is no folder"),
        (["1", str(tmp_path), "--format", "md"], ExitCode.USAGE, "This is a folder"),
    ):
        assert run(["history", "export", *words]) == code
        assert text in " ".join(capsys.readouterr().err.split())
