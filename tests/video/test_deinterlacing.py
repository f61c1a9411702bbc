"""Interlaced clips: exactly FFmpeg's bwdif, whichever pictures were asked for before."""

from pathlib import Path

import av
import numpy as np
import pytest

from tests.clips import encode, read_number, write_clip
from tests.video.interlaced_clips import (
    MPEG2,
    SIZE,
    combing,
    decoded_frames,
    flagged,
    interlaced,
    linearly_deinterlaced,
    moving_bar,
    switching,
    woven,
)
from vidqa.video.deinterlacing import deinterlaced, is_interlaced
from vidqa.video.reader import open_video

NOTE = "The video is interlaced: deinterlaced, one picture for each two fields."
REQUESTS = ((0, 1, 2, 39, 40, 41, 78, 79), (40,), (79,), (0,), (39,), (60, 61), (20, 55), (1,), (78,))


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(
    ("name", "codec", "top_first"),
    [
        ("tff.mp4", "libx264", True),
        ("bff.mkv", "libx264", False),
        ("a.ts", "mpeg2video", True),
        ("a.mpg", "mpeg2video", True),
    ],
)
def test_sparse_frames_equal_bwdif_over_the_whole_clip(
    tmp_path: Path, name: str, codec: str, top_first: bool, isolated: bool
) -> None:
    path = interlaced(tmp_path / name, 80, top_first=top_first, codec=codec)
    frames = decoded_frames(path)
    assert len(frames) == 80 and all(frame.interlaced_frame for frame in frames)
    expected = linearly_deinterlaced(frames)
    for indices in REQUESTS:
        with open_video(str(path), isolated=isolated) as reader:
            assert reader.info.frame_count == 80
            for index, frame in zip(indices, reader.frames(indices), strict=True):
                assert frame.index == index and np.array_equal(frame.rgb, expected[index]), (indices, index)
                assert frame.timestamp_seconds == pytest.approx(index / 25, abs=1e-3)
            assert reader.notes == (NOTE,)


def test_one_reader_gives_the_same_pictures_in_any_order(tmp_path: Path) -> None:
    path = interlaced(tmp_path / "clip.mp4", 80)
    expected = linearly_deinterlaced(decoded_frames(path))
    with open_video(str(path), isolated=False) as reader:
        for indices in REQUESTS[::-1]:
            assert [np.array_equal(frame.rgb, expected[frame.index]) for frame in reader.frames(indices)] == (
                [True] * len(indices)
            )


@pytest.mark.parametrize("top_first", [True, False])
def test_a_moving_picture_has_no_comb_and_is_that_of_the_first_field(tmp_path: Path, top_first: bool) -> None:
    path = interlaced(tmp_path / "clip.mp4", 40, top_first=top_first)
    assert combing(decoded_frames(path)[20].to_ndarray(format="rgb24")) > 8
    with open_video(str(path), isolated=False) as reader:
        for frame in reader.frames((0, 1, 20, 38, 39)):
            assert combing(frame.rgb) < 0.5, frame.index
            off = np.abs(frame.rgb[24:-24].astype(int) - moving_bar(frame.index)[24:-24])
            assert off.mean() < 2, frame.index
            other = np.abs(frame.rgb[24:-24].astype(int) - moving_bar(frame.index + 0.5)[24:-24])
            assert other.mean() > 4, frame.index


def test_a_picture_that_stands_still_is_as_in_a_progressive_clip(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    still = random.integers(0, 255, (12, 16, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    options = {"qp": "0", "x264-params": "keyint=10:tff=1"}
    path = encode(tmp_path / "still.mp4", [still] * 20, options=options, pixels="yuv444p")
    plain = encode(tmp_path / "plain.mp4", [still] * 20, options={"qp": "0"}, pixels="yuv444p")
    with open_video(str(path), isolated=False) as reader, open_video(str(plain), isolated=False) as progressive:
        indices = (1, 7, 18)  # the first one has no past, and is interpolated within itself
        for ours, theirs in zip(reader.frames(indices), progressive.frames(indices), strict=True):
            assert np.abs(ours.rgb.astype(int) - theirs.rgb).max() <= 2
        assert (reader.notes, progressive.notes) == ((NOTE,), ())


@pytest.mark.parametrize("first_interlaced", [True, False])
def test_pictures_without_the_flag_pass_untouched(tmp_path: Path, first_interlaced: bool) -> None:
    path = switching(
        tmp_path / "mixed.ts", [(first_interlaced, 30), (not first_interlaced, 30), (first_interlaced, 30)]
    )
    frames = decoded_frames(path)
    flags = [frame.interlaced_frame for frame in frames]
    assert flags == [first_interlaced] * 30 + [not first_interlaced] * 30 + [first_interlaced] * 30
    expected = linearly_deinterlaced(frames)
    for indices in (tuple(range(90)), (29,), (30,), (31,), (59,), (60,), (12, 45, 75), (0, 29, 30, 59, 60, 89), (89,)):
        with open_video(str(path), isolated=False) as reader:
            for index, frame in zip(indices, reader.frames(indices), strict=True):
                assert np.array_equal(frame.rgb, expected[index]), (indices, index, flags[index])
            said = first_interlaced or any(flags[index] for index in indices)
            assert reader.notes == ((NOTE,) if said else ())


def test_a_progressive_clip_is_decoded_as_before_and_unnoted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 60, options={"g": "20"})
    expected = [frame.to_ndarray(format="rgb24") for frame in decoded_frames(path)]
    with open_video(str(path), isolated=False) as reader:
        for frame in reader.frames((0, 19, 45, 59)):
            assert np.array_equal(frame.rgb, expected[frame.index]) and read_number(frame.rgb) == frame.index
        assert reader.notes == ()


def test_times_that_cannot_be_used_count_frames_and_are_deinterlaced_too(tmp_path: Path) -> None:
    path = interlaced(tmp_path / "clip.avi", 40)  # times of packets, but pictures out of order
    expected = linearly_deinterlaced(decoded_frames(path))
    for indices in ((0, 1, 20, 39), (20,), (39,)):
        with open_video(str(path), isolated=False) as reader:
            assert reader.info.frame_count == len(expected)
            for frame in reader.frames(indices):
                assert np.array_equal(frame.rgb, expected[frame.index]), (indices, frame.index)


def test_a_neighbour_of_another_size_or_format_is_not_used() -> None:
    picture = av.VideoFrame.from_ndarray(woven(3)).reformat(format="yuv420p")
    alone = deinterlaced(picture, None, None).to_ndarray(format="rgb24")
    larger = av.VideoFrame.from_ndarray(woven(2, size=(256, 192))).reformat(format="yuv420p")
    other = av.VideoFrame.from_ndarray(woven(4)).reformat(format="yuv444p")
    assert np.array_equal(deinterlaced(picture, larger, other).to_ndarray(format="rgb24"), alone)
    assert combing(alone) < 1 < combing(picture.to_ndarray(format="rgb24"))


@pytest.mark.parametrize(
    "pixels", ["yuyv422", "uyvy422", "rgb24", "bgra", "gray", "yuv422p10le", "yuva444p10le", "yuvj420p"]
)
@pytest.mark.parametrize("matrix", [1, 2, 5])
def test_every_pixel_format_keeps_its_colours(pixels: str, matrix: int) -> None:
    random = np.random.default_rng(0)
    still = random.integers(0, 255, (4, 4, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    picture = av.VideoFrame.from_ndarray(still).reformat(format=pixels)
    picture.colorspace = matrix
    before = picture.to_ndarray(format="rgb24").astype(int)
    after = deinterlaced(picture, picture, picture).to_ndarray(format="rgb24")
    assert np.abs(after - before).max() <= 4  # a format that the filter does not take is converted twice


def test_a_picture_that_is_too_small_for_the_filter_is_left_alone(tmp_path: Path) -> None:
    for size in ((16, 16), (128, 8), (8, 64)):
        grey = np.full((size[1], size[0], 3), 90, np.uint8)
        path = encode(tmp_path / f"{size[0]}x{size[1]}.mp4", flagged([grey] * 3, top_first=True), options=MPEG2)
        frames = decoded_frames(path)
        assert all(frame.interlaced_frame for frame in frames)
        assert [is_interlaced(frame) for frame in frames] == [size == (16, 16)] * len(frames)
        with open_video(str(path), isolated=False) as reader:
            assert len(list(reader.frames(range(3)))) == 3


def test_damage_beside_a_picture_gives_one_result(tmp_path: Path) -> None:
    data = bytearray(interlaced(tmp_path / "whole.ts", 80, codec="mpeg2video").read_bytes())
    for place in range(len(data) // 3, len(data) // 3 + 2000):
        data[place] ^= 0x5A
    path = tmp_path / "damaged.ts"
    path.write_bytes(data)
    with open_video(str(path), isolated=False) as reader:
        whole = {frame.index: frame.rgb for frame in reader.frames(range(reader.info.frame_count))}
        assert len(whole) > 60 and whole[0].shape == (SIZE[1], SIZE[0], 3)
        for index in range(0, len(whole), 7):
            for frame in reader.frames((index,)):
                assert np.array_equal(frame.rgb, whole[index]), index
