"""Discovery of clips in folders and lists, their names, and division into shards."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.batch.clip_record import Clip
from vidqa.batch.discover import discover, read_list
from vidqa.batch.shards import Shard, parse_shard, shard_clips, slurm_shard
from vidqa.errors import UsageError


def make(folder: Path, *names: str) -> Path:
    """A folder with these files, each with its own name in it."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return folder


def names(*paths: Path, recursive: bool = False, glob: str | None = None) -> list[str]:
    found = discover(map(str, paths), recursive=recursive, glob=glob)
    assert all(os.path.isfile(clip.path) and os.path.isabs(clip.path) for clip in found.clips)
    return [clip.name for clip in found.clips]


def test_visible_videos_and_images_are_found_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    make(tmp_path, "b.mp4", "a.PNG", "B.mkv", "é.webp", "notes.txt", "a.mp4.txt", ".hidden.mp4", "._b.mp4")
    make(tmp_path, "sub/deep/c.mp4", "sub/a.gif", ".vidqa/left.mp4", ".git/left.mp4", "sub.mp4/inside.mp4")
    assert names(tmp_path) == ["B.mkv", "a.PNG", "b.mp4", "é.webp"]
    below = ["sub.mp4/inside.mp4", "sub/a.gif", "sub/deep/c.mp4"]
    assert names(tmp_path, recursive=True) == ["B.mkv", "a.PNG", "b.mp4", *below, "é.webp"]


def test_a_folder_with_folders_only_suggests_recursive(tmp_path: Path) -> None:
    found = discover([str(make(tmp_path, "sub/a.mp4"))])
    assert found.clips == ()
    assert found.notes == ("1 folder (sub/) was not searched; use --recursive.",)
    assert discover([str(make(tmp_path, "b.mp4"))]).notes == ()


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    make(tmp_path, "clip.dat", ".hidden")
    assert names(tmp_path / "clip.dat", tmp_path / ".hidden") == [".hidden", "clip.dat"]


def test_odd_names_are_names(tmp_path: Path) -> None:
    odd = ["-rf.mp4", "two\nlines.mp4", " .mp4", "%s{name}.mp4", "x" * 251 + ".mp4", os.fsdecode(b"caf\xe9.mp4")]
    make(tmp_path, *odd)
    assert names(tmp_path) == sorted(odd, key=os.fsencode)


def test_links_to_files_are_taken_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/a.mp4", "elsewhere.bin", "real/sub/b.mp4")
    (tmp_path / "real" / "linked.mp4").symlink_to(tmp_path / "elsewhere.bin")
    (tmp_path / "real" / "sub" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    found = discover([str(tmp_path / "real")], recursive=True)
    assert [clip.name for clip in found.clips] == ["a.mp4", "linked.mp4", "sub/b.mp4"]
    loop, broken = tmp_path / "real" / "sub" / "loop", tmp_path / "real" / "broken.mp4"
    assert found.notes == (
        f"1 link ({loop}) to a folder not followed: name the folder to have its clips.",
        f"1 broken link ({broken}) left out.",
    )
    assert names(loop) == ["a.mp4", "linked.mp4"]  # named, a link to a folder is a folder


def test_a_file_that_is_found_by_two_ways_is_taken_once_under_its_own_name(tmp_path: Path) -> None:
    make(tmp_path, "folder/real.mp4")
    (tmp_path / "folder" / "alias.mp4").symlink_to("real.mp4")
    (tmp_path / "other").symlink_to("folder")
    ways = [tmp_path / "folder", tmp_path / "folder" / "real.mp4", tmp_path / "other", tmp_path / "folder" / "."]
    found = discover(map(str, ways))
    assert [clip.name for clip in found.clips] == ["real.mp4"]
    assert found.notes[-1].startswith("4 files (the first: ")


def test_folders_with_equal_names_in_them_put_their_own_in_front(tmp_path: Path) -> None:
    make(tmp_path, "a/x.mp4", "a/only.mp4", "b/x.mp4", "c/y.mp4")
    both = ["a/only.mp4", "a/x.mp4", "b/x.mp4", "y.mp4"]
    assert names(tmp_path / "a", tmp_path / "b", tmp_path / "c") == both
    assert names(tmp_path / "c", tmp_path / "b", tmp_path / "a") == both


def test_folders_of_one_name_put_as_much_of_their_path_in_front_as_it_takes(tmp_path: Path) -> None:
    make(tmp_path, "p/v/x.mp4", "q/v/x.mp4", "r/p/v/x.mp4")
    assert names(tmp_path / "p/v", tmp_path / "q/v") == ["p/v/x.mp4", "q/v/x.mp4"]
    three = names(tmp_path / "p/v/x.mp4", tmp_path / "q/v", tmp_path / "r/p/v")
    assert three == sorted([f"{tmp_path.name}/p/v/x.mp4", "q/v/x.mp4", "r/p/v/x.mp4"])


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.mp4", ["a.mp4", "sub/c.mp4"]),
        ("**/*.mp4", ["a.mp4", "sub/c.mp4"]),
        ("sub/*", ["sub/c.mp4"]),
        ("[ab].*", ["a.mp4", "b.mov"]),
        ("*.txt", []),
    ],
)
def test_a_pattern_is_for_the_name_below_the_folder(tmp_path: Path, glob: str, expected: list[str]) -> None:
    make(tmp_path, "a.mp4", "b.mov", "sub/c.mp4", "a.txt")
    assert names(tmp_path, recursive=True, glob=glob) == expected


def test_a_folder_that_cannot_be_read_is_a_note(tmp_path: Path) -> None:
    """A path that is too long stops root too; it cannot be made at once."""
    make(tmp_path, "a.mp4")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=descriptor)
        descriptor, parent = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor), descriptor
        os.close(parent)
    os.close(descriptor)
    found = discover([str(tmp_path)], recursive=True)
    assert [clip.name for clip in found.clips] == ["a.mp4"]
    assert len(found.notes) == 1
    assert found.notes[0].endswith("cannot be read: File name too long.")


def test_paths_that_are_not_there_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    with pytest.raises(UsageError, match=r"gone\.mp4 does not exist\. This applies to 1 more of the 3 given"):
        discover([str(tmp_path / "a.mp4"), str(tmp_path / "gone.mp4"), str(tmp_path / "gone too")])
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UsageError, match=r"pipe\.mp4 is neither a file nor a folder"):
        discover([str(tmp_path / "pipe.mp4")])
    assert names(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("data", "nul", "expected"),
    [
        (b"a.mp4\nb c.mp4\n", False, ["a.mp4", "b c.mp4"]),
        (b"\xef\xbb\xbfa.mp4\r\n\r\n b.mp4 ", False, ["a.mp4", " b.mp4 "]),
        (b"two\nlines.mp4\0-b.mp4\0", True, ["two\nlines.mp4", "-b.mp4"]),
        (b"caf\xe9.mp4", False, [os.fsdecode(b"caf\xe9.mp4")]),
        (b"", False, []),
    ],
)
def test_lists_have_a_path_per_line_or_per_nul(tmp_path: Path, data: bytes, nul: bool, expected: list[str]) -> None:
    (tmp_path / "list").write_bytes(data)
    assert read_list(str(tmp_path / "list"), nul=nul) == expected


def test_lists_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a.mp4\0b.mp4\0")
    with pytest.raises(UsageError, match="Use -0"):
        read_list(str(tmp_path / "list"))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_list(str(tmp_path / "gone"))


def test_paths_in_a_list_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "sub/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert discover(["sub/a.mp4"]).clips == (Clip(str(tmp_path / "sub/a.mp4"), "a.mp4"),)


@given(st.sets(st.binary(min_size=1).map(os.fsdecode)), st.integers(1, 9))
def test_shards_are_disjoint_and_complete_and_do_not_depend_on_the_order(clip_names: set[str], count: int) -> None:
    clips = [Clip(f"/{name}", name) for name in clip_names]
    shards = [shard_clips(clips, Shard(number, count)) for number in range(1, count + 1)]
    assert sorted(clip.name for part in shards for clip in part) == sorted(clip.name for clip in clips)
    assert set(shard_clips(clips[::-1], Shard(1, count))) == set(shards[0])


def test_shards_are_the_same_in_every_process_and_of_like_size() -> None:
    clips = [Clip("", f"clip{number:04}.mp4") for number in range(1000)]
    sizes = [len(shard_clips(clips, Shard(number, 4))) for number in range(1, 5)]
    assert sizes == [258, 243, 250, 249]
    assert [clip.name for clip in shard_clips(clips[:10], Shard(2, 3))] == ["clip0002.mp4", "clip0003.mp4"]


def test_shards_are_written_as_a_fraction() -> None:
    assert parse_shard(" 2/8 ") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"
    for wrong in ("0/8", "9/8", "1", "1/0", "-1/4", "a/b", "1/2/3", "1 / 4", ""):
        with pytest.raises(UsageError, match="is not a shard"):
            parse_shard(wrong)


@pytest.mark.parametrize(
    ("task", "first", "last", "count", "step", "expected"),
    [
        (1, 1, 8, 8, "1", Shard(1, 8)),
        (8, 1, 8, 8, "1", Shard(8, 8)),
        (0, 0, 7, 8, "1", Shard(1, 8)),
        (7, 0, 7, 8, "1", Shard(8, 8)),
        (9, 5, 13, 3, "4", Shard(2, 3)),
        (1, 1, 7, 3, "1", "3 tasks from 1 to 7; with gaps"),
        (7, 1, 7, 3, "1", "3 tasks from 1 to 7; with gaps"),
        (1, 1, 8, 8, "0", "do not define a shard"),
    ],
)
def test_a_slurm_array_without_gaps_defines_the_shard(
    task: int, first: int, last: int, count: int, step: str, expected: Shard | str
) -> None:
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}
    if isinstance(expected, Shard):
        assert slurm_shard(environment) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            slurm_shard(environment)


def test_without_a_whole_slurm_array_there_is_no_shard() -> None:
    assert slurm_shard({}) is None
    with pytest.raises(UsageError, match="do not define a shard"):
        slurm_shard({"SLURM_ARRAY_TASK_ID": "1"})


def test_a_list_may_name_what_is_gone_but_not_only_that(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    listed = [str(tmp_path / name) for name in ("a.mp4", "gone.mp4")]
    assert [clip.name for clip in discover([], listed=listed).clips] == ["a.mp4", "gone.mp4"]
    with pytest.raises(UsageError, match="does not exist"):
        discover([], listed=listed[1:])
    with pytest.raises(UsageError, match="does not exist"):
        discover(listed[1:], listed=listed[:1])
