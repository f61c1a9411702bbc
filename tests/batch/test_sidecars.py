"""Sidecars: their names, who wrote them, and that a crash at any step leaves the old or the new and a way to mend."""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.batch.clip_record import Written
from vidqa.batch.sidecars import (
    ON_EXISTING,
    OnExisting,
    check_mode,
    check_writable,
    existing_text,
    may_write,
    plan_write,
    settle,
    sidecar_names,
)
from vidqa.errors import UsageError

ROOT = Path(__file__).parents[2]
# Ends at once, as kill -9 would, at the n-th call that Python makes to the file system while it settles.
CRASHING = """
import os, sys
from pathlib import Path
from vidqa.batch.clip_record import Written
from vidqa.batch.sidecars import settle
folder, left, name, before, after, text = sys.argv[1:]
left = int(left)
def look(event, arguments):
    global left
    if event in ("open", "os.remove", "os.rename", "os.chmod", "os.mkdir"):
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(look)
settle(Path(folder), Written(name, before or None, after), text)
os._exit(0)
"""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(folder: Path, text: str, on_existing: OnExisting, ours: str | None = None) -> str | None:
    """Plan and settle `a.txt`; the hash of what is there then, as the next run's `ours`."""
    written = plan_write(folder, "a.txt", text, on_existing, ours)
    if written is None:
        return None
    assert settle(folder, written, text) == "written"
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


def test_a_sidecar_that_would_be_a_clip_all_the_same_is_refused() -> None:
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
        assert settle(tmp_path, written, "{}") == "written"
    assert len(os.listdir(tmp_path)) == 6


def test_skip_leaves_what_others_wrote_and_replaces_what_vidqa_wrote(tmp_path: Path) -> None:
    ours = write(tmp_path, "one", "skip")
    assert ours == digest("one")
    assert write(tmp_path, "two", "skip") is None  # without the journal nobody knows whose it is
    ours = write(tmp_path, "three", "skip", ours)
    assert (tmp_path / "a.txt").read_text() == "three"
    (tmp_path / "a.txt").write_text("three, edited")
    assert not may_write(tmp_path, "a.txt", "skip", ours)
    assert write(tmp_path, "four", "skip", ours) is None
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
def test_what_is_there_is_replaced_or_added_to(
    tmp_path: Path, mode: OnExisting, old: str | None, expected: str
) -> None:
    if old is not None:
        (tmp_path / "a.txt").write_text(old)
    assert existing_text(tmp_path, "a.txt") == (old or "")
    assert write(tmp_path, "new\n", mode) == digest(expected)
    assert (tmp_path / "a.txt").read_text() == expected


def test_bytes_that_are_no_text_stay_as_they_are_when_added_to(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\r\n")
    assert existing_text(tmp_path, "a.txt") == "caf\N{REPLACEMENT CHARACTER}\r\n"
    write(tmp_path, "new \udce9", "append")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9\r\nnew \\udce9"


@pytest.mark.parametrize(
    ("old", "now", "mode", "result", "then"),
    [
        ("old", "old", "overwrite", "written", "new"),
        ("old", "old", "append", "written", "old\nnew"),
        ("old", "new", "overwrite", "there", "new"),
        ("old", "old\nnew", "append", "there", "old\nnew"),
        ("old", None, "overwrite", "written", "new"),
        (None, None, "prepend", "written", "new"),
        ("old", "edited", "append", "edited", "edited"),
        (None, "somebody's", "skip", "edited", "somebody's"),
        ("old", None, "append", "lost", None),
    ],
)
def test_a_plan_is_carried_out_according_to_what_is_there(
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
    assert settle(tmp_path, written, "new") == result
    assert (path.read_text() if path.exists() else None) == then


def test_another_text_than_the_planned_one_is_not_written(tmp_path: Path) -> None:
    written = plan_write(tmp_path, "a.txt", "planned", "skip", None)
    assert written is not None
    assert settle(tmp_path, written, "rendered in another format") == "lost"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ON_EXISTING)
@pytest.mark.parametrize("old", [None, "old"])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_and_the_next_start_mends_it(
    tmp_path: Path, mode: OnExisting, old: str | None
) -> None:
    """Kills it at its first call, at its second, … until it comes to its end."""
    expected = {None: "new", "old": {"append": "old\nnew", "prepend": "new\nold"}.get(mode, "new")}[old]
    seen, crashes, ended = set(), 0, False
    while not ended:
        folder = tmp_path / str(crashes)
        folder.mkdir()
        path = folder / "sub" / "a.txt"
        if old is not None:
            path.parent.mkdir()
            path.write_text(old)
        ours = None if old is None else digest(old)
        written = plan_write(folder, "sub/a.txt", "new", mode, ours)
        assert written is not None
        arguments = [str(folder), str(crashes), "sub/a.txt", written.before or "", written.after, "new"]
        ended = subprocess.run([sys.executable, "-c", CRASHING, *arguments], cwd=ROOT).returncode == 0
        left = path.read_text() if path.exists() else None
        assert left in (old, expected)
        seen.add(left)
        assert settle(folder, written, "new") == ("there" if left == expected else "written")
        assert path.read_text() == expected
        if left != expected:  # what is mended leaves nothing behind
            assert os.listdir(path.parent) == ["a.txt"]
        crashes += not ended
    assert crashes >= 5
    assert seen == {old, expected}


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """A limit on the size of files stops the write in its middle, as a full disk does."""
    (tmp_path / "a.txt").write_text("old")
    text = "x" * 5000
    written = plan_write(tmp_path, "a.txt", text, "overwrite", None)
    assert written is not None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            settle(tmp_path, written, text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (os.listdir(tmp_path), (tmp_path / "a.txt").read_text()) == (["a.txt"], "old")
    assert settle(tmp_path, written, text) == "written"


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "precious").write_text("precious")
    (folder / "a.txt").symlink_to(tmp_path / "precious")
    assert write(folder, "new", "skip") is None
    assert write(folder, "new", "append") == digest("precious\nnew")
    assert not (folder / "a.txt").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_link_that_leads_nowhere_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    assert write(tmp_path, "new", "skip") == digest("new")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_planted_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "precious").write_text("precious")
    name = f".{hashlib.sha256(b'a.txt').hexdigest()[:16]}.vidqa-tmp"
    (folder / name).symlink_to(tmp_path / "precious")
    write(folder, "new", "skip")
    assert (tmp_path / "precious").read_text() == "precious"
    assert os.listdir(folder) == ["a.txt"]


@pytest.mark.parametrize("name", ["../a.txt", "/etc/a.txt", "sub/../../a.txt", "out/a.txt", "..", "", "sub/.."])
def test_a_journal_cannot_name_files_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out of"):
        settle(folder, Written(name, None, digest("new")), "new")
    assert not (tmp_path / "a.txt").exists()


def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")  # to read it would wait for ever
    with pytest.raises(OSError, match="What is there is no file"):
        plan_write(tmp_path, "a.txt", "new", "overwrite", None)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match="What is there is no file"):
        settle(tmp_path, Written("a.txt", None, digest("new")), "new")


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


def test_folders_in_which_no_file_can_be_made_are_told_before_the_run(tmp_path: Path) -> None:
    check_writable([tmp_path, tmp_path / "not" / "yet" / "there"])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Give a folder for the captions with -o"):
        check_writable([tmp_path, tmp_path / "file" / "sub"])
    locked = Path("/proc/self")  # where even root makes no file
    if os.access(locked, os.W_OK) or not locked.is_dir():
        pytest.skip("this system has no folder that is closed to everybody")
    with pytest.raises(UsageError, match="No files can be written in /proc/self"):
        check_writable([locked / "sub"])
