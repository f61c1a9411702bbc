"""The history's SQLite file: private permissions, migrations, locks, and renaming of a damaged file."""

import contextlib
import itertools
import os
import sqlite3
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from vidqa.errors import HistoryError

BUSY_SECONDS = 5.0

# Number n migrates a file of version n-1 to n. Never edit a released one: append.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE sessions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            video_path BLOB NOT NULL,
            video_seconds REAL NOT NULL,
            video_width INTEGER NOT NULL,
            video_height INTEGER NOT NULL,
            model TEXT NOT NULL,
            created REAL NOT NULL,
            updated REAL NOT NULL
        )""",
        """CREATE TABLE turns (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            session_id INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
            replaces INTEGER REFERENCES turns (id) ON DELETE SET NULL,
            question TEXT NOT NULL,
            answer TEXT NOT NULL DEFAULT '',
            state TEXT NOT NULL CHECK (state IN ('running', 'answered', 'stopped', 'failed')),
            finish_reason TEXT,
            start_seconds REAL,
            end_seconds REAL,
            plan TEXT NOT NULL DEFAULT '{}',
            usage TEXT NOT NULL DEFAULT '{}',
            notes TEXT NOT NULL DEFAULT '[]',
            degraded TEXT NOT NULL DEFAULT '[]',
            error TEXT NOT NULL DEFAULT '',
            owner_process INTEGER NOT NULL,
            owner_started REAL NOT NULL,
            created REAL NOT NULL,
            updated REAL NOT NULL
        )""",
        "CREATE INDEX turns_by_session ON turns (session_id, id)",
        "CREATE INDEX turns_by_replaced ON turns (replaces) WHERE replaces IS NOT NULL",
        "CREATE INDEX turns_running ON turns (id) WHERE state = 'running'",
        "CREATE INDEX sessions_by_update ON sessions (updated)",
        # A turn is hidden while its replacement runs, and so is a turn that it replaced itself.
        """CREATE VIEW shown AS SELECT * FROM turns WHERE id NOT IN (
            WITH RECURSIVE hidden (id) AS (
                SELECT replaces FROM turns WHERE state = 'running' AND replaces IS NOT NULL
                UNION SELECT t.replaces FROM turns t JOIN hidden ON t.id = hidden.id WHERE t.replaces IS NOT NULL
            ) SELECT id FROM hidden
        )""",
    ),
)


def open_file(path: Path | None) -> tuple[sqlite3.Connection, str]:
    """Return a connection with all migrations done, and a notice for the user ("" for none); raises HistoryError.

    None opens a history in memory. Waits BUSY_SECONDS for other processes. Renames a damaged file and begins a new one.
    """
    if path is None:
        return _ready(":memory:"), ""
    with explained(path), _locked(path):
        _make_private(path)
        try:
            return _ready(str(path)), ""
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
        aside = _move(path)
        _make_private(path)
        return _ready(str(path)), f"The history was damaged; it was renamed to {aside}, and a new one was begun."


def fold(text: str) -> str:
    """Return text for comparison: composed (NFC), then case folded character by character."""
    return unicodedata.normalize("NFC", text).casefold()


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file to be damaged or no database."""
    return _primary(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file; returns the new name, or None if another process has renamed it already."""
    with explained(path), _locked(path):
        return _move(path) if _is_damaged(path) else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock for opening or renaming the history, so that no process renames another's new file.

    It is SQLite's lock on an empty file, which works on every system and ends with its process.
    """
    name = path.with_name(f".{path.name}.lock")
    _make_private(name)
    with contextlib.closing(sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield


def _move(path: Path) -> Path:
    """Rename the file and its companions, these first: SQLite would apply an old write-ahead log to a new file."""
    aside = _free_name(path)
    for companion in ("-wal", "-shm", "-journal", ""):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{companion}").rename(f"{aside}{companion}")
    return aside


@contextlib.contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """Convert errors of SQLite and the system into HistoryError; errors that mean damage pass through."""
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise
        what, remedy = _REASONS.get(_primary(error), (f"cannot be used: {error}", _WITHOUT))
        raise HistoryError(f"The history {path or 'in memory'} {what}.", remedy) from error
    except OSError as error:
        raise HistoryError(f"The history {path} cannot be used: {error}.", _WITHOUT) from error


_WITHOUT = "Set VIDQA_STATE to a folder that you can write."
_REASONS = {
    sqlite3.SQLITE_BUSY: (
        f"is locked by another program, for more than {BUSY_SECONDS:.0f} s",
        "Close the other program that has it open, then try again.",
    ),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", "Free some space; what was saved before is safe."),
    sqlite3.SQLITE_READONLY: ("may not be written", _WITHOUT),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", _WITHOUT),
    sqlite3.SQLITE_CONSTRAINT: ("has no such session any more", "Begin a new one: it was deleted meanwhile."),
}


def _primary(error: sqlite3.Error) -> int:
    """Return the primary result code: the low byte (sqlite.org/rescode.html)."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _make_private(path: Path) -> None:
    """Create the folder with mode 0700 and the file with 0600; SQLite gives its companions the file's mode.

    An existing file is not opened: closing it would drop the locks that SQLite holds in this process.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if path.is_file() and path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _ready(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, name)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, name: str) -> None:
    """Check the file before anything is written, then migrate it."""
    connection.row_factory = sqlite3.Row
    connection.create_function("holds", 2, lambda text, folded: folded in fold(_text(text)), deterministic=True)
    _refuse_newer(connection, name)
    _check(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    _migrate(connection, name)


def _text(stored: str | bytes) -> str:
    return os.fsdecode(stored) if isinstance(stored, bytes) else stored


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _refuse_newer(connection: sqlite3.Connection, name: str) -> None:
    if (version := _version(connection)) > len(MIGRATIONS):
        raise HistoryError(
            f"The history {name} is of version {version}; this vidqa knows versions up to {len(MIGRATIONS)}.",
            "Update vidqa, or set VIDQA_STATE to another folder; the file was left as it is.",
        )


def _check(connection: sqlite3.Connection) -> None:
    """Raise DatabaseError if SQLite's quick check finds damage."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _migrate(connection: sqlite3.Connection, name: str) -> None:
    """Run all missing migrations in one transaction; another process may have run them meanwhile."""
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _refuse_newer(connection, name)
        for statements in MIGRATIONS[_version(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _is_damaged(path: Path) -> bool:
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        with contextlib.closing(connection):
            _check(connection)
    except sqlite3.DatabaseError as error:
        return is_damage(error)
    return False


def _free_name(path: Path) -> Path:
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(free for name in names if not (free := path.with_name(name)).exists())
