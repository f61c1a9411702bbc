"""The history: conversations about videos, their questions and answers, kept in one private SQLite file.

What a method wrote is on disk when it returns. Knows rows; knows no engine, no terminal and no format of export.
"""

import contextlib
import json
import os
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

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

    The file is opened by the first call. Threads may share one History, and processes one file.
    Every method raises HistoryError where the file cannot be used: it is newer than this program, locked
    for longer than a few seconds, or not writable. All text is kept as it was given: who prints it makes it safe.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._told = ""
        self._running: set[int] = set()

    def opened(self) -> str:
        """Open the file if that was not done; what the user should be told about it, "" where all is well."""
        with self._reading():
            return self._told

    def begin_session(self, video: VideoInfo, model: str) -> int:
        """Note that a conversation about a video begins; its id. It is listed from its first turn on."""
        now = time.time()
        path = os.fsencode(os.path.abspath(video.path))
        facts = (path, video.duration_seconds, video.width, video.height, _plain(model), now, now)
        with self._writing() as rows:
            return _insert(
                rows, "sessions", "video_path video_seconds video_width video_height model created updated", facts
            )

    def begin_turn(
        self, session_id: int, question: str, start_seconds: float | None = None, end_seconds: float | None = None
    ) -> int:
        """Note a question that is being answered, about the range given (None: the video's ends); its id."""
        with self._writing() as rows:
            return self._begin(rows, session_id, question, start_seconds, end_seconds, None)

    def replace_last_turn(
        self, session_id: int, question: str, start_seconds: float | None = None, end_seconds: float | None = None
    ) -> int:
        """Begin a turn in place of the session's last one (ask again, or an edited question); its id.

        The old turn is hidden while the new one runs. Once that is answered the old one is deleted, since
        who edits a question expects the old wording to be gone; where it stops or fails,
        also by a kill, the old one is listed again, so that an answer that was shown is never lost.
        """
        with self._writing() as rows:
            last = rows.execute("SELECT max(id) FROM shown WHERE session_id = ?", (session_id,)).fetchone()[0]
            return self._begin(rows, session_id, question, start_seconds, end_seconds, last)

    def _begin(
        self,
        rows: sqlite3.Connection,
        session_id: int,
        question: str,
        start_seconds: float | None,
        end_seconds: float | None,
        replaces: int | None,
    ) -> int:
        now = time.time()
        turn_id = _insert(
            rows,
            "turns",
            "session_id question state start_seconds end_seconds replaces owner_process owner_started created updated",
            (session_id, _plain(question), "running", start_seconds, end_seconds, replaces, *_this_process(), now, now),
        )
        rows.execute("UPDATE sessions SET updated = ? WHERE id = ?", (now, session_id))
        self._running.add(turn_id)
        return turn_id

    def save_partial(self, turn_id: int, text: str) -> None:
        """Keep what was written of an answer so far; each call waits for the disk, so about once a second."""
        with self._writing() as rows:
            rows.execute("UPDATE turns SET answer = ?, updated = ? WHERE id = ?", (_plain(text), time.time(), turn_id))

    def finish_turn(self, turn_id: int, answer: Answer) -> None:
        """Keep an answer with its figures: answered, or stopped if it was cancelled. A deleted turn stays deleted."""
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
        """End a turn without an answer, saying why; what `save_partial` kept of it stays."""
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
        """Sessions that have a turn, the last used first; with `search`, those whose path or turns hold that text."""
        query = _SESSIONS + "WHERE turn_count > 0"
        needle = fold(_plain(search))
        if needle:
            query += (
                " AND (holds(s.video_path, :needle) OR EXISTS (SELECT 1 FROM shown t WHERE t.session_id = s.id"
                " AND (holds(t.question, :needle) OR holds(t.answer, :needle))))"
            )
        query += " ORDER BY s.updated DESC, s.id DESC LIMIT :limit"
        with self._reading() as rows:
            return tuple(_session(row) for row in rows.execute(query, {"needle": needle, "limit": limit}))

    def session(self, session_id: int) -> SavedSession:
        """One session; raises HistoryError if there is none with this id."""
        with self._reading() as rows:
            row = rows.execute(_SESSIONS + "WHERE s.id = ?", (session_id,)).fetchone()
        if row is None:
            raise HistoryError(
                f"The history has no session {session_id}.", "It may have been deleted; list them again."
            )
        return _session(row)

    def turns(self, session_id: int) -> tuple[SavedTurn, ...]:
        """The turns of a session in the order they were asked; none where there is no such session."""
        with self._reading() as rows:
            found = rows.execute("SELECT * FROM shown WHERE session_id = ? ORDER BY id", (session_id,))
            return tuple(_turn(row) for row in found)

    def search(self, text: str, limit: int = 100) -> tuple[Hit, ...]:
        """Turns whose question or answer holds a text, literally but for upper and lower case; the latest first."""
        needle = fold(_plain(text))
        if not needle.strip():
            return ()
        with self._reading() as rows:
            found = rows.execute(
                "SELECT * FROM shown WHERE holds(question, :needle) OR holds(answer, :needle)"
                " ORDER BY updated DESC, id DESC LIMIT :limit",
                {"needle": needle, "limit": limit},
            )
            turns = [_turn(row) for row in found]
            ids = json.dumps([turn.session_id for turn in turns])
            homes = rows.execute(_SESSIONS + "WHERE s.id IN (SELECT value FROM json_each(?))", (ids,))
            sessions = {row["id"]: _session(row) for row in homes}
        return tuple(_hit(sessions[turn.session_id], turn, needle) for turn in turns if turn.session_id in sessions)

    def recent_videos(self, limit: int) -> tuple[RecentVideo, ...]:
        """The videos of the last sessions, each once, the latest first; whether they still exist is not looked at."""
        with self._reading() as rows:
            # SQLite takes the bare columns from the row that has the max (sqlite.org/lang_select.html, 2.5).
            found = rows.execute(
                "SELECT *, max(updated) AS opened FROM sessions GROUP BY video_path ORDER BY opened DESC LIMIT ?",
                (limit,),
            )
            return tuple(_video(row) for row in found)

    def delete_session(self, session_id: int) -> None:
        """Delete a session with its turns; their bytes are overwritten."""
        self._delete("DELETE FROM sessions WHERE id = ?", session_id)

    def delete_turn(self, turn_id: int) -> None:
        """Delete a turn; its bytes are overwritten. What it was just going to replace is listed again."""
        self._delete("DELETE FROM turns WHERE id = ?", turn_id)

    def _delete(self, statement: str, number: int) -> None:
        with self._writing() as rows:
            rows.execute(statement, (number,))
        with self._reading() as rows:
            # Until a checkpoint the write-ahead log still holds what was deleted.
            rows.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Mark turns that were begun here and not ended as stopped, and close the file; a later call opens it anew."""
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
                self._connection, self._told = open_file(self._path)
                _stop_orphans(self._connection)
            yield self._connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which takes the file's write lock at once: an upgrade from reading could not wait for it."""
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
                f"The history is damaged ({error}){f'; it is kept as {aside}' if aside else ''}.",
                "What follows goes to a new one.",
            ) from error


def _this_process() -> tuple[int, float]:
    """Who runs a turn: process id and start (seconds since 1970), since ids are used again."""
    import psutil  # 30 ms that a first screen can do without

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
    """Turns that a killed process left running are stopped; one wrongly taken for dead still ends as it does."""
    running = rows.execute("SELECT id, owner_process, owner_started FROM turns WHERE state = 'running'").fetchall()
    dead = [row["id"] for row in running if not _is_alive(row["owner_process"], row["owner_started"])]
    for turn_id in dead:
        rows.execute(
            "UPDATE turns SET state = 'stopped', error = ? WHERE id = ? AND state = 'running'", (_CUT_SHORT, turn_id)
        )


def _insert(rows: sqlite3.Connection, table: str, names: str, values: tuple[object, ...]) -> int:
    columns = names.split()
    marks = ", ".join("?" * len(columns))
    done = rows.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)
    return int(done.lastrowid or 0)


def _plain(text: str) -> str:
    """UTF-8 has no lone surrogates: they are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _session(row: sqlite3.Row) -> SavedSession:
    return SavedSession(
        id=row["id"],
        video_path=os.fsdecode(row["video_path"]),
        video_seconds=row["video_seconds"],
        video_width=row["video_width"],
        video_height=row["video_height"],
        model=row["model"],
        title=row["title"],
        turn_count=row["turn_count"],
        created=_when(row["created"]),
        updated=_when(row["updated"]),
    )


def _turn(row: sqlite3.Row) -> SavedTurn:
    return SavedTurn(
        id=row["id"],
        session_id=row["session_id"],
        question=row["question"],
        answer=row["answer"],
        state=row["state"],
        finish_reason=row["finish_reason"],
        start_seconds=row["start_seconds"],
        end_seconds=row["end_seconds"],
        plan=json.loads(row["plan"]),
        usage=json.loads(row["usage"]),
        notes=tuple(json.loads(row["notes"])),
        degraded=tuple(json.loads(row["degraded"])),
        error=row["error"],
        created=_when(row["created"]),
        updated=_when(row["updated"]),
    )


def _video(row: sqlite3.Row) -> RecentVideo:
    path = os.fsdecode(row["video_path"])
    return RecentVideo(path, row["video_seconds"], row["video_width"], row["video_height"], _when(row["opened"]))


def _hit(session: SavedSession, turn: SavedTurn, needle: str) -> Hit:
    text = turn.question if needle in fold(turn.question) else turn.answer
    text = unicodedata.normalize("NFC", text)
    found = fold(text).index(needle)
    start, end = _place(text, found), _place(text, found + len(needle) - 1) + 1
    left, right = max(start - _BEFORE_CHARACTERS, 0), end + _AFTER_CHARACTERS
    lead, tail = "…" if left else "", "…" if right < len(text) else ""
    snippet = lead + "".join(" " if c.isspace() else c for c in text[left:right]) + tail
    return Hit(session, turn, snippet, start - left + len(lead), end - left + len(lead))


def _place(text: str, folded_place: int) -> int:
    """The character whose folded form covers a place of the folded text: folding may lengthen (ß is ss)."""
    length = 0
    for place, character in enumerate(text):
        length += len(character.casefold())
        if length > folded_place:
            return place
    return len(text)
