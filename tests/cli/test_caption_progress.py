"""How a captioning run is shown: what a terminal really shows of it, what a log has, what programs read."""

import io
import json

import pyte
import pytest

from tests.batch.scripted import CARD
from tests.batch.test_bucketing import prepared, video
from vidqa.batch.caption_run import RunSummary, Skipped
from vidqa.batch.clip_record import Clip, ClipRecord, Failure
from vidqa.cli.caption_progress import JsonProgress, LiveProgress, PlainProgress, progress_lines, summary_lines
from vidqa.events import MemorySampled, Planned, StageStarted

COLUMNS = 60


class Terminal(io.StringIO):
    """What is written is drawn on a screen of 60 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.screen = pyte.Screen(COLUMNS, 12)
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    @property
    def shown(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self.screen.display if line.strip()]


def record(name: str, *, failed: bool = False, tokens: int = 100) -> ClipRecord:
    failure = Failure("open", "VideoUnreadable", f"{name} is empty.", "Copy it again.") if failed else None
    status = "failed" if failed else "done"
    return ClipRecord(name, "1-a", "task", status, 1, caption="words", tokens=0 if failed else tokens, error=failure)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.cli.caption_progress._columns", lambda stream: COLUMNS)
    monkeypatch.setattr("vidqa.cli.caption_progress._REDRAW_SECONDS", 0.0)


@pytest.mark.parametrize("name", ["clip.mp4", "日本語" * 30, "e\u0301" * 80, "\x1b[2J\x1b[H" * 20])
def test_a_terminal_shows_two_lines_however_wide_and_hostile_the_names_are(name: str) -> None:
    terminal = Terminal()
    lines = PlainProgress(LiveProgress(4), live=True, stream=terminal)
    for _ in range(5):
        lines.hear([name], StageStarted("vision", 3))
    lines.settle(record("broken", failed=True))
    lines.settle(record(name))
    lines.hear([name], StageStarted("decode", 3))
    first, second, third = terminal.shown
    assert first == "failed: broken (open): broken is empty. Copy it again."
    assert "2/4 clips · 1 failed · " in second and " left" in second
    assert third.startswith("decode · ")
    lines.end(RunSummary(captioned=1, failed=1, seconds=1.0), None)
    assert [line.split(" in ")[0] for line in terminal.shown[1:]] == [
        "1 captioned, 1 failed",
        "try again what failed with --retry-failed",
    ]


def test_a_log_has_what_failed_and_the_sum_and_no_escapes() -> None:
    log = io.StringIO()
    lines = PlainProgress(LiveProgress(3), live=False, stream=log)
    lines.hear(["a"], StageStarted("load", 1))
    lines.settle(Skipped(Clip("/a", "a"), "done"))
    lines.settle(record("b\x1b[2J\n", failed=True))
    lines.settle(record("c"))
    lines.end(RunSummary(captioned=1, failed=1, seconds=2.0), None)
    failed, total, *_ = log.getvalue().splitlines()
    assert failed == r"failed: b\x1b[2J\n (open): b\x1b[2J\n is empty. Copy it again."
    assert total.startswith("1 captioned, 1 failed in 2.0 s")
    assert "\x1b" not in log.getvalue()


def test_a_clip_counts_by_its_tokens() -> None:
    standing = LiveProgress(4)
    standing.settle(record("long", tokens=900))
    assert standing.share == pytest.approx(1 / 4)  # the others count as this one
    standing.settle(record("short", tokens=100))
    assert standing.share == pytest.approx(1 / 2)
    standing.settle(record("broken", failed=True))
    assert standing.share == pytest.approx(1000 / 1500)
    standing.settle(Skipped(Clip("/s", "s"), "done"))
    assert standing.share == 1.0


def test_programs_read_a_line_for_each_clip() -> None:
    log = io.StringIO()
    lines = JsonProgress(LiveProgress(2), log)
    lines.settle(record("a\x1b[2J"))
    lines.settle(record("b", failed=True))
    lines.end(RunSummary(captioned=1, failed=1), None)
    assert "\x1b" not in log.getvalue()
    done, failed, summary = map(json.loads, log.getvalue().splitlines())
    assert (done["path"], done["status"], done["error"]) == ("a\x1b[2J", "done", None)
    assert failed["error"] == {
        "stage": "open", "class": "VideoUnreadable", "message": "b is empty.", "hint": "Copy it again.",
    }  # fmt: skip
    assert summary["event"] == "summary"


def test_clips_that_are_being_answered_count_by_their_plan() -> None:
    standing, plan = LiveProgress(3), prepared(video(10), CARD).plan
    assert plan is not None
    standing.settle(record("a", tokens=plan.prompt_tokens))
    standing.hear(["b"], Planned(video(10), plan))
    assert standing.share == 1 / 3


def test_two_lines_say_how_far_how_fast_and_what_is_at_work() -> None:
    standing = LiveProgress(4)
    standing.settle(record("a"))
    standing.settle(record("b", failed=True))
    standing.hear(["c\x1b[2J.mp4", "d.mp4"], StageStarted("prefill", 10))
    standing.hear(["c\x1b[2J.mp4", "d.mp4"], MemorySampled("prefill", 2**30, 2 * 2**30, 0))
    first, second = progress_lines(standing)
    assert first.startswith("█████░░░░░░░░░░░  33% · 2/4 clips · 1 failed · ")
    assert first.endswith(" tokens/s")
    assert second == "1.0 GiB, peak 2.0 GiB · prefill · c\\x1b[2J.mp4, d.mp4"
    standing.stopping = True
    assert progress_lines(standing)[1].startswith("finishing these clips")


def test_the_sum_names_what_was_passed_over_and_why_it_ended() -> None:
    summary = RunSummary(captioned=3, seconds=60.0, ended="stopped; the same command goes on")
    summary.skipped["done"] = 7
    assert summary_lines(summary) == [
        "3 captioned, 0 failed in 60 s", "passed over: 7 done", "ended early: stopped; the same command goes on",
    ]  # fmt: skip
