"""Progress of captioning: what a terminal shows, what a log has, what programs read."""

import io
import json
from dataclasses import replace

import pyte
import pytest

from tests.batch.scripted import CARD
from tests.batch.test_caption_requests import planned, video
from vidqa.batch.caption_run import RunSummary, SkippedClip
from vidqa.batch.clip_record import Clip, ClipRecord, Failure
from vidqa.cli.caption_progress import (
    JsonProgress,
    LogProgress,
    ProgressState,
    progress_lines,
    summary_lines,
    summary_object,
)
from vidqa.events import MemorySampled, Planned, StageStarted

COLUMNS = 60
SKIPPED = SkippedClip(Clip("/s", "s"), "done")


class Terminal(io.StringIO):
    """A screen of 60 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.screen = pyte.Screen(COLUMNS, 12)
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]


def record(name: str, *, tokens: int = 100) -> ClipRecord:
    return ClipRecord(name, "1-a", "task", "done", 1, caption="words", tokens=tokens)


def failure(name: str) -> ClipRecord:
    error = Failure("open", "VideoUnreadable", f"{name} is empty.", "Copy it again.")
    return ClipRecord(name, "1-a", "task", "failed", 1, error=error)


@pytest.mark.parametrize("name", ["clip.mp4", "日本語" * 30, "e\u0301" * 80, "\x1b[2J\x1b[H" * 20])
def test_a_terminal_shows_two_lines_for_wide_and_hostile_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.cli.caption_progress.terminal_columns", lambda stream: COLUMNS)
    monkeypatch.setattr("vidqa.cli.caption_progress._REDRAW_SECONDS", 0.0)
    terminal = Terminal()
    progress = LogProgress(ProgressState(4), live=True, stream=terminal)
    for _ in range(5):
        progress.on_event([name], StageStarted("vision", 3))
    progress.on_result(failure("broken"))
    progress.on_result(record(name))
    progress.on_event([name], StageStarted("decode", 3))
    first, second, third = terminal.lines
    assert first == "failed: broken (open): broken is empty. Copy it again."
    assert "2/4 clips · 1 failed · " in second and " left" in second
    assert third.startswith("decode · ")
    progress.on_end(RunSummary(captioned=1, failed=1, seconds=1.0), None)
    assert [line.split(" in ")[0] for line in terminal.lines[1:]] == [
        "1 captioned, 1 failed",
        "--retry-failed tries the failed clips again",
    ]


def test_a_log_has_failures_and_the_summary_without_escapes() -> None:
    log = io.StringIO()
    progress = LogProgress(ProgressState(3), live=False, stream=log)
    progress.on_event(["a"], StageStarted("load", 1))
    for result in (SKIPPED, failure("b\x1b[2J\n"), record("c")):
        progress.on_result(result)
    progress.on_end(RunSummary(captioned=1, failed=1, seconds=2.0), None)
    failed, totals, *_ = log.getvalue().splitlines()
    assert failed == r"failed: b\x1b[2J\n (open): b\x1b[2J\n is empty. Copy it again."
    assert totals.startswith("1 captioned, 1 failed in 2.0 s")
    assert "\x1b" not in log.getvalue()


def test_programs_read_a_json_line_for_each_clip() -> None:
    log = io.StringIO()
    progress = JsonProgress(ProgressState(2), log)
    progress.on_result(record("a\x1b[2J"))
    progress.on_result(failure("b"))
    progress.on_end(RunSummary(captioned=1, failed=1), None)
    assert "\x1b" not in log.getvalue()
    done, failed, summary = map(json.loads, log.getvalue().splitlines())
    assert (done["path"], done["status"], done["error"]) == ("a\x1b[2J", "done", None)
    assert failed["error"] == {
        "stage": "open", "class": "VideoUnreadable", "message": "b is empty.", "hint": "Copy it again.",
    }  # fmt: skip
    assert summary["event"] == "summary"


def test_a_clip_counts_by_its_tokens_and_in_work_by_its_plan() -> None:
    state = ProgressState(4)
    for result, share in (
        (record("long", tokens=900), 1 / 4),  # the others count as this one
        (record("short", tokens=100), 1 / 2),
        (failure("broken"), 1000 / 1500),
        (SKIPPED, 1.0),
    ):
        state.on_result(result)
        assert state.share == pytest.approx(share)
    state, plan = ProgressState(3), planned(video(10), CARD).plan
    assert plan is not None
    state.on_result(record("a", tokens=plan.prompt_tokens))
    state.on_event(["b"], Planned(video(10), plan))
    assert state.share == 1 / 3


def test_two_lines_have_progress_speed_memory_and_current_clips() -> None:
    state = ProgressState(4)
    state.on_result(record("a"))
    state.on_result(failure("b"))
    state.on_event(["c\x1b[2J.mp4", "d.mp4"], StageStarted("prefill", 10))
    state.on_event(["c\x1b[2J.mp4", "d.mp4"], MemorySampled("prefill", 2**30, 2 * 2**30, 0))
    first, second = progress_lines(state)
    assert first.startswith("█████░░░░░░░░░░░  33% · 2/4 clips · 1 failed · ")
    assert first.endswith(" tokens/s")
    assert second == "1.0 GiB, peak 2.0 GiB · prefill · c\\x1b[2J.mp4, d.mp4"
    state.stopping = True
    assert progress_lines(state)[1].startswith("finishing these clips")


def test_a_limit_is_the_whole_of_a_run() -> None:
    state, log = ProgressState(1_000_000, limit=4), io.StringIO()
    progress = JsonProgress(state, log)
    for result in (SKIPPED, record("a"), SKIPPED, record("b")):
        progress.on_result(result)
    progress.on_event(["c"], StageStarted("prefill", 10))
    assert progress_lines(state)[0].startswith("████████░░░░░░░░  50% · 2/4 clips · ")
    shown = json.loads(log.getvalue().splitlines()[-1])
    assert (shown["total"], shown["done"], shown["skipped"]) == (6, 2, 2)
    few = ProgressState(3, limit=4)
    few.on_result(SKIPPED)
    assert few.due == 2, "fewer clips than the limit"


def test_clips_that_cannot_be_read_do_not_count_for_the_limit() -> None:
    state = ProgressState(1_000, limit=4)
    for name in "xyz":
        state.on_result(replace(failure(name), content=""))
    assert (state.finished, state.due) == (3, 7)
    state.on_result(failure("a"))
    assert (state.finished, state.due) == (4, 7)


def test_the_summary_has_skipped_clips_and_the_reason_of_an_early_end() -> None:
    summary = RunSummary(captioned=3, seconds=60.0, ended="stopped; the same command continues")
    summary.skipped["done"] = 7
    assert summary_lines(summary) == [
        "3 captioned, 0 failed in 60 s", "skipped: 7 done", "ended early: stopped; the same command continues",
    ]  # fmt: skip


def test_captions_that_were_not_written_are_said_with_the_first() -> None:
    summary = RunSummary(unwritten=["a\x1b[2J.txt"])
    start = r"1 caption was not written, as a\x1b[2J.txt changed meanwhile; delete that file"
    assert summary_lines(summary)[-1].startswith(start)
    summary.unwritten.append("b.txt")
    start = r"2 captions were not written, as their files changed meanwhile, a\x1b[2J.txt first; delete those files"
    assert summary_lines(summary)[-1].startswith(start)
    assert summary_object(summary)["unwritten"] == 2 and "unwritten" not in summary_object(RunSummary())
