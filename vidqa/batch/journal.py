"""The journal: one line of JSON for every clip and attempt, appended and on the disk before a clip counts as done.

It is the one truth about a run; whole-run files are rendered from it, and sidecars that a crash kept from being
written are written from it. A folder can have several, one for each shard; reading merges them. A journal has one
writer at a time, which holds its lock.
"""

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from vidqa.batch.clip_record import ClipRecord, RunFingerprint, Status, record_from, record_object
from vidqa.batch.shards import Shard
from vidqa.errors import UsageError, VidqaError
from vidqa.utils.atomic_write import replace_file
from vidqa.utils.safe_text import safe_line

FOLDER = ".vidqa"
_VERSION = 1
_READ_BYTES = 2**20
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Journal:
    """The journal of a shard, opened for writing: others are refused until `close`."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Raises UsageError where the folder cannot be written or another run writes there."""
        self.folder, self.shard = folder, shard
        self._path = folder / FOLDER / _name(shard)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            what = f"Captions cannot be kept in {safe_line(str(folder))}: {error.strerror}."
            raise UsageError(what, "Name a folder that may be written with -o.") from error
        try:
            self._lock(shard)
            self._repair()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def begun_ns(self) -> int:
        """When the first run of this folder began: locks are made then and never written."""
        return min(path.stat().st_mtime_ns for path in self._path.parent.glob("lock-of-*"))

    def claim(self, source: Path) -> None:
        """Note whose clips are captioned here; raises UsageError where they were another folder's that is still there.

        Clips are known by their names below it: of two folders, each would take the other's captions for old ones of
        its own.
        """
        path, here = self._path.parent / "source", os.path.realpath(source)
        known = os.fsdecode(path.read_bytes()) if path.exists() else ""
        if known == here:
            return
        if os.path.isdir(known):
            raise UsageError(
                f"{safe_line(str(self.folder))} has the captions of {safe_line(known)}, not of {safe_line(here)}.",
                "Name another folder with -o, or caption a folder that holds both with --recursive.",
            )
        replace_file(path, [os.fsencode(here)], path.with_name(".source.tmp"))

    def add(self, entry: ClipRecord | RunFingerprint) -> None:
        """Append, and wait until it is on the disk; raises OSError, after which the line may be there in part."""
        kind, values = (
            ("task", asdict(entry)) if isinstance(entry, RunFingerprint) else ("record", record_object(entry))
        )
        line = json.dumps({"v": _VERSION, kind: values}, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        written = 0
        while written < len(line):
            written += os.write(self._file, line[written:])
        os.fsync(self._file)

    def close(self) -> None:
        """Let others write."""
        for descriptor in (self._file, self._way):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _lock(self, shard: Shard) -> None:
        """Keep others from this journal, and runs that divide the folder in another way from all of it.

        First the own way of dividing is held, then the others are looked at: of two that start at once, none misses
        the other.
        """
        self._way = os.open(self._path.parent / f"lock-of-{shard.count}", _LOCK_FLAGS, 0o644)
        fcntl.flock(self._way, fcntl.LOCK_SH)
        others = [path for path in self._path.parent.glob("lock-of-*") if path.name != f"lock-of-{shard.count}"]
        if _is_held(self._file) or any(_is_held_by_path(path) for path in others):
            os.close(self._way)
            raise UsageError(
                f"Another vidqa captions {safe_line(str(self.folder))} already.",
                "Wait for it, or share the work: --shard 1/2 there and --shard 2/2 here."
                if shard.count == 1
                else f"Divide it the same way, and take a shard that nobody else does: {shard} is not free.",
            )

    def _repair(self) -> None:
        """Cut off a last line that a crash or a full disk left unfinished."""
        size = os.fstat(self._file).st_size
        end = size
        while end > 0:
            begin = max(end - _READ_BYTES, 0)
            if (place := os.pread(self._file, end - begin, begin).rfind(b"\n")) >= 0:
                end = begin + place + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._file, end)
            os.fsync(self._file)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept in memory of a record: enough to know whether its clip is done, and where to read it again."""

    content: str
    status: Status
    attempt: int
    modified_ns: int
    at: str
    journal: int
    offset: int


class Ledger:
    """What the journals of a folder say together: of every clip and task the last record, and the tasks by key.

    Holds some hundred bytes a clip; records are read again from the journals when they are wanted. `damaged` counts
    lines that are no record; nothing of them is used.
    """

    def __init__(self, folder: Path) -> None:
        """Raises VidqaError where a journal is of a newer vidqa, OSError where one cannot be read."""
        self.tasks: dict[str, RunFingerprint] = {}
        self.damaged = 0
        self._entries: dict[str, dict[str, Entry]] = {}  # by task, then by name
        self._written: dict[str, str] = {}
        self._paths = sorted((folder / FOLDER).glob("journal*.jsonl"))
        for journal, path in enumerate(self._paths):
            for offset, line in _lines(path):
                self._take(line, journal, offset)

    def entry(self, name: str, task: str) -> Entry | None:
        """The last of a clip by a task."""
        return self._entries.get(task, {}).get(name)

    def written(self, sidecar: str) -> str | None:
        """The hash of what was written last to a sidecar, by whatever task."""
        return self._written.get(sidecar)

    def record(self, entry: Entry) -> ClipRecord:
        """All of it."""
        with self._paths[entry.journal].open("rb") as file:
            return self._read(file, entry)

    def records(self, task: str) -> Iterator[ClipRecord]:
        """The last record of every clip by a task, by name."""
        with contextlib.ExitStack() as files:
            opened = [files.enter_context(path.open("rb")) for path in self._paths]
            for _, entry in sorted(self._entries.get(task, {}).items()):
                yield self._read(opened[entry.journal], entry)

    def counts(self, task: str) -> Counter[Status]:
        """How many clips of a task are done, and how many failed."""
        return Counter(entry.status for entry in self._entries.get(task, {}).values())

    def _read(self, file: BinaryIO, entry: Entry) -> ClipRecord:
        file.seek(entry.offset)
        return record_from(json.loads(file.readline())["record"])

    def _take(self, line: bytes, journal: int, offset: int) -> None:
        try:
            values: dict[str, Any] = json.loads(line)
            if values["v"] > _VERSION:
                path = safe_line(str(self._paths[journal]))
                raise VidqaError(
                    f"{path} was written by a newer vidqa.", "Update vidqa, or name another folder with -o."
                )
            if "task" in values:
                task = RunFingerprint(**values["task"])
                self.tasks[task.key] = task
                return
            record = record_from(values["record"])
        except (ValueError, KeyError, TypeError):
            self.damaged += 1
            return
        self._enter(record, journal, offset)

    def _enter(self, record: ClipRecord, journal: int, offset: int) -> None:
        """The later record counts: by place in a journal, by time between two of them."""
        entry = Entry(record.content, record.status, record.attempt, record.modified_ns, record.at, journal, offset)
        entries = self._entries.setdefault(record.task, {})
        before = entries.get(record.name)
        if before is None or before.journal == journal or before.at <= entry.at:
            entries[record.name] = entry
        if record.output is not None:
            self._written[record.output.name] = record.output.after


def _is_held(descriptor: int) -> bool:
    """Whether another process has a lock on a file; else this one has it now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_held_by_path(path: Path) -> bool:
    descriptor = os.open(path, _LOCK_FLAGS)
    try:
        return _is_held(descriptor)
    finally:
        os.close(descriptor)


def _name(shard: Shard) -> str:
    """The journal's file; the whole folder's has no numbers in it."""
    return "journal.jsonl" if shard.count == 1 else f"journal-{shard.number}-of-{shard.count}.jsonl"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and whole line: one without its end is still being written, or was never finished."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)
