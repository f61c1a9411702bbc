"""Files that mislead a seeking decoder: bad landings, missing pictures, edit lists, no usable times."""

import hashlib
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.clips import encode, numbered_picture, read_number, remux, write_clip
from tests.video.interlaced_clips import decoded_frames, linearly_deinterlaced
from vidqa.types import Frame
from vidqa.video.frame_decoder import FrameSource
from vidqa.video.probe import probe
from vidqa.video.reader import open_video

FRAMES = 90
STRUCTURES = {
    "recovery points, no other keyframe": ("mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=40:bframes=2"}),
    "open groups, landing by time only": ("ts", "libx264", {"x264-params": "open-gop=1:bframes=5:keyint=25"}),
    "16 B-frames": ("mp4", "libx264", {"x264-params": "bframes=16:b-pyramid=normal:keyint=80:b-adapt=0"}),
    "fields": ("mkv", "libx264", {"x264-params": "interlaced=1:bframes=3:keyint=40"}),
    "program stream": ("mpg", "mpeg2video", {"g": "15", "bf": "2"}),
    "transport stream": ("ts", "mpeg2video", {"g": "15", "bf": "2"}),
    "open HEVC groups": ("mp4", "libx265", {"x265-params": "open-gop=1:bframes=8:keyint=30:log-level=none"}),
    "hidden reference pictures": ("webm", "libvpx-vp9", {"cpu-used": "8", "g": "40", "auto-alt-ref": "1"}),
}


def digest(rgb: np.ndarray) -> str:
    return hashlib.sha256(rgb.tobytes()).hexdigest()


def linear(path: Path) -> list[tuple[int, str]]:
    """Time in ticks and hash of each picture of a plain decode."""
    with av.open(str(path)) as container:
        return [(frame.pts, digest(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]


def in_process(path: Path, indices: list[int]) -> list[Frame]:
    opened = probe(str(path))
    source = FrameSource(opened)
    try:
        return list(source.frames(indices))
    finally:
        source.close()


def index_sets(count: int) -> list[list[int]]:
    draw = random.Random(1)
    sparse = [sorted(draw.sample(range(count), 4)) for _ in range(4)]
    return [list(range(0, count, 2)), [count - 1], [count // 2], [0, count - 1], *sparse]


@pytest.mark.parametrize("name", STRUCTURES)
def test_any_group_structure_equals_a_linear_decode(tmp_path: Path, name: str) -> None:
    extension, codec, options = STRUCTURES[name]
    path = write_clip(tmp_path / f"clip.{extension}", FRAMES, codec=codec, options=options)
    expected = [
        digest(rgb) for rgb in linearly_deinterlaced(decoded_frames(path))
    ]  # of "fields" alone, the flagged one
    for indices in index_sets(FRAMES):
        assert [digest(frame.rgb) for frame in in_process(path, indices)] == [expected[index] for index in indices]


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("first", "last"), [(0, 10), (40, 55)])
def test_pictures_that_cannot_be_decoded_shift_no_other(tmp_path: Path, extension: str, first: int, last: int) -> None:
    whole = write_clip(tmp_path / "whole.mp4", FRAMES, options={"x264-params": "keyint=30:bframes=3:scenecut=0"})
    path = remux(whole, tmp_path / f"holed.{extension}", drop=lambda place: first <= place < last)
    pictures = linear(path)
    times = probe(str(path)).pts
    for indices in index_sets(len(times)):
        expected = [next(found for time, found in pictures if time >= times[index]) for index in indices]
        assert [digest(frame.rgb) for frame in in_process(path, indices)] == expected


def test_what_an_edit_list_cuts_is_not_counted(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", FRAMES, options={"g": "30"})
    path = remux(whole, tmp_path / "cut.mp4", shift_frames=-10)
    with open_video(str(path)) as reader:
        assert reader.info.frame_count == FRAMES - 10
        assert [read_number(frame.rgb) for frame in reader.frames((0, 1, 50, 79))] == [10, 11, 60, 89]


@pytest.mark.parametrize(("extension", "codec"), [("avi", "libx264"), ("h264", "libx264"), ("hevc", "libx265")])
def test_pictures_without_times_are_counted_in_the_order_of_showing(tmp_path: Path, extension: str, codec: str) -> None:
    options = {"x265-params": "keyint=20:log-level=none"} if codec == "libx265" else {"g": "20"}
    path = write_clip(tmp_path / f"clip.{extension}", 60, codec=codec, options=options)
    with open_video(str(path)) as reader:
        assert reader.info.frame_count == 60
        for indices in ((0, 3, 7, 30, 59), (0, 58)):
            assert [read_number(frame.rgb) for frame in reader.frames(indices)] == list(indices)


def test_pixel_aspect_widens_the_shown_size_only(tmp_path: Path) -> None:
    path = encode(tmp_path / "wide.mp4", [numbered_picture(5, 96, 64)], sample_aspect_ratio=Fraction(4, 3))
    with open_video(str(path)) as reader:
        assert (reader.info.width, reader.info.height, reader.info.frame_count) == (128, 64, 1)
        assert next(iter(reader.frames((0,)))).rgb.shape == (64, 96, 3)
