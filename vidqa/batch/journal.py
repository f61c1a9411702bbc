"""The journal of a captioning run: an append-only JSON Lines file, fsynced before a clip counts as done.

It is the source of truth: files for the whole run are rendered from it, and sidecars that a crash prevented are
written from it. A folder may hold one journal per shard; `JournalIndex` merges them. Each has one writer at a time,
enforced by a file lock.
"""

import contextlib
import fcntl
import json
import os
import time
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


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """Where a shard's journal is or will be: its folder. Creates nothing."""

    folder: Path
    shard: Shard

    @property
    def created_ns(self) -> int:
        """When the folder's first run began, or now: lock files are created then and never written."""
        locks = (self.folder / FOLDER).glob("lock-of-*")
        return min((path.stat().st_mtime_ns for path in locks), default=time.time_ns())


class Journal:
    """A shard's journal, opened for writing and locked until `close`."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Open or create it; raises UsageError if the folder is not writable, cannot be locked, or is in use."""
        self.folder, self.shard = folder, shard
        self._path = folder / FOLDER / _file_name(shard)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            message = f"Captions cannot be written to {safe_line(str(folder))}: {error.strerror}."
            raise UsageError(message, "Name a writable folder with -o.") from error
        try:
            self._lock(shard)
            self._truncate_partial_line()
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
    def created_ns(self) -> int:
        """When the folder's first run began: lock files are created then and never written."""
        return JournalPlace(self.folder, self.shard).created_ns

    def bind_source(self, source: Path) -> None:
        """Record which folder's clips are captioned into this one; raises UsageError if it is another existing folder.

        Clips are identified by their names below `source`, so captions of two folders would be mixed up.
        """
        path, real_source = self._path.parent / "source", os.path.realpath(source)
        bound = os.fsdecode(path.read_bytes()) if path.exists() else ""
        if bound == real_source:
            return
        if os.path.isdir(bound):
            raise UsageError(
                f"{safe_line(str(self.folder))} has the captions of {safe_line(bound)}, not of "
                f"{safe_line(real_source)}.",
                "Name another folder with -o, or caption a folder that holds both with --recursive.",
            )
        replace_file(path, [os.fsencode(real_source)], path.with_name(".source.tmp"))

    def append(self, entry: ClipRecord | RunFingerprint) -> None:
        """Append a line and fsync; after an OSError part of the line may have been written."""
        values = {"task": asdict(entry)} if isinstance(entry, RunFingerprint) else {"record": record_object(entry)}
        line = json.dumps({"v": _VERSION} | values, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        written = 0
        while written < len(line):
            written += os.write(self._file, line[written:])
        os.fsync(self._file)

    def close(self) -> None:
        """Release the file and its locks."""
        for descriptor in (self._file, self._division_lock):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _lock(self, shard: Shard) -> None:
        """Lock this journal, and the folder against runs with another number of shards.

        The shared lock on the own number comes first and the check of the others second, so that of two runs that
        start at once neither misses the other.
        """
        own = self._path.parent / f"lock-of-{shard.count}"
        with self._locking(), contextlib.ExitStack() as stack:
            self._division_lock = os.open(own, _LOCK_FLAGS, 0o644)
            stack.callback(os.close, self._division_lock)
            fcntl.flock(self._division_lock, fcntl.LOCK_SH)
            others = [path for path in self._path.parent.glob("lock-of-*") if path != own]
            if not _try_lock(self._file) or any(_is_locked(path) for path in others):
                raise UsageError(
                    f"Another vidqa captions {safe_line(str(self.folder))} already.",
                    "Wait for it, or share the work: --shard 1/2 there and --shard 2/2 here."
                    if shard.count == 1
                    else f"Use the same number of shards and a free shard: {shard} is not free.",
                )
            stack.pop_all()  # both stay open until `close`

    @contextlib.contextmanager
    def _locking(self) -> Iterator[None]:
        """Raise UsageError for an OSError: some network file systems have no locks (ENOLCK, ENOSYS, EOPNOTSUPP)."""
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"The journal in {safe_line(str(self.folder))} cannot be locked: {error.strerror}.",
                "Name a folder on a file system with locks with -o, for example on a local disk.",
            ) from error

    def _truncate_partial_line(self) -> None:
        """Remove a last line that a crash or a full disk left incomplete."""
        size = os.fstat(self._file).st_size
        end = size
        while end > 0:
            begin = max(end - _READ_BYTES, 0)
            if (newline := os.pread(self._file, end - begin, begin).rfind(b"\n")) >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._file, end)
            os.fsync(self._file)


@contextlib.contextmanager
def render_lock(folder: Path) -> Iterator[None]:
    """Let one shard at a time read all journals of a folder and write the file for all clips; raises OSError.

    Otherwise one that read earlier could replace the file of one that read more.
    """
    descriptor = os.open(folder / FOLDER / "render.lock", _LOCK_FLAGS, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """The part of a record that is kept in memory, and where the record is: journal number and byte offset."""

    content: str
    status: Status
    attempt: int
    modified_ns: int
    at: str
    journal: int
    offset: int

    @property
    def size_bytes(self) -> int:
        """The clip's size, which `content` begins with; -1 if it could not be read."""
        return int(self.content.split("-")[0] or -1)


@dataclass(frozen=True, slots=True)
class _LastWrite:
    """The hash of the content that a record wrote to a sidecar, the record's time and its journal's number."""

    hash: str
    at: str
    journal: int


class JournalIndex:
    """The last record of every clip and run in all journals of a folder, and the runs by key.

    Takes some hundred bytes a clip; records are read from the files on demand. `damaged` counts the lines that are
    not records; they are ignored.
    """

    def __init__(self, folder: Path) -> None:
        """Read the journals; raises VidqaError for one of a newer vidqa, or one that cannot be read."""
        self.runs: dict[str, RunFingerprint] = {}
        self.damaged = 0
        self._entries: dict[str, dict[str, IndexEntry]] = {}  # by run, then by clip name
        self._written: dict[str, _LastWrite] = {}  # by sidecar
        self._paths = sorted((folder / FOLDER).glob("journal*.jsonl"))
        for journal, path in enumerate(self._paths):
            try:
                for offset, line in _complete_lines(path):
                    self._add_line(line, journal, offset)
            except OSError as error:
                what = f"The journal {safe_line(str(path))} cannot be read: {error.strerror}."
                raise UsageError(what, "Make it readable, or name another folder with -o.") from error

    def entry(self, name: str, run: str) -> IndexEntry | None:
        """Return a clip's last entry in a run."""
        return self._entries.get(run, {}).get(name)

    def last_hash(self, sidecar: str) -> str | None:
        """Return the hash of the last content that any run wrote to a sidecar."""
        written = self._written.get(sidecar)
        return written.hash if written is not None else None

    def record(self, entry: IndexEntry) -> ClipRecord:
        """Read an entry's record."""
        with self._paths[entry.journal].open("rb") as file:
            return _read_record(file, entry)

    def records(self, run: str) -> Iterator[ClipRecord]:
        """Yield the last record of every clip in a run, by name."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._paths]
            for _, entry in sorted(self._entries.get(run, {}).items()):
                yield _read_record(files[entry.journal], entry)

    def counts(self, run: str) -> Counter[Status]:
        """Count the clips of a run that are done and that failed."""
        return Counter(entry.status for entry in self._entries.get(run, {}).values())

    def _add_line(self, line: bytes, journal: int, offset: int) -> None:
        try:
            values: dict[str, Any] = json.loads(line)
            if values["v"] > _VERSION:
                message = f"{safe_line(str(self._paths[journal]))} was written by a newer vidqa."
                raise VidqaError(message, "Update vidqa, or name another folder with -o.")
            if "task" in values:
                run = RunFingerprint(**values["task"])
                self.runs[run.key] = run
                return
            record = record_from(values["record"])
        except (ValueError, KeyError, TypeError):
            self.damaged += 1
            return
        self._add_record(record, journal, offset)

    def _add_record(self, record: ClipRecord, journal: int, offset: int) -> None:
        """Keep the later record: by position within a journal, by time between journals.

        That a clip could not be read leaves it done: the same file may be there again in the next run.
        """
        entry = IndexEntry(
            record.content, record.status, record.attempt, record.modified_ns, record.at, journal, offset
        )
        entries = self._entries.setdefault(record.task, {})
        previous = entries.get(record.name)
        keeps_caption = not record.content and previous is not None and previous.status == "done"
        if not keeps_caption and _is_later(entry, previous):
            entries[record.name] = entry
        if record.output is not None:
            written = _LastWrite(record.output.after, record.at, journal)
            if _is_later(written, self._written.get(record.output.name)):
                self._written[record.output.name] = written


def _is_later(new: IndexEntry | _LastWrite, previous: IndexEntry | _LastWrite | None) -> bool:
    """Return whether a record that was read after `previous` counts: in one journal always, else by their times."""
    return previous is None or previous.journal == new.journal or previous.at <= new.at


def _read_record(file: BinaryIO, entry: IndexEntry) -> ClipRecord:
    file.seek(entry.offset)
    return record_from(json.loads(file.readline())["record"])


def _try_lock(descriptor: int) -> bool:
    """Lock a file exclusively; returns False if another process has a lock on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, _LOCK_FLAGS)
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _file_name(shard: Shard) -> str:
    return "journal.jsonl" if shard.count == 1 else f"journal-{shard.number}-of-{shard.count}.jsonl"


def _complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of each line; a last line without newline is incomplete and left out."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)
