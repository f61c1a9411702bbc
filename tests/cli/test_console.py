"""Errors, tables, JSON and progress on the terminal, and exit codes."""

import io
import json

import pytest

from vidqa.cli.console import ExitCode, StderrReporter, exit_code_for, format_table, report_error, write_json
from vidqa.cli.main import COMMANDS, build_parser, run
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


def test_a_table_is_as_wide_as_its_cells() -> None:
    rows = [("frames", "peak", "note"), ("8", "1.5 GiB", ""), ("16", "800 MiB", "slow")]
    lines = ["frames     peak  note", "     8  1.5 GiB", "    16  800 MiB  slow"]
    assert format_table(rows, ">><") == lines


@pytest.mark.parametrize(
    ("stream", "quiet", "term", "bars", "notes"),
    [
        (Terminal(), False, "xterm", True, True),
        (Terminal(), False, "dumb", False, True),
        (io.StringIO(), False, "xterm", False, True),
        (Terminal(), True, "xterm", False, False),
    ],
)
def test_bars_are_drawn_on_a_terminal_only(
    stream: io.StringIO, quiet: bool, term: str, bars: bool, notes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    reporter = StderrReporter(quiet, stream)
    reporter.progress(StageStarted("video", 8))
    reporter.progress(StageProgress("video", 4, 8))
    reporter.say("done")
    assert ("4/8" in stream.getvalue()) == bars
    assert stream.getvalue().endswith("done\n") == notes and bool(stream.getvalue()) == notes


def test_a_note_breaks_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    text = "\n  a  table\nnote: type `vidqa pull 3-vl-8b` to fetch it"
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        StderrReporter(quiet=False, stream=stream).say(text)
    assert terminal.getvalue() == "\n  a  table\nnote: type\n`vidqa pull 3-vl-8b` to\nfetch it\n"
    assert file.getvalue() == text + "\n"


def test_memory_follows_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    reporter = StderrReporter(quiet=False, stream=stream)
    reporter.progress(StageProgress("libraries", 850, 2560))
    assert stream.getvalue().endswith("starting libraries ███░░░░░░░░░ 33 %")
    reporter.progress(StageStarted("scan", 90_000))
    reporter.progress(StageProgress("scan", 45_000, 90_000))
    assert stream.getvalue().endswith("scan ██████░░░░░░ 50 %")
    reporter.progress(StageStarted("load", 4 * 2**30))
    reporter.progress(StageProgress("load", 3 * 2**30, 4 * 2**30))
    reporter.memory(MemorySampled("load", 2**30, 2**30, 0), 0)
    assert stream.getvalue().endswith("load █████████░░░ 3.0 GiB/4.0 GiB  1.0 GiB, peak 1.0 GiB")
    reporter.memory(MemorySampled("load", 2**30, 2**30, 2**20), 2**31)
    assert stream.getvalue().endswith("1.0 GiB of 2.0 GiB planned, peak 1.0 GiB, others 1.0 MiB")
    reporter.memory(MemorySampled("vision", 800 * 2**20, 810 * 2**20, 0, 15 * 2**20), 805 * 2**20, 17 * 2**20)
    assert stream.getvalue().endswith("  process 800.0 MiB, tensors 15.0 MiB of 17.0 MiB planned")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_those_of_the_whole_parser(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the named command's module is imported for `vidqa NAME`, and all of them for completion."""
    for call in (run, build_parser().parse_args):
        with pytest.raises(SystemExit) as ended:
            call([name, "--help"])
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :] and "--debug" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ask", "clip.mp4"], "vidqa: `vidqa ask` needs QUESTION. `vidqa ask --help` lists its arguments."),
        (
            ["aks", "clip.mp4"],
            "There is no command 'aks'. Did you mean `vidqa ask`? `vidqa --help` lists",
        ),
        (["frobnicate"], "There is no command 'frobnicate'. `vidqa --help` lists the commands."),
        (
            ["ask", "a.mp4", "what", "happens?"],
            "arguments: happens? Put a text of several words in quotes.",
        ),
        (["ask", "a.mp4", "what?", "--bogus"], "unrecognized arguments: --bogus. `vidqa --help`"),
        ([__file__], "is no command. To ask about this file type `vidqa ask "),
    ],
)
def test_wrong_usage_is_one_paragraph(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        run(words)
    out, err = capsys.readouterr()
    assert exited.value.code == ExitCode.USAGE and out == ""
    assert said in " ".join(err.split()) and "usage:" not in err
