"""What reaches the terminal: wrapped, safe, and only where it is wanted."""

import io
import json

import pytest

from vidqa.cli.console import ExitCode, StderrReporter, exit_code_for, report_error, write_json
from vidqa.errors import (
    AttentionUnavailable,
    DoesNotFit,
    Interrupted,
    ModelError,
    ModelMissing,
    UsageError,
    VideoNotFound,
    VideoTooDamaged,
    VideoUnreadable,
    VidqaError,
)
from vidqa.events import MemorySampled, StageProgress, StageStarted


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["0", "1", "40", "200", "wide", ""])
def test_an_error_is_a_paragraph_at_any_width(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    report_error(VidqaError("x" * 5 + " many words" * 20 + "\x1b[2J\nnext line", "Do this."))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert " ".join(err.split()).endswith("next line Do this.")
    assert err.count("\n\n") == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2), (DoesNotFit("a"), 4), (ModelMissing("a"), 5), (ModelError("a"), 1),
        (VideoNotFound("a"), 6), (VideoUnreadable("a"), 6), (VideoTooDamaged("a"), 6), (Interrupted("a"), 130),
        (AttentionUnavailable("a"), 1), (VidqaError("a"), 1),
    ],
)  # fmt: skip
def test_exit_codes_are_an_api(error: VidqaError, code: int) -> None:
    assert exit_code_for(error) == code


def test_the_documented_codes() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "FAILED": 1, "USAGE": 2, "SOME_FAILED": 3, "DOES_NOT_FIT": 4, "MODEL_MISSING": 5,
        "UNREADABLE_VIDEO": 6, "INTERRUPTED": 130, "TERMINATED": 143,
    }  # fmt: skip


def test_json_carries_any_text_exactly_and_obeys_no_escape(capsys: pytest.CaptureFixture[str]) -> None:
    text = "日本 \x1b]52;c;eA==\x07 \x9b2J \u202e \ud83d line\u2028 \x7f"
    write_json({"answer": text})
    out = capsys.readouterr().out
    assert json.loads(out)["answer"] == text
    assert "日本" in out
    assert not any(character in out for character in "\x1b\x07\x9b\u202e\u2028\x7f")


def test_bars_are_drawn_on_a_terminal_only() -> None:
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        talk = StderrReporter(quiet=False, stream=stream)
        talk.progress(StageStarted("video", 8))
        talk.progress(StageProgress("video", 4, 8))
        talk.say("done")
        assert ("4/8" in stream.getvalue()) == drawn
        assert stream.getvalue().endswith("done\n")


def test_loading_is_told_in_bytes() -> None:
    stream = Terminal()
    talk = StderrReporter(quiet=False, stream=stream)
    talk.progress(StageProgress("load", 3 * 2**30, 4 * 2**30))
    talk.memory(MemorySampled("load", 2**30, 2**30, 0), 0)
    assert "load █████████░░░ 3.0 GiB/4.0 GiB  1.0 GiB, peak 1.0 GiB" in stream.getvalue()
    talk.memory(MemorySampled("load", 2**30, 2**30, 0), 2**31)
    assert "1.0 GiB of 2.0 GiB planned" in stream.getvalue()


def test_tensors_are_told_apart_from_the_process_where_they_are_counted() -> None:
    stream = Terminal()
    talk = StderrReporter(quiet=False, stream=stream)
    talk.progress(StageProgress("video", 4, 8))
    talk.memory(MemorySampled("vision", 800 * 2**20, 810 * 2**20, 0, 15 * 2**20), 805 * 2**20, 17 * 2**20)
    assert stream.getvalue().endswith("  process 800.0 MiB, tensors 15.0 MiB of 17.0 MiB planned")


def test_quiet_says_nothing() -> None:
    stream = Terminal()
    talk = StderrReporter(quiet=True, stream=stream)
    talk.progress(StageStarted("video", 8))
    talk.say("anything")
    assert stream.getvalue() == ""


def test_a_dumb_terminal_gets_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    StderrReporter(quiet=False, stream=stream).progress(StageStarted("video", 8))
    assert stream.getvalue() == ""
