"""Progress of a captioning run on stderr: two redrawn lines on a terminal, plain lines in a log, or JSON lines.

The bar and the remaining time count tokens, not clips: a film counts for more than a second of it.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from vidqa.batch.caption_run import RunSummary, SkippedClip
from vidqa.batch.clip_record import ClipRecord, Failure
from vidqa.cli.console import quiet_closed_pipe, terminal_columns
from vidqa.events import Event, MemorySampled, Planned, StageStarted
from vidqa.utils.safe_text import fitting, safe_json, safe_line
from vidqa.utils.units import format_bytes, format_span

_REDRAW_SECONDS = 0.1
_LOG_SECONDS = 10.0
_JSON_SECONDS = 1.0
_BAR_CELLS = 16
_STOPPING = "finishing these clips; again stops at once"


@dataclass(slots=True)
class ProgressState:
    """What is known during a run of `total` clips, of which at most `limit` are taken.

    Clips without a plan count as the mean of those that have one.
    """

    total: int
    limit: int | None = None
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0
    skipped: int = 0
    tokens: int = 0
    without_tokens: int = 0  # finished clips that took no tokens, as they could not be opened
    unreadable: int = 0  # failed clips that were not given to the captioner, so that the limit does not count them
    planned: dict[str, int] = field(default_factory=dict)
    current: Sequence[str] = ()
    stage: str = ""
    memory: MemorySampled | None = None
    stopping: bool = False

    @property
    def finished(self) -> int:
        """Clips of this run that are done or failed."""
        return self.done + self.failed

    @property
    def due(self) -> int:
        """Clips that this run takes, as far as is known: those not yet skipped, at most `limit` that can be read."""
        left = self.total - self.skipped
        return left if self.limit is None else min(left, self.limit + self.unreadable)

    @property
    def share(self) -> float:
        """The part of the work that is done, in tokens, 0 to 1."""
        known = self.tokens + sum(self.planned.values())
        count = self.finished - self.without_tokens + len(self.planned)
        left = max(self.due - self.without_tokens - count, 0)
        whole = known + left * (known / count if count else 1.0)
        return self.tokens / whole if whole else 1.0

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end; None until a clip took tokens."""
        share = self.share
        return self.seconds * (1 - share) / share if share > 0 and self.finished > self.without_tokens else None

    def on_event(self, names: Sequence[str], event: Event) -> None:
        """Take an engine event about the named clips."""
        self.current = names
        match event:
            case Planned(video, plan):
                self.planned[video.path] = plan.prompt_tokens
            case StageStarted(stage):
                self.stage = stage
            case MemorySampled():
                self.memory = event

    def on_result(self, result: ClipRecord | SkippedClip) -> None:
        """Count a clip that is done, failed or skipped."""
        if isinstance(result, SkippedClip):
            self.skipped += 1
            return
        self.done += result.status == "done"
        self.failed += result.status == "failed"
        self.tokens += result.tokens
        self.without_tokens += not result.tokens
        self.unreadable += not result.content
        self.planned.clear()


class CaptionProgress:
    """Shows nothing; the subclasses show a run's progress."""

    def on_event(self, names: Sequence[str], event: Event) -> None:
        """Show an engine event about the named clips."""

    def on_result(self, result: ClipRecord | SkippedClip) -> None:
        """Show a clip's result."""

    def on_stopping(self) -> None:
        """Note that the run was asked to end; called in a signal handler, so it must not write."""

    def on_end(self, summary: RunSummary, rendered: Path | None) -> None:
        """Show the end of the run; `rendered` is the file with all captions."""


class LogProgress(CaptionProgress):
    """Lines for a log, or on a terminal (`live`) two redrawn ones: failures, progress every ten seconds, a summary."""

    def __init__(self, state: ProgressState, *, live: bool, stream: TextIO | None = None) -> None:
        self._state, self._live, self._stream = state, live, stream or sys.stderr
        self._next = 0.0 if live else time.monotonic() + _LOG_SECONDS
        self._drawn = False

    def on_event(self, names: Sequence[str], event: Event) -> None:
        """Show progress if it is due."""
        self._state.on_event(names, event)
        self._show()

    def on_result(self, result: ClipRecord | SkippedClip) -> None:
        """Print a failure."""
        self._state.on_result(result)
        if isinstance(result, ClipRecord) and result.error is not None:
            error = result.error
            self._print(safe_line(f"failed: {result.name} ({error.stage}): {error.message} {error.hint}".rstrip()))
        self._show()

    def on_stopping(self) -> None:
        """Show it with the next event."""
        self._state.stopping = True

    def on_end(self, summary: RunSummary, rendered: Path | None) -> None:
        """Print the summary."""
        for line in summary_lines(summary):
            self._print(line)
        if rendered is not None:
            self._print(safe_line(f"all captions: {rendered}"))

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_REDRAW_SECONDS if self._live else _LOG_SECONDS)
        lines = progress_lines(self._state)
        if self._live:
            self._erase()
            columns = terminal_columns(self._stream)
            _write(self._stream, "\n".join(fitting(line, columns - 1) for line in lines))
            self._drawn = True
        elif self._state.finished:
            self._print(lines[0])

    def _print(self, line: str) -> None:
        self._erase()
        _write(self._stream, line + "\n")

    def _erase(self) -> None:
        if self._drawn:
            _write(self._stream, "\r\x1b[2K\x1b[1A\x1b[2K")
            self._drawn = False


class JsonProgress(CaptionProgress):
    """JSON lines: one for every clip, one a second about the progress, and a summary."""

    def __init__(self, state: ProgressState, stream: TextIO | None = None) -> None:
        self._state, self._stream = state, stream or sys.stderr
        self._next = 0.0

    def on_event(self, names: Sequence[str], event: Event) -> None:
        """Write the progress if it is due."""
        self._state.on_event(names, event)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _JSON_SECONDS
            self._write({"event": "progress", **_state_object(self._state)})

    def on_result(self, result: ClipRecord | SkippedClip) -> None:
        """Write the clip's result."""
        self._state.on_result(result)
        if isinstance(result, SkippedClip):
            self._write({"event": "skipped", "path": result.clip.name, "why": result.reason})
            return
        self._write({
            "event": "clip", "path": result.name, "status": result.status, "seconds": result.seconds,
            "tokens": result.tokens, "error": result.error and _error_object(result.error),
        })  # fmt: skip

    def on_stopping(self) -> None:
        """Show it with the next event."""
        self._state.stopping = True

    def on_end(self, summary: RunSummary, rendered: Path | None) -> None:
        """Write the summary."""
        self._write({"event": "summary", **summary_object(summary), "file": rendered and str(rendered)})

    def _write(self, values: dict[str, Any]) -> None:
        _write(self._stream, safe_json(values) + "\n")


def make_progress(total: int, limit: int | None, *, as_json: bool, quiet: bool) -> CaptionProgress:
    """Return the progress on stderr of a run that takes at most `limit` of `total` clips."""
    if quiet:
        return CaptionProgress()
    state = ProgressState(total, limit)
    if as_json:
        return JsonProgress(state)
    return LogProgress(state, live=sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def progress_lines(state: ProgressState) -> tuple[str, str]:
    """Return a line with progress, speed and remaining time, and one with memory, stage and current clips."""
    filled = round(_BAR_CELLS * state.share)
    left = state.seconds_left
    minutes = max(state.seconds, 1e-9) / 60
    first = [  # the most important first, as a narrow terminal cuts the rest
        f"{'█' * filled}{'░' * (_BAR_CELLS - filled)} {state.share:4.0%}",
        f"{state.finished}/{state.due} clips",
        f"{state.failed} failed" if state.failed else "",
        f"{format_span(left)} left" if left is not None else "",
        f"{state.finished / minutes:.0f} clips/min",
        f"{state.tokens / minutes / 60:.0f} tokens/s",
    ]
    memory = state.memory
    second = [
        _STOPPING if state.stopping else "",
        f"{format_bytes(memory.current_bytes)}, peak {format_bytes(memory.peak_bytes)}" if memory else "",
        state.stage,
        ", ".join(map(safe_line, state.current)),
    ]
    return " · ".join(filter(None, first)), " · ".join(filter(None, second))


def summary_lines(summary: RunSummary) -> list[str]:
    """Return the totals of a run as up to six lines."""
    speed = (
        f" · {summary.clips_per_minute:.0f} clips/min · p50 {summary.percentile(50):.2f} s, p95 "
        f"{summary.percentile(95):.2f} s a clip"
    )
    totals = f"{summary.captioned} captioned, {summary.failed} failed in {format_span(summary.seconds)}"
    lines = [totals + speed * bool(summary.clip_seconds)]
    if summary.skipped:
        lines.append(f"skipped: {', '.join(f'{count} {reason}' for reason, count in summary.skipped.items())}")
    if summary.failed or summary.skipped["failed before"]:
        lines.append("--retry-failed tries the failed clips again")
    if summary.unheard:
        clips = f"{summary.unheard} clip{'s' * (summary.unheard != 1)}"
        lines.append(f"the sound of {clips} is not heard, and there are no subtitles (--subs)")
    if summary.unwritten:
        lines.append(_unwritten(summary.unwritten))
    if summary.ended:
        lines.append(f"ended early: {summary.ended}")
    return lines


def summary_object(summary: RunSummary) -> dict[str, Any]:
    """Return the totals of a run as JSON types."""
    return {
        "captioned": summary.captioned, "failed": summary.failed, "skipped": dict(summary.skipped),
        "seconds": round(summary.seconds, 3), "clips_per_minute": round(summary.clips_per_minute, 2),
        "tokens": summary.tokens, "p50_s": round(summary.percentile(50), 4), "p95_s": round(summary.percentile(95), 4),
        "ended": summary.ended or None, **({"unheard": summary.unheard} if summary.unheard else {}),
        **({"unwritten": len(summary.unwritten)} if summary.unwritten else {}),
    }  # fmt: skip


def _unwritten(files: Sequence[str]) -> str:
    """Return a line about captions whose files were changed by others, so that they were not written."""
    name = safe_line(files[0])
    if len(files) == 1:
        return f"1 caption was not written, as {name} changed meanwhile; delete that file and run again to have it"
    what = f"{len(files)} captions were not written, as their files changed meanwhile, {name} first"
    return f"{what}; delete those files and run again to have them"


def _state_object(state: ProgressState) -> dict[str, Any]:
    left, memory = state.seconds_left, state.memory
    return {
        "share": round(state.share, 4), "done": state.done, "failed": state.failed,
        "skipped": state.skipped, "total": state.skipped + state.due, "tokens": state.tokens,
        "seconds": round(state.seconds, 2), "seconds_left": None if left is None else round(left, 1),
        "current": list(state.current), "stage": state.stage, "stopping": state.stopping,
        "memory_bytes": memory.current_bytes if memory else None,
        "peak_bytes": memory.peak_bytes if memory else None,
    }  # fmt: skip


def _error_object(error: Failure) -> dict[str, str]:
    return {"stage": error.stage, "class": error.kind, "message": error.message, "hint": error.hint}


def _write(stream: TextIO, text: str) -> None:
    """Write; a closed pipe or a full disk of the log must not end the run."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        quiet_closed_pipe(stream)
