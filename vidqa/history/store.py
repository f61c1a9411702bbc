"""The history of conversations in one private SQLite file. Writes are on disk when a method returns."""

import contextlib
import json
import os
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from vidqa.errors import HistoryError
from vidqa.history.database import explained, fold, is_damage, open_file, set_aside
from vidqa.history.records import Hit, RecentVideo, SavedSession, SavedTurn, plan_figures, usage_figures
from vidqa.types import Answer, VideoInfo

FILE_NAME = "history.sqlite3"
_CUT_SHORT = "vidqa ended before the answer did."
_BEFORE_CHARACTERS, _AFTER_CHARACTERS = 40, 80
_SESSIONS = """
SELECT s.*,
    coalesce((SELECT question FROM shown t WHERE t.session_id = s.id ORDER BY t.id LIMIT 1), '') AS title,
    (SELECT count(*) FROM shown t WHERE t.session_id = s.id) AS turn_count
FROM sessions s
"""
_REPLACED = """
WITH RECURSIVE replaced (id) AS (
    SELECT replaces FROM turns WHERE id = ?
    UNION SELECT t.replaces FROM turns t JOIN replaced r ON t.id = r.id
) DELETE FROM turns WHERE id IN (SELECT id FROM replaced)
"""


class History:
    """Sessions (conversations about one video) and their turns, in the file `path`; None keeps them in memory only.

    The first call opens the file. Threads may share one History, and processes one file. Every method raises
    HistoryError if the file is newer than this program, locked for longer than BUSY_SECONDS, or not writable. Text is
    stored as it is; callers must pass it through safe_text before they print it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._notice = ""
        self._running: set[int] = set()

    def opened(self) -> str:
        """Open the file if it is not open; returns a notice for the user, "" if there is none."""
        with self._reading():
            return self._notice

    def begin_session(self, video: VideoInfo, model: str) -> int:
        """Add a session and return its id. `sessions` lists it once it has a turn."""
        now = time.time()
        values = {
            "video_path": os.fsencode(os.path.abspath(video.path)),
            "video_seconds": video.duration_seconds,
            "video_width": video.width,
            "video_height": video.height,
            "model": _plain(model),
            "created": now,
            "updated": now,
        }
        with self._writing() as rows:
            return _insert(rows, "sessions", values)

    def begin_turn(
        self,
        session_id: int,
        question: str,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        *,
        replaces: int | None = None,
    ) -> int:
        """Add a running turn about a range of the video (None: its ends) and return its id.

        It may replace a turn of its session (a repeated or edited question), by id; one that is no longer there is not
        replaced. The old turn is hidden while the new one runs and deleted when that is answered. If the new one stops
        or fails, also by a kill, the old one is listed again, so that no answer that was shown is lost.
        """
        now, (process, process_started) = time.time(), _this_process()
        values = {
            "session_id": session_id,
            "question": _plain(question),
            "state": "running",
            "start_seconds": start_seconds,
            "end_seconds": end_seconds,
            "owner_process": process,
            "owner_started": process_started,
            "created": now,
            "updated": now,
        }
        with self._writing() as rows:
            known = rows.execute("SELECT id FROM turns WHERE id = ? AND session_id = ?", (replaces, session_id))
            values["replaces"] = replaces if known.fetchone() else None  # another vidqa may have deleted it
            turn_id = _insert(rows, "turns", values)
            rows.execute("UPDATE sessions SET updated = ? WHERE id = ?", (now, session_id))
        self._running.add(turn_id)
        return turn_id

    def save_partial(self, turn_id: int, text: str) -> None:
        """Save the answer so far. Each call waits for the disk: call it about once a second."""
        with self._writing() as rows:
            rows.execute("UPDATE turns SET answer = ?, updated = ? WHERE id = ?", (_plain(text), time.time(), turn_id))

    def finish_turn(self, turn_id: int, answer: Answer) -> None:
        """Save an answer with its figures: answered, or stopped if it was cancelled. A deleted turn stays deleted."""
        figures = {
            "answer": _plain(answer.text),
            "state": "stopped" if answer.finish_reason == "cancelled" else "answered",
            "finish_reason": answer.finish_reason,
            "plan": json.dumps(plan_figures(answer.plan)),
            "usage": json.dumps(usage_figures(answer)),
            "notes": json.dumps(answer.notes),
            "degraded": json.dumps(answer.degraded),
            "error": "",
        }
        self._end(turn_id, figures)

    def fail_turn(self, turn_id: int, error: str, state: Literal["stopped", "failed"]) -> None:
        """End a turn without an answer; text of `save_partial` stays."""
        self._end(turn_id, {"state": state, "error": _plain(error)})

    def _end(self, turn_id: int, values: dict[str, str]) -> None:
        now = time.time()
        names = ", ".join(f"{name} = ?" for name in (*values, "updated"))
        with self._writing() as rows:
            rows.execute(f"UPDATE turns SET {names} WHERE id = ?", (*values.values(), now, turn_id))
            rows.execute(
                "UPDATE sessions SET updated = ? WHERE id = (SELECT session_id FROM turns WHERE id = ?)", (now, turn_id)
            )
            if values["state"] == "answered":
                rows.execute(_REPLACED, (turn_id,))
        self._running.discard(turn_id)

    def sessions(self, limit: int, search: str = "") -> tuple[SavedSession, ...]:
        """Return sessions with turns, the last used first; with `search`, those with this text in path or turns."""
        query = _SESSIONS + "WHERE turn_count > 0"
        needle = fold(_plain(search))
        if needle:
            query += (
                " AND (holds(s.video_path, :needle) OR EXISTS (SELECT 1 FROM shown t WHERE t.session_id = s.id"
                " AND (holds(t.question, :needle) OR holds(t.answer, :needle))))"
            )
        query += " ORDER BY s.updated DESC, s.id DESC LIMIT :limit"
        with self._reading() as rows:
            return tuple(_record(SavedSession, row) for row in rows.execute(query, {"needle": needle, "limit": limit}))

    def session(self, session_id: int) -> SavedSession:
        """Return one session; raises HistoryError if there is none with this id."""
        with self._reading() as rows:
            row = rows.execute(_SESSIONS + "WHERE s.id = ?", (session_id,)).fetchone()
        if row is None:
            raise HistoryError(
                f"The history has no session {session_id}.", "It may have been deleted; list them again."
            )
        return _record(SavedSession, row)

    def turns(self, session_id: int) -> tuple[SavedTurn, ...]:
        """Return the turns of a session in their order; none for an unknown id."""
        with self._reading() as rows:
            found = rows.execute("SELECT * FROM shown WHERE session_id = ? ORDER BY id", (session_id,))
            return tuple(_record(SavedTurn, row) for row in found)

    def search(self, text: str, limit: int = 100) -> tuple[Hit, ...]:
        """Return turns with a text in question or answer, the latest first. Upper and lower case are the same."""
        needle = fold(_plain(text))
        if not needle.strip():
            return ()
        with self._reading() as rows:
            found = rows.execute(
                "SELECT * FROM shown WHERE holds(question, :needle) OR holds(answer, :needle)"
                " ORDER BY updated DESC, id DESC LIMIT :limit",
                {"needle": needle, "limit": limit},
            )
            turns = [_record(SavedTurn, row) for row in found]
            ids = json.dumps([turn.session_id for turn in turns])
            found = rows.execute(_SESSIONS + "WHERE s.id IN (SELECT value FROM json_each(?))", (ids,))
            sessions = {row["id"]: _record(SavedSession, row) for row in found}
        return tuple(_hit(sessions[turn.session_id], turn, needle) for turn in turns if turn.session_id in sessions)

    def recent_videos(self, limit: int) -> tuple[RecentVideo, ...]:
        """Return the videos of the last sessions, each once, the latest first. They may no longer exist."""
        with self._reading() as rows:
            # SQLite takes the bare columns from the row that has the max (sqlite.org/lang_select.html, 2.5).
            found = rows.execute(
                "SELECT video_path AS path, video_seconds AS seconds, video_width AS width, video_height AS height,"
                " max(updated) AS opened FROM sessions GROUP BY video_path ORDER BY opened DESC LIMIT ?",
                (limit,),
            )
            return tuple(_record(RecentVideo, row) for row in found)

    def delete_session(self, session_id: int) -> None:
        """Delete a session with its turns; their bytes are overwritten."""
        self._delete("DELETE FROM sessions WHERE id = ?", session_id)

    def delete_turn(self, turn_id: int) -> None:
        """Delete a turn; its bytes are overwritten. If it was running, the turn that it replaces is listed again."""
        self._delete("DELETE FROM turns WHERE id = ?", turn_id)

    def _delete(self, statement: str, number: int) -> None:
        with self._writing() as rows:
            rows.execute(statement, (number,))
        with self._reading() as rows:
            # Until a checkpoint the write-ahead log still holds what was deleted.
            rows.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Stop the running turns of this object and close the file; a later call opens it again."""
        with self._lock:
            if self._connection is None:
                return
            try:
                for turn_id in tuple(self._running):
                    self.fail_turn(turn_id, _CUT_SHORT, "stopped")
            finally:
                self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._running.clear()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            if self._connection is None:
                self._connection, self._notice = open_file(self._path)
                _stop_orphans(self._connection)
            yield self._connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction that takes the write lock at once: an upgrade from a read lock could not wait for it."""
        with self._reading() as rows:
            rows.execute("BEGIN IMMEDIATE")
            try:
                yield rows
                rows.execute("COMMIT")
            except BaseException:
                if rows.in_transaction:
                    rows.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with explained(self._path):
                yield
        except sqlite3.DatabaseError as error:
            if not is_damage(error) or self._path is None:
                raise
            self._drop()
            aside = set_aside(self._path)
            raise HistoryError(
                f"The history is damaged ({error}){f'; it was renamed to {aside}' if aside else ''}.",
                "Later questions go to a new one.",
            ) from error


def _this_process() -> tuple[int, float]:
    """Return this process's id and start (seconds since 1970); ids alone are reused."""
    import psutil  # late: 30 ms of the first screen's time

    return os.getpid(), psutil.Process().create_time()


def _is_alive(process: int, started: float) -> bool:
    import psutil

    try:
        found = psutil.Process(process)
        # The start is derived from the clock, which may have been set since.
        return bool(abs(found.create_time() - started) < 2 and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _stop_orphans(rows: sqlite3.Connection) -> None:
    """Stop the running turns of processes that ended. A turn of a live process can still be finished afterwards."""
    running = rows.execute("SELECT id, owner_process, owner_started FROM turns WHERE state = 'running'").fetchall()
    for row in running:
        if not _is_alive(row["owner_process"], row["owner_started"]):
            stop = "UPDATE turns SET state = 'stopped', error = ? WHERE id = ? AND state = 'running'"
            rows.execute(stop, (_CUT_SHORT, row["id"]))


def _insert(rows: sqlite3.Connection, table: str, values: dict[str, Any]) -> int:
    columns = f"({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"
    return int(rows.execute(f"INSERT INTO {table} {columns}", values).lastrowid or 0)


def _plain(text: str) -> str:
    """Return text with lone surrogates escaped, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("path", "video_path"), os.fsdecode),
    **dict.fromkeys(("created", "updated", "opened"), _utc),
    **dict.fromkeys(("plan", "usage"), json.loads),
    **dict.fromkeys(("notes", "degraded"), lambda text: tuple(json.loads(text))),
}
_RecordType = TypeVar("_RecordType", SavedSession, SavedTurn, RecentVideo)


def _record(kind: type[_RecordType], row: sqlite3.Row) -> _RecordType:
    """Return a row, which has a column for each field, as a record."""
    names = [field.name for field in fields(kind)]
    return kind(**{name: _CONVERTERS[name](row[name]) if name in _CONVERTERS else row[name] for name in names})


def _hit(session: SavedSession, turn: SavedTurn, needle: str) -> Hit:
    text = turn.question if needle in fold(turn.question) else turn.answer
    text = unicodedata.normalize("NFC", text)
    found = fold(text).index(needle)
    start, end = _place(text, found), _place(text, found + len(needle) - 1) + 1
    left, right = max(start - _BEFORE_CHARACTERS, 0), end + _AFTER_CHARACTERS
    prefix, suffix = "…" if left else "", "…" if right < len(text) else ""
    snippet = prefix + "".join(" " if c.isspace() else c for c in text[left:right]) + suffix
    return Hit(session, turn, snippet, start - left + len(prefix), end - left + len(prefix))


def _place(text: str, folded_place: int) -> int:
    """Return the index of the character that covers a place of the folded text: folding may lengthen (ß is ss)."""
    length = 0
    for place, character in enumerate(text):
        length += len(character.casefold())
        if length > folded_place:
            return place
    return len(text)
