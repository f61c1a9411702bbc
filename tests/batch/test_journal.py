"""The journal: records survive truncation and damage, and one process writes at a time."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidqa.batch.clip_record import (
    ClipRecord,
    Failure,
    RunFingerprint,
    Segment,
    SidecarWrite,
    Span,
    record_from,
    record_object,
)
from vidqa.batch.journal import FOLDER, Journal, JournalIndex
from vidqa.batch.shards import Shard
from vidqa.errors import UsageError, VidqaError

RUN = RunFingerprint("t1", "demo", "r1", "what happens?", {"frames": None})
FULL = ClipRecord(
    "deep/clip é.mp4", "12-ab", "t1", "done", 2, "a caption", (Segment(Span(0.0, 1.5), "a caption"),), "what?",
    {"frames": 8}, 90, 0.25, "2026-11-21T10:00:00+00:00", Failure("video", "X", "m", "h"),
    SidecarWrite("a.txt", None, "ff"), ("truncated",), 17,
)  # fmt: skip


def record(name: str, status: str = "done", *, run: str = "t1", at: str = "2026-01-01") -> ClipRecord:
    return ClipRecord(name, f"1-{name}", run, status, 1, caption=f"of {name}", at=at)  # type: ignore[arg-type]


def write(folder: Path, *entries: ClipRecord | RunFingerprint, shard: Shard = Shard()) -> Path:  # noqa: B008
    with Journal(folder, shard) as journal:
        for entry in entries:
            journal.append(entry)
    return next((folder / FOLDER).glob("journal*"))


def names(folder: Path) -> list[str]:
    return [found.name for found in JournalIndex(folder).records("t1")]


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    odd = record(os.fsdecode(b"caf\xe9\n.mp4"))
    write(tmp_path, RUN, odd, FULL)
    index = JournalIndex(tmp_path)
    assert list(index.records("t1")) == [odd, FULL]
    assert index.runs == {"t1": RUN}
    assert index.last_hash("a.txt") == "ff"
    assert record_from(json.loads(json.dumps(record_object(FULL)))) == FULL


def test_a_clip_that_cannot_be_read_has_its_record(tmp_path: Path) -> None:
    gone = ClipRecord("gone.mp4", "", "t1", "failed", 1, error=Failure("open", "FileNotFoundError", "m", "h"))
    path = write(tmp_path, RUN, gone)
    index = JournalIndex(tmp_path)
    assert list(index.records("t1")) == [gone] and index.damaged == 0 and index.counts("t1") == {"failed": 1}
    path.write_bytes(path.read_bytes().replace(b'"content":"",', b""))  # as it was written before
    assert list(JournalIndex(tmp_path).records("t1")) == [gone]


def test_the_last_record_of_a_clip_counts(tmp_path: Path) -> None:
    write(tmp_path, record("a", "failed"), record("b"), record("a", "done"), record("a", run="t2"))
    index = JournalIndex(tmp_path)
    assert [(found.name, found.status) for found in index.records("t1")] == [("a", "done"), ("b", "done")]
    assert index.counts("t1") == {"done": 2}
    assert index.entry("a", "t3") is None


def test_journals_of_shards_are_read_as_one_and_the_later_record_counts(tmp_path: Path) -> None:
    write(tmp_path, record("a"), record("b", at="2026-03"), shard=Shard(2, 2))
    write(tmp_path, record("c"), record("b", "failed", at="2026-02"), shard=Shard(1, 2))
    assert [(found.name, found.status) for found in JournalIndex(tmp_path).records("t1")] == [
        ("a", "done"), ("b", "done"), ("c", "done"),
    ]  # fmt: skip


def test_the_later_write_to_a_sidecar_counts_whatever_its_journals_name(tmp_path: Path) -> None:
    def written(at: str, text_hash: str, run: str = "t1") -> ClipRecord:
        return replace(record("a", run=run, at=at), output=SidecarWrite("a.txt", None, text_hash))

    write(tmp_path, written("2026-01", "first"))
    write(tmp_path, written("2026-02", "second"), shard=Shard(1, 2))  # its journal is read first
    assert JournalIndex(tmp_path).last_hash("a.txt") == "second"
    write(tmp_path, written("2026-03", "third"), written("2026-02", "the clock went back"))
    assert JournalIndex(tmp_path).last_hash("a.txt") == "the clock went back"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_journal_that_was_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path: Path, data: st.DataObject) -> None:
    path = write(tmp_path, *(record(name) for name in "abcdef"))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\0" * 40])))
    kept = whole[:cut].count(b"\n")
    write(tmp_path, record("z"))
    assert names(tmp_path) == [*"abcdef"[:kept], "z"]
    assert JournalIndex(tmp_path).damaged == 0
    path.unlink()


def test_a_line_in_the_middle_that_is_no_record_is_counted_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, record("a"))
    with path.open("ab") as file:
        file.write(b'{"v": 1}\nnot json\n[]\n{"v": 1, "record": {"name": "q"}}\n\xff\xfe\n')
    write(tmp_path, record("b"))
    assert names(tmp_path) == ["a", "b"]
    assert JournalIndex(tmp_path).damaged == 5


def test_a_journal_of_a_newer_vidqa_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, record("a"))
    path.write_text('{"v": 99, "record": {}}\n')
    with pytest.raises(VidqaError, match="newer vidqa"):
        JournalIndex(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from vidqa.batch.journal import Journal
from vidqa.batch.shards import Shard
journal = Journal(Path(sys.argv[1]), Shard(1, int(sys.argv[2])))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_run_is_refused_unless_it_has_another_shard(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="1/2 is not free"):
            Journal(tmp_path, Shard(1, 2))
        Journal(tmp_path, Shard(2, 2)).close()
        other.kill()
    Journal(tmp_path, Shard(1, 2)).close()  # the lock ended with its process


@pytest.mark.parametrize("fails", [fcntl.LOCK_SH, fcntl.LOCK_EX | fcntl.LOCK_NB])
def test_a_file_system_without_locks_is_an_error_with_a_remedy(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        if operation == fails:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(UsageError, match=r"cannot be locked: No locks available\. Name a folder .* with -o"):
        Journal(tmp_path, Shard())
    assert len(os.listdir("/dev/fd")) == before, "all files are closed"


def test_a_run_without_shards_excludes_one_with_shards(tmp_path: Path) -> None:
    for first, second in ((Shard(1, 2), Shard()), (Shard(), Shard(2, 2))):
        with Journal(tmp_path, first), pytest.raises(UsageError, match="Another vidqa"):
            Journal(tmp_path, second)


def test_a_journal_that_cannot_be_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / FOLDER / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"journal\.jsonl cannot be read: Is a directory\. Make it readable"):
        JournalIndex(tmp_path)


def test_a_folder_that_may_not_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="with -o"):
        Journal(tmp_path / "file", Shard())
