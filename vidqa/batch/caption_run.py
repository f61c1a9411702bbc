"""A captioning run over a folder: decides which clips are due, journals each result, writes its sidecar.

The only code that writes captions. A record is on the disk before its sidecar is written, so that a later run can
repair a sidecar that a crash prevented.
"""

import errno
import os
import queue
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vidqa.batch.caption_writer import CaptionWriter
from vidqa.batch.clip_record import (
    Captioner,
    Clip,
    ClipRecord,
    Failure,
    PendingClip,
    RunFingerprint,
    utc_now,
)
from vidqa.batch.journal import IndexEntry, Journal, JournalIndex
from vidqa.errors import UsageError, VidqaError
from vidqa.utils.content_hash import content_id, with_sidecar
from vidqa.utils.safe_text import safe_line
from vidqa.video.subtitle_files import find_sidecar

SkipReason = Literal["done", "failed before", "not failed", "has a caption of its own"]
_MIN_FINISHED = 20  # a fraction of failures counts from this many finished clips on


@dataclass(frozen=True, slots=True)
class SkippedClip:
    """A clip that is not captioned in this run, and why."""

    clip: Clip
    reason: SkipReason
    entry: IndexEntry | None = None


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """Which clips a run takes and when it gives up; `max_failed_fraction` is of the finished clips, 0 to 1."""

    retry_failed: bool = False
    max_failures: int | None = None
    max_failed_fraction: float | None = None
    limit: int | None = None


@dataclass(slots=True)
class RunSummary:
    """Totals of a run. `clip_seconds` has each clip's share of the time; `ended` says why the run ended early.

    `unheard` clips have sound and no subtitles; `unwritten` names the files that were changed meanwhile, whose captions
    are in the journal alone.
    """

    captioned: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    ended: str = ""
    unheard: int = 0
    unwritten: list[str] = field(default_factory=list)
    skipped: Counter[SkipReason] = field(default_factory=Counter)
    clip_seconds: "array[float]" = field(default_factory=lambda: array("f"))  # 4 MB for a million clips

    @property
    def finished(self) -> int:
        """Clips that were captioned or failed."""
        return self.captioned + self.failed

    @property
    def clips_per_minute(self) -> float:
        """Finished clips per minute."""
        return 60 * self.finished / self.seconds if self.seconds else 0.0

    def percentile(self, percent: int) -> float:
        """Return a percentile of the seconds per clip, by nearest rank; 0 without clips."""
        ordered = sorted(self.clip_seconds)
        return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0.0

    def add(self, record: ClipRecord) -> None:
        """Count a record."""
        self.captioned += record.status == "done"
        self.failed += record.status == "failed"
        self.tokens += record.tokens
        self.unheard += bool(record.plan.get("unheard"))
        self.clip_seconds.append(record.seconds)


class DiskFull(VidqaError):
    """The disk is full; what was written before is kept."""


@dataclass(frozen=True, slots=True)
class ClipSelector:
    """Decides which clips a run takes: those without a result of the run's `key` in the index.

    `reads_existing`: the prompt contains a clip's caption so far; `reads_sidecars`: or its subtitles.
    """

    key: str
    policy: RunPolicy
    index: JournalIndex
    writer: CaptionWriter
    reads_existing: bool = False
    reads_sidecars: bool = False

    def examine(self, clip: Clip) -> PendingClip | SkippedClip | ClipRecord:
        """Decide whether a clip is due; one that cannot be read is a failed record. Changes nothing."""
        entry = self.index.entry(clip.name, self.key)
        if self.policy.retry_failed and (entry is None or entry.status != "failed"):
            return SkippedClip(clip, "not failed")
        try:
            self.writer.check_sidecar(clip.name)
            status = os.stat(clip.path)
            known = entry is not None and (entry.modified_ns, entry.size_bytes) == (status.st_mtime_ns, status.st_size)
            content = entry.content if entry is not None and known else content_id(clip.path)
            content = with_sidecar(content, find_sidecar(clip.path) if self.reads_sidecars else None)
            attempt = 1
            if entry is not None and entry.content == content:
                if entry.status == "done":
                    return SkippedClip(clip, "done", entry)
                if not self.policy.retry_failed:
                    return SkippedClip(clip, "failed before")
                attempt = entry.attempt + 1
            if self.writer.has_foreign_caption(clip.name):
                return SkippedClip(clip, "has a caption of its own")
            existing = self.writer.existing_text(clip.name) if self.reads_existing else ""
            return PendingClip(clip, content, attempt, existing, status.st_mtime_ns)
        except OSError as error:
            _raise_if_disk_full(error)
            message = f"{clip.name}: {error.strerror}."
            failure = Failure("open", type(error).__name__, message, "Check that the file exists and is readable.")
        except UsageError as error:  # its caption would leave the folder
            failure = Failure("output", type(error).__name__, error.what, error.remedy)
        return ClipRecord(clip.name, "", self.key, "failed", 1, at=utc_now(), error=failure)


class CaptionRun:
    """Captions the clips that are due, with one journal record each."""

    def __init__(
        self,
        clips: Iterable[Clip],
        run: RunFingerprint,
        selector: ClipSelector,
        captioner: Captioner,
        journal: Journal,
    ) -> None:
        self._clips, self._run, self._selector, self._captioner, self._journal = (
            clips,
            run,
            selector,
            captioner,
            journal,
        )
        self._policy, self._index, self._writer = selector.policy, selector.index, selector.writer
        self._not_captioned: queue.SimpleQueue[SkippedClip | ClipRecord] = queue.SimpleQueue()  # from prefetch threads
        self._pending: dict[str, PendingClip] = {}
        self.summary = RunSummary()

    def events(self) -> Iterator[SkippedClip | ClipRecord]:
        """Yield each clip's result once it is on the disk. Raises VidqaError if the run cannot continue."""
        started = time.monotonic()
        if self._run.key not in self._index.runs:
            with self._writing("The journal"):
                self._journal.append(self._run)
        try:
            for record in self._captioner.captions(self._due_clips()):
                yield from self._drain_not_captioned()
                yield self._store(self._checked(record))
                if self._too_many_failed():
                    self._captioner.finish()
            yield from self._drain_not_captioned()
        finally:
            self.summary.seconds = time.monotonic() - started

    def render(self) -> Path | None:
        """Write the file for all clips, if the format has one, and return its path; raises VidqaError."""
        with self._writing("The file of all captions"):
            return self._writer.render()

    def _due_clips(self) -> Iterator[PendingClip]:
        """Yield the clips to caption; each is examined when the captioner pulls it."""
        count = 0
        for clip in self._clips:
            if count == self._policy.limit:
                return
            found = self._selector.examine(clip)
            if isinstance(found, PendingClip):
                count += 1
                self._pending[clip.name] = found
                yield found
            else:
                self._not_captioned.put(found)

    def _drain_not_captioned(self) -> Iterator[SkippedClip | ClipRecord]:
        """Yield the clips that were examined since and need no captioner."""
        while not self._not_captioned.empty():  # this thread is the queue's only reader
            found = self._not_captioned.get()
            if isinstance(found, SkippedClip):
                self._repair_sidecar(found)
                self.summary.skipped[found.reason] += 1
                yield found
            else:
                yield self._store(found)

    def _checked(self, record: ClipRecord) -> ClipRecord:
        """Return a failed record instead if the file changed while it was captioned."""
        pending = self._pending.pop(record.name)
        try:
            status = os.stat(pending.clip.path)
            changed = (status.st_mtime_ns, status.st_size) != (
                pending.modified_ns, int(pending.content.split("-")[0])
            )  # fmt: skip
            change = "changed" if changed else ""
        except OSError:
            change = "vanished"
        if not change or record.status == "failed":
            return record
        failure = Failure("video", "ClipChanged", f"{record.name} {change} while it was captioned.", "Run again.")
        return replace(record, status="failed", error=failure, caption="", segments=())

    def _repair_sidecar(self, skipped: SkippedClip) -> None:
        """Write the sidecar of a clip that is done, if it is missing or is to change."""
        if skipped.reason == "done" and skipped.entry is not None:
            with self._writing(f"The caption of {safe_line(skipped.clip.name)}"):
                record = self._writer.repair(self._index.record(skipped.entry))
                if record is not None:
                    self._journal.append(record)
                    self._writer.write(record)

    def _store(self, record: ClipRecord) -> ClipRecord:
        """Journal the record, then write its sidecar; the next run repairs a sidecar that could not be written."""
        with self._writing(f"The caption of {safe_line(record.name)}"):
            record = self._writer.with_planned_write(record)
            self._journal.append(record)
            is_written = self._writer.write(record)
        self.summary.add(record)
        if not is_written:
            self.summary.unwritten.append(self._writer.sidecar(record.name) or record.name)
        return record

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Stop the captioner on an OSError and raise VidqaError: further captions could not be stored."""
        try:
            yield
        except OSError as error:
            self._captioner.stop()
            _raise_if_disk_full(error)
            message = f"{what} could not be written: {error.strerror}."
            raise VidqaError(message, "Earlier captions are kept; run the same command again.") from error

    def _too_many_failed(self) -> bool:
        policy, summary = self._policy, self.summary
        by_count = policy.max_failures is not None and summary.failed > policy.max_failures
        by_fraction = (
            policy.max_failed_fraction is not None
            and summary.finished >= _MIN_FINISHED
            and summary.failed > policy.max_failed_fraction * summary.finished
        )
        if summary.ended or not (by_count or by_fraction):
            return False
        summary.ended = f"{summary.failed} of {summary.finished} clips failed, more than --max-failures allows"
        return True


def _raise_if_disk_full(error: OSError) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFull(
            "The disk is full: the captions so far are kept, the last one perhaps not.",
            "Make room and run the same command again; it continues where this one ended.",
        ) from error
