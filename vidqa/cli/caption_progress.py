"""How far a captioning run is: two lines that are redrawn on a terminal, plain lines elsewhere, or JSON lines.

The bar and the time left go by tokens, not by clips: a film counts for more than a second of it.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from vidqa.batch.caption_run import RunSummary, Skipped
from vidqa.batch.clip_record import ClipRecord
from vidqa.cli.console import quiet_closed_pipe
from vidqa.events import Event, MemorySampled, Planned, StageStarted
from vidqa.utils.safe_text import fitting, safe_json, safe_line
from vidqa.utils.units import format_bytes, format_span

_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0
_CELLS = 16
_STOPPING = "finishing these clips; again stops at once"


@dataclass(slots=True)
class LiveProgress:
    """What is known while a run goes on. Clips that were not planned yet count as the mean of those that were."""

    total: int
    begun: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0
    skipped: int = 0
    tokens: int = 0
    unweighed: int = 0  # finished clips that no tokens were spent on: they could not be opened
    planned: dict[str, int] = field(default_factory=dict)
    current: Sequence[str] = ()
    stage: str = ""
    memory: MemorySampled | None = None
    stopping: bool = False

    @property
    def finished(self) -> int:
        """Clips of this run that are settled."""
        return self.done + self.failed

    @property
    def weighed(self) -> int:
        """Clips that tokens were spent on."""
        return self.finished - self.unweighed

    @property
    def share(self) -> float:
        """How much of the work is done, by tokens."""
        known, count = self.tokens + sum(self.planned.values()), self.weighed + len(self.planned)
        left = max(self.total - self.skipped - self.unweighed - count, 0)
        whole = known + left * (known / count if count else 1.0)
        return self.tokens / whole if whole else 1.0

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.begun

    @property
    def seconds_left(self) -> float | None:
        """None as long as nothing is done."""
        share = self.share
        return self.seconds * (1 - share) / share if share > 0 and self.weighed else None

    def hear(self, names: Sequence[str], event: Event) -> None:
        """What the engine tells of the clips that it is at."""
        if tuple(names) != tuple(self.current):
            self.current = tuple(names)
        match event:
            case Planned(video, plan):
                self.planned[video.path] = plan.prompt_tokens
            case StageStarted(stage):
                self.stage = stage
            case MemorySampled():
                self.memory = event

    def settle(self, told: ClipRecord | Skipped) -> None:
        """A clip is captioned, failed or passed over."""
        if isinstance(told, Skipped):
            self.skipped += 1
            return
        self.done += told.status == "done"
        self.failed += told.status == "failed"
        self.tokens += told.tokens
        self.unweighed += not told.tokens
        self.planned.clear()


class Progress(Protocol):
    """How a run is shown."""

    def hear(self, names: Sequence[str], event: Event) -> None:
        """Something of the engine."""

    def settle(self, told: ClipRecord | Skipped) -> None:
        """A clip is settled."""

    def stopping(self) -> None:
        """It was asked to end; called where a signal is handled, so nothing may be written."""

    def end(self, summary: RunSummary, rendered: Path | None) -> None:
        """The run is over; `rendered` is the file with all captions."""


class PlainProgress:
    """For logs: what failed at once, and how far it is every ten seconds. Draws two lines where it may (`live`)."""

    def __init__(self, standing: LiveProgress, *, live: bool, stream: TextIO | None = None) -> None:
        self._standing, self._live, self._stream = standing, live, stream or sys.stderr
        self._next = 0.0 if live else time.monotonic() + _LINE_SECONDS
        self._drawn = False

    def hear(self, names: Sequence[str], event: Event) -> None:
        """Redraw, not too often."""
        self._standing.hear(names, event)
        self._show()

    def settle(self, told: ClipRecord | Skipped) -> None:
        """Say what failed."""
        self._standing.settle(told)
        if isinstance(told, ClipRecord) and told.error is not None:
            error = told.error
            self._say(safe_line(f"failed: {told.name} ({error.stage}): {error.message} {error.hint}".rstrip()))
        self._show()

    def stopping(self) -> None:
        """It is shown with the next event."""
        self._standing.stopping = True

    def end(self, summary: RunSummary, rendered: Path | None) -> None:
        """The sum."""
        self._clear()
        for line in summary_lines(summary):
            self._say(line)
        if rendered is not None:
            self._say(safe_line(f"all captions: {rendered}"))

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_REDRAW_SECONDS if self._live else _LINE_SECONDS)
        lines = progress_lines(self._standing)
        if not self._live:
            if self._standing.finished:
                self._say(lines[0])
            return
        self._clear()
        columns = _columns(self._stream)
        _tell(self._stream, "\n".join(fitting(line, columns - 1) for line in lines))
        self._drawn = True

    def _say(self, line: str) -> None:
        self._clear()
        _tell(self._stream, line + "\n")

    def _clear(self) -> None:
        if self._drawn:
            _tell(self._stream, "\r\x1b[2K\x1b[1A\x1b[2K")
            self._drawn = False


class JsonProgress:
    """For programs: an object a line for every clip, now and then one about the progress, and one at the end."""

    def __init__(self, standing: LiveProgress, stream: TextIO | None = None) -> None:
        self._standing, self._stream = standing, stream or sys.stderr
        self._next = 0.0

    def hear(self, names: Sequence[str], event: Event) -> None:
        """At most once a second."""
        self._standing.hear(names, event)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1.0
            self._write({"event": "progress", **_standing_object(self._standing)})

    def settle(self, told: ClipRecord | Skipped) -> None:
        """Each clip."""
        self._standing.settle(told)
        self._write(_settled_object(told))

    def stopping(self) -> None:
        """It is shown with the next event."""
        self._standing.stopping = True

    def end(self, summary: RunSummary, rendered: Path | None) -> None:
        """The sum."""
        self._write({"event": "summary", **summary_object(summary), "file": rendered and str(rendered)})

    def _write(self, values: dict[str, Any]) -> None:
        _tell(self._stream, safe_json(values) + "\n")


class NoProgress:
    """Errors alone are told, and those by whoever ends the run."""

    def hear(self, names: Sequence[str], event: Event) -> None:
        """Nothing."""

    def settle(self, told: ClipRecord | Skipped) -> None:
        """Nothing."""

    def stopping(self) -> None:
        """Nothing."""

    def end(self, summary: RunSummary, rendered: Path | None) -> None:
        """Nothing."""


def make_progress(total: int, *, as_json: bool, quiet: bool) -> Progress:
    """How this run is shown on stderr."""
    if quiet:
        return NoProgress()
    standing = LiveProgress(total)
    if as_json:
        return JsonProgress(standing)
    return PlainProgress(standing, live=sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def progress_lines(standing: LiveProgress) -> tuple[str, str]:
    """How far, how fast and how long still; what is at work, and in which memory."""
    filled = round(_CELLS * standing.share)
    left = standing.seconds_left
    minutes = max(standing.seconds, 1e-9) / 60
    first = [  # what matters most comes first: a narrow terminal cuts the rest
        f"{'█' * filled}{'░' * (_CELLS - filled)} {standing.share:4.0%}",
        f"{standing.finished}/{standing.total - standing.skipped} clips",
        *([f"{standing.failed} failed"] if standing.failed else []),
        *([f"{format_span(left)} left"] if left is not None else []),
        f"{standing.finished / minutes:.0f} clips/min",
        f"{standing.tokens / minutes / 60:.0f} tokens/s",
    ]
    sample = standing.memory
    second = [
        _STOPPING if standing.stopping else "",
        f"{format_bytes(sample.current_bytes)}, peak {format_bytes(sample.peak_bytes)}" if sample else "",
        standing.stage,
        ", ".join(map(safe_line, standing.current)),
    ]
    return " · ".join(first), " · ".join(filter(None, second))


def summary_lines(summary: RunSummary) -> list[str]:
    """What a run did, in two lines or three."""
    lines = [
        f"{summary.captioned} captioned, {summary.failed} failed in {format_span(summary.seconds)}"
        + (f" · {summary.clips_per_minute:.0f} clips/min · p50 {summary.percentile(50):.2f} s, p95 "
           f"{summary.percentile(95):.2f} s a clip" if summary.clip_seconds else "")
    ]  # fmt: skip
    lines += [f"passed over: {', '.join(f'{count} {why}' for why, count in summary.skipped.items())}"] * bool(
        summary.skipped
    )
    if summary.failed or summary.skipped["failed before"]:
        lines.append("try again what failed with --retry-failed")
    if summary.ended:
        lines.append(f"ended early: {summary.ended}")
    return lines


def summary_object(summary: RunSummary) -> dict[str, Any]:
    """The same for programs."""
    return {
        "captioned": summary.captioned, "failed": summary.failed, "skipped": dict(summary.skipped),
        "seconds": round(summary.seconds, 3), "clips_per_minute": round(summary.clips_per_minute, 2),
        "tokens": summary.tokens, "p50_s": round(summary.percentile(50), 4), "p95_s": round(summary.percentile(95), 4),
        "ended": summary.ended or None,
    }  # fmt: skip


def _standing_object(standing: LiveProgress) -> dict[str, Any]:
    left, memory = standing.seconds_left, standing.memory
    return {
        "share": round(standing.share, 4), "done": standing.done, "failed": standing.failed,
        "skipped": standing.skipped, "total": standing.total, "tokens": standing.tokens,
        "seconds": round(standing.seconds, 2), "seconds_left": None if left is None else round(left, 1),
        "current": list(standing.current), "stage": standing.stage, "stopping": standing.stopping,
        "memory_bytes": memory.current_bytes if memory else None,
        "peak_bytes": memory.peak_bytes if memory else None,
    }  # fmt: skip


def _settled_object(told: ClipRecord | Skipped) -> dict[str, Any]:
    if isinstance(told, Skipped):
        return {"event": "skipped", "path": told.clip.name, "why": told.why}
    error = told.error
    return {
        "event": "clip", "path": told.name, "status": told.status, "seconds": told.seconds, "tokens": told.tokens,
        "error": error and {"stage": error.stage, "class": error.kind, "message": error.message, "hint": error.hint},
    }  # fmt: skip


def _tell(stream: TextIO, text: str) -> None:
    """Who listened may have left, and a log's disk may be full: neither is a reason to caption no more."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        quiet_closed_pipe(stream)


def _columns(stream: TextIO) -> int:
    try:
        return max(os.get_terminal_size(stream.fileno()).columns, 20)
    except (OSError, ValueError):
        return 80
