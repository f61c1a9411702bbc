"""The history's file: killed writers, several processes, damage, locks, other versions, privacy."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.answer_builders import CLIP, made_answer
from vidqa.errors import HistoryError
from vidqa.history import database
from vidqa.history.store import History

ROOT = Path(__file__).parents[2]
# Asks for ever (or argv[2] times), and says which answers have been kept.
WRITER = """
import sys, itertools
from pathlib import Path
from tests.answer_builders import CLIP, made_answer
from vidqa.history.store import History
history = History(Path(sys.argv[1]))
session = history.begin_session(CLIP, "demo")
print(session, flush=True)
for number in range(int(sys.argv[2])) if len(sys.argv) > 2 else itertools.count():
    turn = history.begin_turn(session, f"question {number}")
    history.save_partial(turn, "half of")
    history.finish_turn(turn, made_answer(f"answer {number} " * 200))
    print(turn, flush=True)
if len(sys.argv) > 2:
    history.close()
"""


def write(path: Path, *times: str) -> "subprocess.Popen[str]":
    """A vidqa process that writes to a history."""
    command = [sys.executable, "-c", WRITER, str(path), *times]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def state(history: History, turn_id: int) -> str:
    """The state of the turn with this id, in whichever session it is."""
    found = (turn for saved in history.sessions(1000) for turn in history.turns(saved.id))
    return next((turn.state for turn in found if turn.id == turn_id), "missing")


def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    """30 kills at random moments: every turn that was told to be kept is there, whole; the others are stopped."""
    path, chance, cut = tmp_path / "history.sqlite3", random.Random(5), 0
    for _ in range(30):
        with write(path) as writer:
            assert writer.stdout is not None
            session, first = int(writer.stdout.readline()), writer.stdout.readline()
            time.sleep(chance.random() * 0.03)
            writer.kill()
            shown = {int(line) for line in [first, *writer.stdout.read().splitlines()]}
        history = History(path)
        assert history.opened() == ""
        turns = {turn.id: turn for turn in history.turns(session)}
        history.close()
        assert shown <= turns.keys()
        assert len(turns) <= len(shown) + 2  # one that was kept and not yet told, one that ran
        for number, turn in enumerate(turns.values()):
            whole = turn.answer == f"answer {number} " * 200
            assert (turn.state, whole) in (
                {("answered", True)} if turn.id in shown else {("answered", True), ("stopped", False)}
            )
            cut += turn.state == "stopped"
    assert cut > 0, "no kill came in the middle of an answer"


def test_a_stopped_turn_says_why_and_a_living_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    history = History(path)
    session = history.begin_session(CLIP, "demo")
    mine, reused = history.begin_turn(session, "mine"), history.begin_turn(session, "of a process before, with my id")
    with history._writing() as rows:
        rows.execute("UPDATE turns SET owner_started = owner_started - 1000 WHERE id = ?", (reused,))
    other = History(path)
    assert (state(other, mine), state(other, reused)) == ("running", "stopped")
    assert other.turns(session)[1].error == "vidqa ended before the answer did."
    history.finish_turn(mine, made_answer("done"))
    assert state(other, mine) == "answered"
    other.close()
    history.close()


def test_processes_that_begin_at_once_all_keep_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.sqlite3"
    writers = [write(path, "20") for _ in range(4)]
    assert all(writer.communicate()[0].count("\n") == 21 and writer.returncode == 0 for writer in writers)
    history = History(path)
    counts = [saved.turn_count for saved in history.sessions(100)]
    history.close()
    assert counts == [20] * 4


def test_two_histories_of_one_process_keep_each_others_locks(tmp_path: Path) -> None:
    """POSIX drops a process's locks when it closes any descriptor of the file: opening again must not.

    Without its lock, a process that comes and goes would take away the log that the first still writes to.
    """
    path = tmp_path / "history.sqlite3"
    count = "print(*r.execute('SELECT count(*) FROM turns').fetchone())"
    probe = f"import sqlite3, sys; r = sqlite3.connect(sys.argv[1]); {count}; r.close()"

    def seen_by_another() -> str:
        command = [sys.executable, "-c", probe, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    first, second = History(path), History(path)
    session = first.begin_session(CLIP, "demo")
    assert second.opened() == ""
    assert seen_by_another() == "0"
    first.begin_turn(session, "q")
    assert seen_by_another() == "1"
    second.close()
    first.close()


def test_threads_share_one_history(tmp_path: Path) -> None:
    history, failed = History(tmp_path / "history.sqlite3"), []

    def work() -> None:
        try:
            session = history.begin_session(CLIP, "demo")
            for number in range(25):
                history.finish_turn(history.begin_turn(session, str(number)), made_answer("yes"))
                assert len(history.turns(session)) == number + 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [saved.turn_count for saved in history.sessions(9)] == [25] * 4
    history.close()


def kept_history(path: Path, answers: int = 1) -> None:
    """A closed history with some answers of 20 KB."""
    history = History(path)
    session = history.begin_session(CLIP, "demo")
    for _ in range(answers):
        history.finish_turn(history.begin_turn(session, "q"), made_answer("an answer " * 2000))
    history.close()


@pytest.mark.parametrize("damage", ["junk", "cut", "middle"])
def test_a_damaged_file_is_set_aside_and_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "history.sqlite3"
    kept_history(path, 20)
    whole = path.read_bytes()
    broken = {
        "junk": b"no database\n" * 999,
        "cut": whole[:9000],
        "middle": whole[:4096] + b"\xee" * 40960 + whole[45056:],
    }
    path.write_bytes(broken[damage])
    history = History(path)
    history.opened()
    (aside,) = [found for found in tmp_path.iterdir() if ".damaged-" in found.name]
    assert str(aside) in history.opened() and "a new one was begun" in history.opened()
    assert aside.read_bytes() == broken[damage]
    assert history.sessions(9) == ()
    history.begin_turn(history.begin_session(CLIP, "demo"), "q")
    assert len(history.sessions(9)) == 1
    history.close()
    again = History(path)
    assert again.opened() == ""
    again.close()


def test_damage_found_while_it_is_used_is_told_and_what_follows_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    kept_history(path, 300)
    history = History(path)
    history.opened()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 10)
        file.write(b"\xee" * (size - 4096 * 10))
    with pytest.raises(HistoryError, match=r"damaged .* kept as .*\.damaged-"):
        history.search("nowhere")
    history.begin_turn(history.begin_session(CLIP, "demo"), "q")
    assert [saved.title for saved in history.sessions(9)] == ["q"]
    history.close()


def test_processes_that_meet_damage_at_once_set_it_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    path.write_bytes(b"no database\n" * 999)
    writers = [write(path, "5") for _ in range(4)]
    assert all(writer.communicate()[0].count("\n") == 6 and writer.returncode == 0 for writer in writers)
    history = History(path)
    assert [saved.turn_count for saved in history.sessions(9)] == [5] * 4
    history.close()
    assert len([found for found in tmp_path.iterdir() if ".damaged-" in found.name]) == 1


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    kept_history(path)
    with sqlite3.connect(path) as rows:
        rows.execute("PRAGMA user_version = 99")
    rows.close()
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="version 99; this vidqa knows versions up to") as refused:
        History(path).sessions(9)
    assert "left as it is" in refused.value.remedy
    assert path.read_bytes() == before
    assert not [found for found in tmp_path.iterdir() if ".damaged-" in found.name]


def test_an_older_file_is_brought_up_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, today = tmp_path / "history.sqlite3", database.MIGRATIONS
    kept_history(path)
    more = (("ALTER TABLE turns ADD COLUMN stars INTEGER NOT NULL DEFAULT 3",), ("UPDATE turns SET stars = stars + 1",))
    monkeypatch.setattr(database, "MIGRATIONS", (*today, *more))
    history = History(path)
    assert len(history.turns(1)) == 1
    with history._reading() as rows:
        assert rows.execute("SELECT stars FROM shown").fetchone()[0] == 4
        assert rows.execute("PRAGMA user_version").fetchone()[0] == len(today) + 2
    history.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, today = tmp_path / "history.sqlite3", database.MIGRATIONS
    kept_history(path)
    monkeypatch.setattr(database, "MIGRATIONS", (*today, ("DROP VIEW shown", "SELECT nonsense FROM nowhere")))
    with pytest.raises(HistoryError, match="no such table"):
        History(path).opened()
    monkeypatch.setattr(database, "MIGRATIONS", today)
    history = History(path)
    assert len(history.turns(1)) == 1
    history.close()


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """Another program in the middle of a write."""
    kept_history(tmp_path / "history.sqlite3")
    other = sqlite3.connect(tmp_path / "history.sqlite3", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_a_locked_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: sqlite3.Connection) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    history = History(tmp_path / "history.sqlite3")
    assert len(history.sessions(9)) == 1  # reading needs no lock
    with pytest.raises(HistoryError, match="locked by another program") as refused:
        history.begin_session(CLIP, "demo")
    assert "Close the other program" in refused.value.remedy
    lock.close()
    history.begin_session(CLIP, "demo")
    assert len(history.recent_videos(9)) == 1
    history.close()


def test_a_short_lock_is_waited_for(tmp_path: Path, lock: sqlite3.Connection) -> None:
    history = History(tmp_path / "history.sqlite3")
    history.opened()
    release = threading.Timer(0.3, lock.close)
    release.start()
    session = history.begin_session(CLIP, "demo")
    release.join()
    history.begin_turn(session, "q")
    assert history.session(session).title == "q"
    history.close()


def test_folder_and_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history.sqlite3"
    mask = os.umask(0)
    try:
        history = History(path)
        history.begin_session(CLIP, "demo")
        modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}
        folder = path.parent.stat().st_mode & 0o777
        history.close()
        path.chmod(0o644)
        history = History(path)
        history.opened()
        history.close()
    finally:
        os.umask(mask)
    assert folder == 0o700
    assert path.name in modes and set(modes.values()) == {0o600}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HistoryError, match=r"cannot be used: .*/file'") as refused:
        History(tmp_path / "file" / "history.sqlite3").opened()
    assert "VIDQA_STATE" in refused.value.remedy
    (tmp_path / "folder").mkdir()
    with pytest.raises(HistoryError, match="cannot be opened"):
        History(tmp_path / "folder").opened()
