"""The history's file: killed writers, several processes, damage, locks, migrations, permissions."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.answer_builders import CLIP, made_answer
from vidqa.errors import HistoryError
from vidqa.history import database
from vidqa.history.store import History

ROOT = Path(__file__).parents[2]
# Adds turns for ever (or argv[2] times), and prints the ids of those that are saved.
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite3"


def write(path: Path, *times: str) -> "subprocess.Popen[str]":
    """A vidqa process that writes to a history."""
    command = [sys.executable, "-c", WRITER, str(path), *times]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def state(history: History, turn_id: int) -> str:
    """The state of the turn with this id, in whichever session it is."""
    found = (turn for saved in history.sessions(1000) for turn in history.turns(saved.id))
    return next((turn.state for turn in found if turn.id == turn_id), "missing")


def fill(path: Path, answers: int = 1) -> None:
    """Write a history with some answers of 20 KB."""
    with closing(History(path)) as history:
        session = history.begin_session(CLIP, "demo")
        for _ in range(answers):
            history.finish_turn(history.begin_turn(session, "q"), made_answer("an answer " * 2000))


def renamed(path: Path) -> list[Path]:
    """Damaged files that were renamed."""
    return [found for found in path.parent.iterdir() if ".damaged-" in found.name]


def test_answers_survive_kill_9(path: Path) -> None:
    """30 kills at random moments: every turn whose id was printed is there, whole; the others are stopped."""
    chance, cut = random.Random(5), 0
    for _ in range(30):
        with write(path) as writer:
            assert writer.stdout is not None
            session, first = int(writer.stdout.readline()), writer.stdout.readline()
            time.sleep(chance.random() * 0.03)
            writer.kill()
            shown = {int(line) for line in [first, *writer.stdout.read().splitlines()]}
        with closing(History(path)) as history:
            assert history.opened() == ""
            turns = {turn.id: turn for turn in history.turns(session)}
        assert shown <= turns.keys()
        assert len(turns) <= len(shown) + 2  # one that was saved and not yet printed, one that ran
        for number, turn in enumerate(turns.values()):
            whole = turn.answer == f"answer {number} " * 200
            assert (turn.state, whole) in (
                {("answered", True)} if turn.id in shown else {("answered", True), ("stopped", False)}
            )
            cut += turn.state == "stopped"
    assert cut > 0, "no kill came in the middle of an answer"


def test_turns_of_ended_processes_are_stopped_and_those_of_live_ones_are_not(path: Path) -> None:
    with closing(History(path)) as history, closing(History(path)) as other:
        session = history.begin_session(CLIP, "demo")
        mine, reused = history.begin_turn(session, "mine"), history.begin_turn(session, "of an earlier process, my id")
        with history._writing() as rows:
            rows.execute("UPDATE turns SET owner_started = owner_started - 1000 WHERE id = ?", (reused,))
        assert (state(other, mine), state(other, reused)) == ("running", "stopped")
        assert other.turns(session)[1].error == "vidqa ended before the answer did."
        history.finish_turn(mine, made_answer("done"))
        assert state(other, mine) == "answered"


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_begin_at_once_save_all_answers_and_rename_a_damaged_file_once(
    tmp_path: Path, damaged: bool
) -> None:
    path = tmp_path / "new" / "history.sqlite3"
    if damaged:
        path.parent.mkdir()
        path.write_bytes(b"no database\n" * 999)
    writers = [write(path, "20") for _ in range(4)]
    assert all(writer.communicate()[0].count("\n") == 21 and writer.returncode == 0 for writer in writers)
    with closing(History(path)) as history:
        assert [saved.turn_count for saved in history.sessions(100)] == [20] * 4
    assert len(renamed(path)) == damaged


def test_two_histories_of_one_process_keep_each_others_locks(path: Path) -> None:
    """POSIX drops a process's locks when it closes any descriptor of the file: opening again must not.

    Without its lock, another process that closes the file would delete the log that the first still writes to.
    """
    count = "print(*r.execute('SELECT count(*) FROM turns').fetchone())"
    probe = f"import sqlite3, sys; r = sqlite3.connect(sys.argv[1]); {count}; r.close()"

    def count_of_another_process() -> str:
        command = [sys.executable, "-c", probe, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with closing(History(path)) as first, closing(History(path)) as second:
        session = first.begin_session(CLIP, "demo")
        assert second.opened() == ""
        assert count_of_another_process() == "0"
        first.begin_turn(session, "q")
        assert count_of_another_process() == "1"


def test_threads_share_one_history(path: Path) -> None:
    def work(history: History) -> None:
        session = history.begin_session(CLIP, "demo")
        for number in range(25):
            history.finish_turn(history.begin_turn(session, str(number)), made_answer("yes"))
            assert len(history.turns(session)) == number + 1

    with closing(History(path)) as history:
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(work, history) for _ in range(4)]:
                done.result()
        assert [saved.turn_count for saved in history.sessions(9)] == [25] * 4


@pytest.mark.parametrize("damage", ["junk", "cut", "middle"])
def test_a_damaged_file_is_renamed_with_a_notice(path: Path, damage: str) -> None:
    fill(path, 20)
    whole = path.read_bytes()
    broken = {
        "junk": b"no database\n" * 999,
        "cut": whole[:9000],
        "middle": whole[:4096] + b"\xee" * 40960 + whole[45056:],
    }
    path.write_bytes(broken[damage])
    with closing(History(path)) as history:
        history.opened()
        (aside,) = renamed(path)
        assert str(aside) in history.opened() and "a new one was begun" in history.opened()
        assert aside.read_bytes() == broken[damage]
        assert history.sessions(9) == ()
        history.begin_turn(history.begin_session(CLIP, "demo"), "q")
        assert len(history.sessions(9)) == 1
    with closing(History(path)) as again:
        assert again.opened() == ""


def test_damage_found_in_use_is_an_error_and_later_turns_go_to_a_new_file(path: Path) -> None:
    fill(path, 300)
    with closing(History(path)) as history:
        history.opened()
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096 * 10)
            file.write(b"\xee" * (size - 4096 * 10))
        with pytest.raises(HistoryError, match=r"damaged .* renamed to .*\.damaged-"):
            history.search("nowhere")
        history.begin_turn(history.begin_session(CLIP, "demo"), "q")
        assert [saved.title for saved in history.sessions(9)] == ["q"]


def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as rows:
        rows.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="version 99; this vidqa knows versions up to") as refused:
        History(path).sessions(9)
    assert "left as it is" in refused.value.remedy
    assert path.read_bytes() == before and not renamed(path)


def test_an_older_file_is_migrated_with_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    more = (("ALTER TABLE turns ADD COLUMN stars INTEGER NOT NULL DEFAULT 3",), ("UPDATE turns SET stars = stars + 1",))
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, *more))
    with closing(History(path)) as history:
        assert len(history.turns(1)) == 1
        with history._reading() as rows:
            assert rows.execute("SELECT stars FROM shown").fetchone()[0] == 4
            assert rows.execute("PRAGMA user_version").fetchone()[0] == len(database.MIGRATIONS)


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    with monkeypatch.context() as patched:
        failing = ("DROP VIEW shown", "SELECT nonsense FROM nowhere")
        patched.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, failing))
        with pytest.raises(HistoryError, match="no such table"):
            History(path).opened()
    with closing(History(path)) as history:
        assert len(history.turns(1)) == 1


@pytest.fixture
def lock(path: Path) -> sqlite3.Connection:
    """Another program in the middle of a write."""
    fill(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_a_locked_file_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch, lock: sqlite3.Connection) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    with closing(History(path)) as history:
        assert len(history.sessions(9)) == 1  # reading needs no lock
        with pytest.raises(HistoryError, match="locked by another program") as refused:
            history.begin_session(CLIP, "demo")
        assert "Close the other program" in refused.value.remedy
        lock.close()
        history.begin_session(CLIP, "demo")
        assert len(history.recent_videos(9)) == 1


def test_a_short_lock_is_waited_for(path: Path, lock: sqlite3.Connection) -> None:
    with closing(History(path)) as history:
        history.opened()
        release = threading.Timer(0.3, lock.close)
        release.start()
        session = history.begin_session(CLIP, "demo")
        release.join()
        history.begin_turn(session, "q")
        assert history.session(session).title == "q"


def test_folder_and_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history.sqlite3"
    mask = os.umask(0)
    try:
        with closing(History(path)) as history:
            history.begin_session(CLIP, "demo")
            modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}
        path.chmod(0o644)
        with closing(History(path)) as history:
            history.opened()
    finally:
        os.umask(mask)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.name in modes and set(modes.values()) == {0o600}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HistoryError, match=r"cannot be used: .*/file'") as refused:
        History(tmp_path / "file" / "history.sqlite3").opened()
    assert "VIDQA_STATE" in refused.value.remedy
    with pytest.raises(HistoryError, match="cannot be opened"):
        History(tmp_path).opened()
