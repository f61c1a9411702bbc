"""A folder of numbered pictures as one video: order, times, sizes, limits and damage, in this process and isolated."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.clips import numbered_picture, read_number
from vidqa.errors import PictureTooLarge, VideoError, VideoNotFound, VideoTooDamaged, VideoUnreadable
from vidqa.types import PictureTimes
from vidqa.video import picture_folder
from vidqa.video.image_sequence import ImageSequence
from vidqa.video.picture_folder import file_identity, is_picture_folder
from vidqa.video.reader import open_video, probe_facts
from vidqa.video.size_limits import decoding_limit_bytes, limited_allocation

SIZE = (128, 64)


def folder_of(folder: Path, *names: str) -> str:
    """Write a picture for each name; it shows its place among the names, from 0."""
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        Image.fromarray(numbered_picture(place, *SIZE)).save(folder / name)
    return str(folder)


@pytest.mark.parametrize("isolated", [True, False])
def test_pictures_come_in_natural_order_at_their_rate(isolated: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", "Frame_1.png", "frame_2.jpg", "Frame_10.png", "frame_0011.bmp")
    (tmp_path / "f" / "notes.txt").write_text("x")
    (tmp_path / "f" / ".5.png").write_bytes(b"")
    with open_video(folder, isolated=isolated, pictures=PictureTimes(fps=2.0)) as reader:
        info, frames = reader.info, list(reader.frames([0, 1, 2, 2, 3]))
        reader.check_coverage([0, 1, 2, 2, 3])
    assert [read_number(frame.rgb) for frame in frames] == [0, 1, 2, 2, 3]
    assert [frame.timestamp_seconds for frame in frames] == [0.0, 0.5, 1.0, 1.0, 1.5]
    assert (info.frame_count, info.fps, info.duration_seconds, info.constant_rate) == (4, 2.0, 2.0, True)
    assert (info.path, info.container, info.codec, info.width, info.height) == (folder, "image2", "png", *SIZE)
    assert info.sources["fps"] == "option" and reader.notes == ()


def test_the_rate_is_25_where_nothing_says_another_with_a_note(tmp_path: Path) -> None:
    info = probe_facts(folder_of(tmp_path / "f", "1.png", "2.png", "cover.png"))
    assert (info.frame_count, info.fps, info.duration_seconds, info.sources["fps"]) == (2, 25.0, 0.08, "default")
    assert info.notes == (
        "1 picture has no number in the file name and is left out.",
        "The pictures' rate is not known: 25 per second are assumed (--fps gives it).",
    )


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_file_of_times_gives_true_times(named: bool, isolated: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", "1.png", "2.png", "3.png")
    file = tmp_path / "f" / ("times.csv" if named else "timestamps.txt")
    file.write_text("\ufeff10\n10.5\r\n\n12.25\n", encoding="utf-8")
    if named:
        (tmp_path / "f" / "timestamps.txt").write_text("not read")
    pictures = PictureTimes(file=str(file) if named else None)
    with open_video(folder, isolated=isolated, pictures=pictures) as reader:
        info, frames = reader.info, list(reader.frames([0, 1, 2]))
    assert [frame.timestamp_seconds for frame in frames] == [10.0, 10.5, 12.25]
    assert (info.pts_seconds, info.lead_seconds, info.constant_rate) == ((10.0, 10.5, 12.25), 10.0, False)
    assert info.fps == pytest.approx(2 / 2.25)
    assert info.duration_seconds == pytest.approx(12.25 + 2.25 / 2)
    assert info.sources["duration"] == "timestamps" and info.notes == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0\n1\n", "timestamps.txt has 2 times for 3 pictures."),
        ("", "timestamps.txt has 0 times for 3 pictures."),
        ("0\n1\n1\n", "timestamps.txt, line 3: 1 s is not after 1 s."),
        ("0\n2\n1\n", "timestamps.txt, line 3: 1 s is not after 2 s."),
        ("# timestamp format v2\n0\n1\n", "timestamps.txt, line 1: '# timestamp format v2' is no time in seconds"),
        ("0\nnan\n2\n", "timestamps.txt, line 2: 'nan' is no time"),
        ("-1\n0\n1\n", "timestamps.txt, line 1: '-1' is no time in seconds of 0 or more."),
        ("0\n1\n\x1b[2J\n", r"timestamps.txt, line 3: '\x1b[2J' is no time"),
    ],
)
def test_times_that_cannot_be_are_an_error_with_their_line(text: str, said: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", "1.png", "2.png", "3.png")
    (tmp_path / "f" / "timestamps.txt").write_text(text)
    with pytest.raises(VideoUnreadable) as caught:
        open_video(folder)
    assert said in caught.value.what and caught.value.remedy.startswith("Write one time in seconds on each line")


def test_a_missing_file_of_times_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFound, match=r"There is no file .*gone\.txt with the times"):
        open_video(folder_of(tmp_path / "f", "1.png"), pictures=PictureTimes(file=str(tmp_path / "gone.txt")))


@pytest.mark.parametrize("fps", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_cannot_be_is_an_error(fps: float, tmp_path: Path) -> None:
    with pytest.raises(VideoUnreadable, match="pictures per second is not above 0"):
        open_video(folder_of(tmp_path / "f", "1.png"), pictures=PictureTimes(fps=fps))


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        ((), VideoNotFound, "is a folder without numbered pictures."),
        (("cover.png",), VideoNotFound, "is a folder without numbered pictures."),
        (("1.png", "clip.mp4"), VideoNotFound, "is a folder with 1 video and 1 numbered picture."),
        (("1.png", "01.jpg"), VideoUnreadable, "01.jpg and 1.png have the same number"),
        (("a1.png", "a2.png", "b2.png"), VideoUnreadable, "a2.png and b2.png have the same number"),
        (("1.png", "1_mask.png"), VideoUnreadable, "1.png and 1_mask.png have the same number"),
        (("1.png", "2.png", "3.png", "4.png"), VideoUnreadable, "has 4 numbered pictures; at most 3 are read"),
    ],
)
def test_a_folder_that_is_no_single_video_is_an_error(
    names: tuple[str, ...], kind: type[VideoError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_folder, "MAX_PICTURES", 3)
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(kind) as caught:
        probe_facts(str(tmp_path))
    assert said in caught.value.what and caught.value.remedy
    assert not is_picture_folder(str(tmp_path))


def test_pictures_of_another_size_are_letterboxed_with_a_note_and_turned_ones_upright(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", "1.png")
    Image.new("RGB", (50, 100), (0, 200, 0)).save(tmp_path / "f" / "2.png")
    turned = Image.fromarray(np.rot90(numbered_picture(7, *SIZE), 1))  # EXIF 6: shown after a quarter turn to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "f" / "3.jpg", exif=exif, quality=95)
    with open_video(folder, isolated=False) as reader:
        first, second, third = reader.frames([0, 1, 2])
        notes = reader.notes
    assert first.rgb.shape == second.rgb.shape == third.rgb.shape == (64, 128, 3)
    inside = (second.rgb == (0, 200, 0)).all(axis=2)
    assert inside.sum() == 32 * 64 and inside[:, 48:80].all() and (second.rgb[:, :48] == 0).all()
    assert (
        second.note == "The pictures' sizes differ: they are letterboxed to the first one's." and second.note in notes
    )
    assert (first.note, third.note) == ("", "") and read_number(third.rgb) == 7


@pytest.mark.parametrize("isolated", [True, False])
def test_a_damaged_picture_ends_the_video_there(isolated: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", *(f"{number}.png" for number in range(1, 7)))
    (tmp_path / "f" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with open_video(folder, isolated=isolated, pictures=PictureTimes(fps=1.0)) as reader:
        assert [frame.index for frame in reader.frames([0, 2, 4, 5])] == [0, 2]
        with pytest.raises(VideoTooDamaged, match=r"2 of 4 frames .*5\.png cannot be read as an image"):
            reader.check_coverage([0, 2, 4, 5])
        assert [frame.index for frame in reader.frames([0, 2, 3, 4])] == [0, 2, 3]
        reader.check_coverage([0, 2, 3, 4])
        assert "3 of 4 frames were decoded" in reader.notes[-1]


def test_each_picture_has_the_limits_of_a_single_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", "1.png", "2.png")
    Image.new("1", (40_000, 300)).save(tmp_path / "f" / "2.png")
    with open_video(folder, isolated=False) as reader:
        assert [frame.index for frame in reader.frames([0, 1])] == [0]
        assert "a side of at most 32,767 pixels is decoded" in reader._source.stopped
    os.replace(tmp_path / "f" / "2.png", tmp_path / "f" / "1.png")
    with pytest.raises(PictureTooLarge):
        open_video(folder)


def test_the_memory_limit_follows_from_the_largest_picture(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = folder_of(tmp_path / "f", "1.png", "2.png")
    with (tmp_path / "f" / "2.png").open("ab") as file:
        file.truncate(2**20)
    with limited_allocation(folder):
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == decoding_limit_bytes(2**20)


def test_a_changed_picture_changes_the_folders_identity(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", "1.png", "2.png")
    before = file_identity(folder)
    assert file_identity(folder) == before
    Image.fromarray(numbered_picture(9, *SIZE)).save(tmp_path / "f" / "2.png")
    assert file_identity(folder) != before


def test_a_folder_opens_no_more_files_than_the_one_that_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", *(f"{number}.png" for number in range(30)))
    before = len(os.listdir("/proc/self/fd"))
    source = ImageSequence(folder, folder, PictureTimes())
    assert len(list(source.frames(range(30)))) == 30
    assert len(os.listdir("/proc/self/fd")) == before
