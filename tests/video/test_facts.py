"""A file's times, length, shape and picture are what the file says: one row a kind, with values computed by hand."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.clips import read_number, remux, write_clip
from tests.video import made_files as made
from tests.video.picture_rows import COLOURS, GEOMETRY, B, G, R, Range, Row, W, facts
from vidqa.errors import VideoUnreadable
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
from vidqa.video.frame_sampling import choose_indices, sampled_times
from vidqa.video.reader import open_video

NTSC_FILM = 24_000 / 1001


TIMES = [
    Row(  # steps of 1 and 2 ticks: every frame's time is known, their mean says nothing
        "halves.mp4",
        lambda path: made.timed(
            path, made.frames_at(30, 120) + made.frames_at(15, 60, 4.0),
            rate=30, base=Fraction(1, 30), options={"video_track_timescale": "30"},
        ),
        facts(180, 8.0, 179 / (8 - 1 / 15), constant=False),
        (Range(4.2, 5.0, (123, 135), (4.2, 5.0)), Range(7.99, None, (179, 179), (7.9333, 7.9333))),
    ),
    Row(  # the header is 0.8 % too fast: half a frame off after 60 frames
        "rate-lies.mkv",
        lambda path: made.timed(path, made.frames_at(29.75, 600), rate=30),
        facts(600, 600 / 29.75, 29.75, constant=True),
        (Range(15.0, 20.0, (447 - 256, 595 - 512), (15.025, 20.0)),),
    ),
    Row(
        "film.mkv",
        lambda path: made.timed(path, made.frames_at(NTSC_FILM, 1200), rate=24),
        facts(1200, 1200 / NTSC_FILM, NTSC_FILM, constant=True),
        (Range(45.0, 50.0, (1079 - 1024, 1198 - 1024), (45.003, 49.967)),),
    ),
    *(
        Row(f"steady.{kind}", lambda path: write_clip(path, 40, fps=30), facts(40, 40 / 30, 30, constant=True))
        for kind in ("mkv", "mp4", "ts", "avi", "flv")
    ),
    Row(
        "steady.mpg", lambda path: write_clip(path, 40, fps=30, codec="mpeg2video"),
        facts(40, 40 / 30, 30, constant=True),
    ),
    Row(  # a still that is held: the last packet lasts a minute
        "hold.mp4",
        lambda path: made.timed(path, made.frames_at(25, 50), hold=60),
        facts(50, 61.96, 25, constant=False),
        (Range(30.0, None, (49, 49), (1.96, 1.96)), Range(1.0, 40.0, (25, 49), (1.0, 1.96))),
    ),
    Row(
        "hold.mkv",
        lambda path: made.timed(path, made.frames_at(25, 50), hold=60),
        facts(50, 61.96, 25, constant=False),
        (Range(30.0, None, (49, 49), (1.96, 1.96)),),
    ),
    Row("hold.gif", lambda path: made.gif(path, (0.1, 0.1, 10)), facts(3, 10.2, 10, constant=False)),
    Row("even.gif", lambda path: made.gif(path, (0.1, 0.1, 0.1, 0.1)), facts(4, 0.4, 10, constant=True)),
    Row(  # two frames in every millisecond
        "fast.mkv",
        lambda path: made.timed(path, made.frames_at(2000, 2000), rate=2000),
        facts(2000, 1.0, 2000, constant=True),
        (Range(0.5, 0.505, (1000 - 768, 1010 - 768), (0.5, 0.505)),),
    ),
    Row(  # 10 frames a second stand in the stream's own header alone
        "raw.h264", lambda path: write_clip(path, 40, fps=10), facts(40, 4.0, 10, constant=True),
        (Range(2.0, 3.0, (20, 30), (2.0, 3.0)),),
    ),
    Row(
        "raw.hevc",
        lambda path: write_clip(path, 40, fps=10, codec="libx265", options={"x265-params": "log-level=none"}),
        facts(40, 4.0, 10, constant=True),
    ),
]  # fmt: skip
B_FRAMES = {"x264-params": "bframes=3:keyint=20:scenecut=0"}


def two_rates(path: Path, *, begin: tuple[float, float] = (0, 0), b_frames: bool = False) -> Path:
    """50 frames at 25 per second and 90 at 30, joined: their clocks begin at the same time, or at others."""
    first, second = path.with_name(f"first{path.suffix}"), path.with_name(f"second{path.suffix}")
    if b_frames:
        write_clip(first, 50, fps=25, options=B_FRAMES)
        write_clip(second, 90, fps=30, options=B_FRAMES)
    else:
        made.timed(first, made.frames_at(25, 50, begin[0]), base=Fraction(1, 90_000))
        made.timed(second, made.frames_at(30, 90, begin[1]), rate=30, base=Fraction(1, 90_000))
    return made.joined(path, first, second)


JOINED = facts(
    140,
    5.0,
    139 / (5 - 1 / 30),
    constant=False,
    notes=("The clock of the video jumps once: its parts are joined there.",),
)
# Frames 49 and 50 are the last of the first part and the first of the second.
JOINTS = (
    Range(0.0, 1.97, (0, 49), (0.0, 1.96)),
    Range(2.0, 3.0, (0, 30), (2.0, 3.0)),
    Range(4.9, None, (87, 89), (4.9, 4.967)),
)
CLOCKS = [
    Row("joined.ts", two_rates, JOINED, JOINTS),
    Row("joined-b-frames.ts", lambda path: two_rates(path, b_frames=True), JOINED, JOINTS),
    Row("an-hour-ahead.ts", lambda path: two_rates(path, begin=(0, 3600)), JOINED, JOINTS),
    Row("an-hour-back.ts", lambda path: two_rates(path, begin=(3600, 0)), JOINED, JOINTS),
    Row(
        "three.ts",
        lambda path: made.joined(path, *[write_clip(path.with_name("part.ts"), 40, options=B_FRAMES)] * 3),
        facts(120, 4.8, 25, constant=True),
        (Range(1.6, 4.0, (0, 20), (1.6, 4.0)),),
    ),
    Row(
        "joined.mpg",
        lambda path: made.joined(path, *[write_clip(path.with_name("part.mpg"), 40, codec="mpeg2video")] * 2),
        facts(80, 3.2, 25, constant=True),
    ),
    Row(  # a clock may stand still for a while: 8 s without a picture
        "gap.ts",
        lambda path: made.timed(path, [*made.frames_at(25, 25), *made.frames_at(25, 25, 9.0)]),
        facts(50, 10.0, 49 / 9.96, constant=False, notes=()),
    ),
]


def two_streams(path: Path, *, sizes: tuple[int, int], frames: tuple[int, int], default: int | None = None) -> Path:
    """Streams that differ in width and in the number of frames."""
    parts = [
        write_clip(path.with_name(f"part{place}{path.suffix}"), count, size=(width, 64))
        for place, (width, count) in enumerate(zip(sizes, frames, strict=True))
    ]
    return made.several(path, *parts, default=default)


STREAMS = [
    Row(  # the larger one is a still
        "still-beside.mkv",
        lambda path: two_streams(path, sizes=(128, 256), frames=(30, 1)),
        facts(30, 1.2, 25, constant=True, width=128, notes=()),
    ),
    Row(
        "default.mkv",
        lambda path: two_streams(path, sizes=(128, 256), frames=(30, 20), default=0),
        facts(
            30, 1.2, 25, constant=True, width=128,
            notes=("The file has 2 videos: stream 0 (128×64) is taken; others: --stream 1 (256×64).",),
        ),
    ),
    Row(
        "larger.mkv",
        lambda path: two_streams(path, sizes=(128, 256), frames=(30, 20)),
        facts(
            20, 0.8, 25, constant=True, width=256,
            notes=("The file has 2 videos: stream 1 (256×64) is taken; others: --stream 0 (128×64).",),
        ),
    ),
]  # fmt: skip
LATE = [
    Row(  # ten seconds of sound alone
        "late.mkv",
        lambda path: made.with_sound(path, 10.0, 50),
        facts(50, pytest.approx(12.0, abs=0.01), 25, constant=True, lead_seconds=pytest.approx(10.0, abs=0.01)),
        (Range(11.02, None, (26, 49), (11.033, 11.953)), Range(0.0, 5.0, (0, 0), (9.993, 9.993))),  # sound is 7 ms late
    ),
    Row(
        "late.mp4", lambda path: made.with_sound(path, 10.0, 50),
        facts(50, 12.0, 25, constant=True, lead_seconds=pytest.approx(10.0, abs=0.01)),
        (Range(11.02, None, (26, 49), (11.04, 11.96)),),
    ),
    Row(  # as in most files
        "a-little-late.mkv", lambda path: made.with_sound(path, 0.1, 50),
        facts(50, 2.0, 25, constant=True, lead_seconds=0.0), (Range(1.0, None, (25, 49), (1.0, 1.96)),),
    ),
    Row(  # nothing before the first picture: players begin there
        "begins-at-10.mkv", lambda path: made.timed(path, made.frames_at(25, 50, 10.0)),
        facts(50, 2.0, 25, constant=True, lead_seconds=0.0, start_seconds=10.0),
        (Range(1.0, None, (25, 49), (1.0, 1.96)),),
    ),
]  # fmt: skip
ROWS = [*TIMES, *CLOCKS, *STREAMS, *GEOMETRY, *COLOURS, *LATE]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_facts_and_frames_of_each_kind_of_file(tmp_path: Path, row: Row) -> None:
    with open_video(str(row.make(tmp_path / row.name)), isolated=False) as reader:
        info = reader.info
        for name, value in row.facts.items():
            found = getattr(info, name)
            assert found == (pytest.approx(value, rel=2e-4) if isinstance(value, float) else value), (row.name, name)
        for (index, colours), frame in zip(row.seen, reader.frames([index for index, _ in row.seen]), strict=True):
            assert np.abs(corners_of(frame.rgb) - colours).max() <= 12, index
        for wanted in row.ranges:
            indices = choose_indices(
                info, frames=info.frame_count, fps=None, start_seconds=wanted.start, end_seconds=wanted.end,
                bounds=REFERENCE_BOUNDS,
            )  # fmt: skip
            frames = list(reader.frames((indices[0], indices[-1])))
            assert tuple(read_number(frame.rgb) for frame in frames) == wanted.numbers
            assert tuple(frame.timestamp_seconds for frame in frames) == pytest.approx(wanted.seconds, abs=6e-4)
            times = sampled_times(info, indices)
            assert (times[0], times[-1]) == tuple(frame.timestamp_seconds for frame in frames)


def corners_of(rgb: np.ndarray) -> np.ndarray:
    """Colours (4, 3) an eighth from the corners, row by row."""
    height, width, _ = rgb.shape
    places = [(y * height // 8, x * width // 8) for y in (1, 7) for x in (1, 7)]
    return np.array([rgb[place] for place in places]).astype(int)


@pytest.mark.parametrize("row", [*TIMES, *CLOCKS, *STREAMS], ids=lambda row: row.name)
def test_every_seventh_frame_is_that_of_a_linear_decode(tmp_path: Path, row: Row) -> None:
    path = row.make(tmp_path / row.name)
    with open_video(str(path), isolated=False) as reader:
        shown = (reader.info.coded_width, reader.info.coded_height)
    expected = made.decoded(path, shown)
    times = [time for time, _ in expected if time is not None]
    known = row not in CLOCKS and len(times) == len(expected) and all(map(float.__lt__, times, times[1:]))
    with open_video(str(path), isolated=False) as reader:
        indices = range(0, reader.info.frame_count, 7)
        assert len(expected) == reader.info.frame_count
        for index, frame in zip(indices, reader.frames(indices), strict=True):
            assert np.array_equal(frame.rgb, expected[index][1]), index
            assert not known or frame.timestamp_seconds == pytest.approx(times[index] - times[0], abs=1e-6)


def test_a_change_of_size_is_noted_with_the_first_frame_that_shows_it(tmp_path: Path) -> None:
    path = made.resized(tmp_path / "clip.h264", (128, 64), (64, 64))
    for isolated in (True, False):
        with open_video(str(path), isolated=isolated) as reader:
            assert [frame.rgb.shape for frame in reader.frames((0,))] == [(64, 128, 3)]
            assert reader.notes == ()
            assert [frame.rgb.shape for frame in reader.frames((0, 4, 5))] == [(64, 128, 3)] * 3
            assert len(reader.notes) == 1 and "changes its size" in reader.notes[0]


@pytest.mark.parametrize(
    ("name", "codec", "aspects"),
    [
        ("wider.h264", "libx264", (Fraction(1), Fraction(4, 3))),
        ("wider.ts", "libx264", (Fraction(1), Fraction(4, 3))),
        ("wider.hevc", "libx265", (Fraction(1), Fraction(4, 3))),
        ("wider.mpg", "mpeg2video", (Fraction(2, 3), Fraction(8, 9))),  # 4:3 and 16:9 for 2:1
    ],
)
def test_pixels_that_become_wider_are_letterboxed_from_the_first_such_picture_on(
    tmp_path: Path, name: str, codec: str, aspects: tuple[Fraction, Fraction]
) -> None:
    path = made.widened(tmp_path / name, codec, aspects)
    with open_video(str(path), isolated=False) as reader:
        assert reader.info.pixel_aspect == pytest.approx(float(aspects[0])) and reader.info.frame_count == 80
        for indices in (range(80), (39,), (40,), (39, 40), (5, 79)):
            for index, frame in zip(indices, reader.frames(tuple(indices)), strict=True):
                # 4/3 as wide: 48 of 64 rows for all of its columns
                black = [bool((frame.rgb[row] < 20).all()) for row in (1, 6, 57, 62)]
                assert black == [index >= 40] * 4, index
                assert np.abs(corners_of(frame.rgb[8:56]) - (R, G, B, W)).max() <= 12, index
        assert [note.partition(" in the video;")[0] for note in reader.notes if "changes" in note] == [
            "The picture changes its size or pixel aspect"
        ]


def test_pixels_that_stay_as_wide_are_not_noted(tmp_path: Path) -> None:
    path = made.widened(tmp_path / "same.ts", "libx264", (Fraction(16, 11), Fraction(16, 11)))
    with open_video(str(path), isolated=False) as reader:
        frames = list(reader.frames((0, 39, 40, 79)))
        assert all(frame.rgb.shape == (64, 128, 3) and frame.note == "" for frame in frames)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
def test_a_substitute_picture_carries_its_own_time(tmp_path: Path, extension: str) -> None:
    whole = write_clip(tmp_path / "whole.mp4", 90, options={"x264-params": "keyint=30:bframes=0:scenecut=0"})
    path = remux(
        whole, tmp_path / f"holed.{extension}", drop=lambda place: place == 0
    )  # until 30 nothing to begin with
    with open_video(str(path)) as reader:
        frames = list(reader.frames((0, 10, 29, 40)))  # numbers 1, 11, 30 and 41
        assert [read_number(frame.rgb) for frame in frames] == [30, 30, 30, 41]
        assert [frame.timestamp_seconds for frame in frames] == pytest.approx([1.16, 1.16, 1.16, 1.6], abs=1e-3)
        assert reader.notes == ("Some pictures cannot be decoded; the next one, at its own time, stands for each.",)


def test_a_stream_is_chosen_by_its_number(tmp_path: Path) -> None:
    path = two_streams(tmp_path / "two.mkv", sizes=(128, 256), frames=(30, 20), default=0)
    for isolated in (True, False):
        with open_video(str(path), stream=1, isolated=isolated) as reader:
            assert (reader.info.width, reader.info.frame_count, reader.notes) == (256, 20, ())
            assert [read_number(frame.rgb) for frame in reader.frames((0, 19))] == [0, 19]
        with pytest.raises(VideoUnreadable, match=r"--stream 2 of two.mkv is no video") as caught:
            open_video(str(path), stream=2, isolated=isolated)
        assert caught.value.remedy == "Choose one of: 0 (128×64), 1 (256×64)."
