"""A run over a folder: which clips are still to do, the journal's word on each, its sidecar, and the sum of it all.

The only place that writes captions. The record is on the disk before the sidecar is written; a crash in between is
made good from the record. Knows no model: that is the captioner's.
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
from vidqa.batch.clip_record import Captioner, Clip, ClipRecord, Failure, Pending, RunFingerprint, now
from vidqa.batch.content_hash import identify
from vidqa.batch.journal import Entry, Journal, Ledger
from vidqa.errors import VidqaError
from vidqa.utils.safe_text import safe_line

Why = Literal["done", "failed before", "not failed", "has a caption of its own"]
_MANY_ENOUGH = 20  # finished clips from which on a share of failures says something


@dataclass(frozen=True, slots=True)
class Skipped:
    """A clip that is not captioned, and why not."""

    clip: Clip
    why: Why
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """How a run goes about it. `most_failed_share` is a part of the finished clips, 0 to 1."""

    retry_failed: bool = False
    most_failures: int | None = None
    most_failed_share: float | None = None
    limit: int | None = None


@dataclass(slots=True)
class RunSummary:
    """What a run did. `clip_seconds` has each clip's share of the time; `ended` says why it ended before its end."""

    captioned: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    ended: str = ""
    skipped: Counter[Why] = field(default_factory=Counter)
    clip_seconds: "array[float]" = field(default_factory=lambda: array("f"))  # 4 MB for a million clips

    @property
    def clips_per_minute(self) -> float:
        """Captioned and failed ones."""
        return 60 * (self.captioned + self.failed) / self.seconds if self.seconds else 0.0

    def percentile(self, part: int) -> float:
        """Seconds of a clip, by nearest rank; 0 without any."""
        ordered = sorted(self.clip_seconds)
        return ordered[-(-part * len(ordered) // 100) - 1] if ordered else 0.0


class DiskFull(VidqaError):
    """What was written is kept; no more can be."""


class CaptionRun:
    """Captions the clips that need it, one journal record for each."""

    def __init__(
        self,
        clips: Iterable[Clip],
        task: RunFingerprint,
        policy: RunPolicy,
        captioner: Captioner,
        journal: Journal,
        ledger: Ledger,
        output: CaptionWriter,
        *,
        wants_existing: bool = False,
    ) -> None:
        """`wants_existing`: whether the prompt asks for a clip's old caption."""
        self._wants_existing = wants_existing
        self._clips, self._task, self._policy, self._captioner = clips, task, policy, captioner
        self._journal, self._ledger, self._output = journal, ledger, output
        self._aside: queue.SimpleQueue[Skipped | ClipRecord] = queue.SimpleQueue()  # from the threads that read ahead
        self._begun: dict[str, Pending] = {}
        self.summary = RunSummary()

    def events(self) -> Iterator[Skipped | ClipRecord]:
        """Each clip as it is settled, on the disk by then. Raises VidqaError where the run cannot go on."""
        began = time.monotonic()
        if self._task.key not in self._ledger.tasks:
            with self._writing("The journal"):
                self._journal.add(self._task)
        try:
            for record in self._captioner.captions(self._pending()):
                yield from self._told_aside()
                yield self._settled(self._checked(record))
                if self._too_many_failed():
                    self._captioner.finish()
            yield from self._told_aside()
        finally:
            self.summary.seconds = time.monotonic() - began

    def render(self) -> Path | None:
        """The file for all clips, where there is one, as the journals have it now; raises VidqaError."""
        with self._writing("The file of all captions"):
            return self._output.render(self._journal.shard)

    def _pending(self) -> Iterator[Pending]:
        """The clips to caption, looked at one by one as the captioner takes them."""
        taken = 0
        for clip in self._clips:
            if taken == self._policy.limit:
                return
            found = self._look(clip)
            if isinstance(found, Pending):
                taken += 1
                self._begun[clip.name] = found
                yield found
            else:
                self._aside.put(found)

    def _look(self, clip: Clip) -> Pending | Skipped | ClipRecord:
        """Whether a clip is to be captioned: no, if the journal has it, or somebody else's caption is there."""
        entry = self._ledger.entry(clip.name, self._task.key)
        if self._policy.retry_failed and (entry is None or entry.status != "failed"):
            return Skipped(clip, "not failed")
        try:
            status = os.stat(clip.path)
            same = entry is not None and entry.modified_ns == status.st_mtime_ns and _size(entry) == status.st_size
            content = entry.content if entry is not None and same else identify(clip.path)
            if entry is not None and entry.content == content:
                if entry.status == "done":
                    return Skipped(clip, "done", entry)
                if not self._policy.retry_failed:
                    return Skipped(clip, "failed before")
            if self._output.is_taken(clip.name):
                return Skipped(clip, "has a caption of its own")
            attempt = entry.attempt + 1 if entry is not None and entry.content == content else 1
            return Pending(clip, content, attempt, self._existing(clip), status.st_mtime_ns)
        except OSError as error:
            _raise_if_full(error)
            return self._unreadable(clip, error)

    def _existing(self, clip: Clip) -> str:
        """The clip's old caption, where the prompt asks for it."""
        return self._output.existing(clip.name) if self._wants_existing else ""

    def _unreadable(self, clip: Clip, error: OSError) -> ClipRecord:
        """It vanished, or may not be read: the clip's error, not the run's."""
        failure = Failure("open", type(error).__name__, f"{clip.name}: {error.strerror}.", "Look whether it is there.")
        return ClipRecord(clip.name, "", self._task.key, "failed", 1, at=now(), error=failure)

    def _told_aside(self) -> Iterator[Skipped | ClipRecord]:
        """What was found while clips were looked at."""
        while True:
            try:
                found = self._aside.get_nowait()
            except queue.Empty:
                return
            if isinstance(found, Skipped):
                self._mend(found)
                self.summary.skipped[found.why] += 1
                yield found
            else:
                yield self._settled(found)

    def _checked(self, record: ClipRecord) -> ClipRecord:
        """A caption of a file that changed meanwhile is of neither the old nor the new one."""
        pending = self._begun.pop(record.name)
        try:
            status = os.stat(pending.clip.path)
            changed = status.st_mtime_ns != pending.modified_ns or status.st_size != int(pending.content.split("-")[0])
            what = "changed" if changed else ""
        except OSError:
            what = "vanished"
        if not what or record.status == "failed":
            return record
        failure = Failure("video", "ClipChanged", f"{record.name} {what} while it was captioned.", "Run again.")
        return replace(record, status="failed", error=failure, caption="", segments=())

    def _mend(self, found: Skipped) -> None:
        """A clip that is done has its sidecar too, whatever happened when it was written."""
        if found.why == "done" and found.entry is not None:
            with self._writing(f"The caption of {safe_line(found.clip.name)}"):
                record = self._output.mended(self._ledger.record(found.entry))
                if record is not None:
                    self._journal.add(record)
                    self._output.write(record)

    def _settled(self, record: ClipRecord) -> ClipRecord:
        """The record on the disk, then the sidecar; one that could not be written is made good on the next run."""
        with self._writing(f"The caption of {safe_line(record.name)}"):
            record = self._output.planned(record)
            self._journal.add(record)
            self._output.write(record)
        self._count(record)
        return record

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """What cannot be written ends the run: nothing more could be kept."""
        try:
            yield
        except OSError as error:
            self._captioner.stop()
            _raise_if_full(error)
            told = f"{what} could not be written: {error.strerror}."
            raise VidqaError(told, "What was captioned before is kept; run the same command again.") from error

    def _count(self, record: ClipRecord) -> None:
        summary = self.summary
        if record.status == "done":
            summary.captioned += 1
        else:
            summary.failed += 1
        summary.tokens += record.tokens
        summary.clip_seconds.append(record.seconds)

    def _too_many_failed(self) -> bool:
        most, share, summary = self._policy.most_failures, self._policy.most_failed_share, self.summary
        finished = summary.captioned + summary.failed
        by_count = most is not None and summary.failed > most
        by_share = share is not None and finished >= _MANY_ENOUGH and summary.failed > share * finished
        if summary.ended or not (by_count or by_share):
            return False
        summary.ended = f"{summary.failed} of {finished} clips failed, more than --max-failures allows"
        return True


def _size(entry: Entry) -> int:
    return int(entry.content.split("-")[0] or -1)


def _raise_if_full(error: OSError) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFull(
            "The disk is full: the captions so far are kept, the last one perhaps not.",
            "Make room and run the same command again; it goes on where this one ended.",
        ) from error
