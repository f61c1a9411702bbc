"""Sidecars: their names, protection of users' files, and recovery from a crash at any step."""

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from vidqa.batch.clip_record import SidecarWrite
from vidqa.batch.sidecars import (
    ON_EXISTING,
    OnExisting,
    apply_write,
    check_mode,
    check_writable,
    existing_text,
    may_write,
    plan_write,
    sidecar_names,
)
from vidqa.errors import UsageError

# Ends, as by kill -9, at the n-th call that Python makes to the file system during apply_write.
CRASHING = """
import os, sys
from pathlib import Path
from tests.conftest import ROOT
from vidqa.batch.clip_record import SidecarWrite
from vidqa.batch.sidecars import apply_write
folder, left, name, before, after, text = sys.argv[1:]
left = int(left)
def count(event, arguments):
    global left
    if event in ("open", "os.remove", "os.rename", "os.chmod", "os.mkdir"):
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(count)
apply_write(Path(folder), SidecarWrite(name, before or None, after), text)
os._exit(0)
"""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(folder: Path, text: str, on_existing: OnExisting, own_hash: str | None = None) -> str | None:
    """Plan and apply_write `a.txt`; the hash of what is there then, as the next run's `own_hash`."""
    written = plan_write(folder, "a.txt", text, on_existing, own_hash)
    if written is None:
        return None
    assert apply_write(folder, written, text) == "written"
    return written.after


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.mp4", "sub/a.mp4", "b"], ["a.txt", "sub/a.txt", "b.txt"]),
        (["a.mp4", "a.mov"], ["a.mp4.txt", "a.mov.txt"]),
        (["a.mp4", "A.mov"], ["a.mp4.txt", "A.mov.txt"]),
        (["a.mp4", "a.mov", "a.mp4.gif"], ["a.mp4.txt", "a.mov.txt", "a.mp4.gif.txt"]),
        (["clip.txt"], ["clip.txt.txt"]),
        (["a.txt", "a.mp4"], ["a.txt.txt", "a.mp4.txt"]),
        (["-rf.mp4", "two\nlines.mp4", " .mp4"], ["-rf.txt", "two\nlines.txt", " .txt"]),
    ],
)
def test_no_two_clips_share_a_sidecar_and_none_is_a_clip(names: list[str], expected: list[str]) -> None:
    assert list(sidecar_names(names, ".txt").values()) == expected
    assert sidecar_names(names[::-1], ".txt") == sidecar_names(names, ".txt")


FEW_LETTERS = st.text("aA.", min_size=1, max_size=4).filter(lambda name: name.strip(".") != "")


@given(st.sets(st.builds("".join, st.tuples(FEW_LETTERS, st.sampled_from(["", ".mp4", ".txt", ".txt.txt"])))))
def test_sidecars_are_distinct_for_any_listing(names: set[str]) -> None:
    try:
        sidecars = sidecar_names(names, ".txt")
    except UsageError as error:
        assert "would replace a clip" in error.what
        return
    assert len(set(sidecars.values())) == len(names)
    assert names.isdisjoint(sidecars.values())


def test_a_sidecar_that_would_still_be_a_clip_is_refused() -> None:
    with pytest.raises(UsageError, match=r"The \.txt file of a\.txt would replace a clip"):
        sidecar_names(["a.txt", "a.txt.txt"], ".txt")


def test_names_that_would_be_too_long_are_cut_and_stay_apart(tmp_path: Path) -> None:
    long = ["é" * 125 + "1x.ts", "é" * 125 + "1y.ts", "z" * 252 + ".ts"]
    sidecars = sidecar_names(long, ".json")
    assert len(set(sidecars.values())) == 3
    for name, sidecar in sidecars.items():
        (tmp_path / name).touch()  # 255 bytes: the longest that there is
        assert len(os.fsencode(sidecar)) in (254, 255)
        written = plan_write(tmp_path, sidecar, "{}", "skip", None)
        assert written is not None
        assert apply_write(tmp_path, written, "{}") == "written"
    assert len(os.listdir(tmp_path)) == 6


def test_skip_replaces_only_what_vidqa_wrote(tmp_path: Path) -> None:
    own_hash = write(tmp_path, "one", "skip")
    assert own_hash == digest("one")
    assert write(tmp_path, "two", "skip") is None  # without the journal the file may be the user's
    own_hash = write(tmp_path, "three", "skip", own_hash)
    assert (tmp_path / "a.txt").read_text() == "three"
    (tmp_path / "a.txt").write_text("three, edited")
    assert not may_write(tmp_path, "a.txt", "skip", own_hash)
    assert write(tmp_path, "four", "skip", own_hash) is None
    assert (tmp_path / "a.txt").read_text() == "three, edited"


@pytest.mark.parametrize(
    ("mode", "old", "expected"),
    [
        ("overwrite", "old", "new\n"),
        ("append", "old", "old\nnew\n"),
        ("append", "old\n", "old\nnew\n"),
        ("prepend", "old", "new\nold"),
        ("append", None, "new\n"),
        ("prepend", "", "new\n"),
    ],
)
def test_present_content_is_replaced_or_added_to(
    tmp_path: Path, mode: OnExisting, old: str | None, expected: str
) -> None:
    if old is not None:
        (tmp_path / "a.txt").write_text(old)
    assert existing_text(tmp_path, "a.txt") == (old or "")
    assert write(tmp_path, "new\n", mode) == digest(expected)
    assert (tmp_path / "a.txt").read_text() == expected


def test_bytes_that_are_not_utf8_stay_when_text_is_added(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\r\n")
    assert existing_text(tmp_path, "a.txt") == "caf\N{REPLACEMENT CHARACTER}\r\n"
    write(tmp_path, "new \udce9", "append")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9\r\nnew \\udce9"


@pytest.mark.parametrize(
    ("old", "now", "mode", "result", "then"),
    [
        ("old", "old", "overwrite", "written", "new"),
        ("old", "old", "append", "written", "old\nnew"),
        ("old", "new", "overwrite", "unchanged", "new"),
        ("old", "old\nnew", "append", "unchanged", "old\nnew"),
        ("old", None, "overwrite", "written", "new"),
        (None, None, "prepend", "written", "new"),
        ("old", "edited", "append", "edited", "edited"),
        (None, "somebody's", "skip", "edited", "somebody's"),
        ("old", None, "append", "lost", None),
    ],
)
def test_a_planned_write_depends_on_the_present_content(
    tmp_path: Path, old: str | None, now: str | None, mode: OnExisting, result: str, then: str | None
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)
    written = plan_write(tmp_path, "a.txt", "new", mode, None)
    assert written is not None
    path.unlink(missing_ok=True)
    if now is not None:
        path.write_text(now)
    assert apply_write(tmp_path, written, "new") == result
    assert (path.read_text() if path.exists() else None) == then


def test_only_the_planned_text_is_written(tmp_path: Path) -> None:
    written = plan_write(tmp_path, "a.txt", "planned", "skip", None)
    assert written is not None
    assert apply_write(tmp_path, written, "rendered in another format") == "lost"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ON_EXISTING)
@pytest.mark.parametrize("old", [None, "old"])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_file_and_is_repaired(
    tmp_path: Path, mode: OnExisting, old: str | None
) -> None:
    expected = {None: "new", "old": {"append": "old\nnew", "prepend": "new\nold"}.get(mode, "new")}[old]
    seen, crashes, ended = set(), 0, False
    while not ended:
        folder = tmp_path / str(crashes)
        folder.mkdir()
        path = folder / "sub" / "a.txt"
        if old is not None:
            path.parent.mkdir()
            path.write_text(old)
        own_hash = None if old is None else digest(old)
        written = plan_write(folder, "sub/a.txt", "new", mode, own_hash)
        assert written is not None
        arguments = [str(folder), str(crashes), "sub/a.txt", written.before or "", written.after, "new"]
        ended = subprocess.run([sys.executable, "-c", CRASHING, *arguments], cwd=ROOT).returncode == 0
        left = path.read_text() if path.exists() else None
        assert left in (old, expected)
        seen.add(left)
        assert apply_write(folder, written, "new") == ("unchanged" if left == expected else "written")
        assert path.read_text() == expected
        if left != expected:  # a repair leaves no temporary file
            assert os.listdir(path.parent) == ["a.txt"]
        crashes += not ended
    assert crashes >= 5
    assert seen == {old, expected}


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """A limit on file sizes stops the write halfway, as a full disk does."""
    (tmp_path / "a.txt").write_text("old")
    text = "x" * 5000
    written = plan_write(tmp_path, "a.txt", text, "overwrite", None)
    assert written is not None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            apply_write(tmp_path, written, text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (os.listdir(tmp_path), (tmp_path / "a.txt").read_text()) == (["a.txt"], "old")
    assert apply_write(tmp_path, written, text) == "written"


def test_links_are_replaced_and_their_targets_stay(tmp_path: Path) -> None:
    folder, precious = tmp_path / "folder", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("precious")
    (folder / "a.txt").symlink_to(precious)
    assert write(folder, "new", "skip") is None
    (folder / f".{hashlib.sha256(b'a.txt').hexdigest()[:16]}.vidqa-tmp").symlink_to(precious)  # planted
    assert write(folder, "new", "append") == digest("precious\nnew")
    assert not (folder / "a.txt").is_symlink()
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(tmp_path / "gone")
    assert write(folder, "new", "skip") == digest("new")
    assert precious.read_text() == "precious"
    assert os.listdir(folder) == ["a.txt"]


@pytest.mark.parametrize("name", ["../a.txt", "/etc/a.txt", "sub/../../a.txt", "out/a.txt", "..", "", "sub/.."])
def test_a_journal_cannot_name_files_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out of"):
        apply_write(folder, SidecarWrite(name, None, digest("new")), "new")
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])  # reading a pipe would wait for ever
def test_only_regular_files_are_read_and_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.txt")
    with pytest.raises(OSError, match="Not a regular file"):
        plan_write(tmp_path, "a.txt", "new", "overwrite", None)
    with pytest.raises(OSError, match="Not a regular file"):
        apply_write(tmp_path, SidecarWrite("a.txt", None, digest("new")), "new")


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o640)
    write(tmp_path, "new", "overwrite")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_only_text_can_be_added_to() -> None:
    for mode in ON_EXISTING:
        check_mode(".txt", mode)
    check_mode(".json", "overwrite")
    for suffix in (".json", ".srt", ".vtt"):
        with pytest.raises(UsageError, match=rf"Nothing can be added to a \{suffix} file"):
            check_mode(suffix, "append")


def test_folders_that_are_not_writable_are_refused(tmp_path: Path) -> None:
    check_writable([tmp_path, tmp_path / "not" / "yet" / "unchanged"])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Give a folder for the captions with -o"):
        check_writable([tmp_path, tmp_path / "file" / "sub"])
    locked = Path("/proc/self")  # where even root makes no file
    if os.access(locked, os.W_OK) or not locked.is_dir():
        pytest.skip("this system has no folder that is closed to everybody")
    with pytest.raises(UsageError, match="No files can be written in /proc/self"):
        check_writable([locked / "sub"])
