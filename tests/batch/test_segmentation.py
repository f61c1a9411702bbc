"""Segments of a clip: at equal distances and between scenes, by arithmetic, in synthetic clips and in real ones."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.batch.clip_record import Span
from vidqa.batch.scene_detection import find_scenes, signature
from vidqa.batch.segmentation import (
    MAX_SEGMENTS,
    cut_at_scenes,
    cut_evenly,
    measure_changes,
    parse_segments,
    sample_indices,
)
from vidqa.errors import UsageError
from vidqa.video.reader import open_video

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def starts(spans: Sequence[Span]) -> list[float]:
    return [round(span.start_seconds, 2) for span in spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", 10.0),
        ("10s", 10.0),
        ("0:30", 30.0),
        ("2min", 120.0),
        ("1:00:00", 3600.0),
        (" Scenes ", "scenes"),
        ("1", 1),
    ],
)
def test_segments_are_a_length_or_scenes(text: str, expected: float | str) -> None:
    assert parse_segments(text) == expected


def test_other_texts_are_refused() -> None:
    for wrong in ("", "scene", "-5", "0", "ten", "1:99", "nan", "inf"):
        with pytest.raises(UsageError, match="is not a length of segments"):
            parse_segments(wrong)
    for short in ("0.5", "0:00"):
        with pytest.raises(UsageError, match="are too short"):
            parse_segments(short)


@pytest.mark.parametrize(
    ("duration", "seconds", "expected"),
    [
        (30.0, 10.0, [(0, 10), (10, 20), (20, 30)]),
        (25.0, 10.0, [(0, 10), (10, 20), (20, 25)]),
        (24.9, 10.0, [(0, 10), (10, 24.9)]),
        (4.0, 10.0, [(0, 4)]),
        (0.0, 10.0, [(0, 0)]),
    ],
)
def test_a_remainder_of_less_than_half_a_segment_joins_the_last_one(
    duration: float, seconds: float, expected: list[tuple[float, float]]
) -> None:
    assert cut_evenly(duration, seconds) == [Span(*pair) for pair in expected]


@given(st.floats(0, 1e5), st.floats(1, 1e4))
def test_equal_segments_cover_the_clip_without_gaps(duration: float, seconds: float) -> None:
    try:
        spans = cut_evenly(duration, seconds)
    except UsageError:
        assert duration / seconds > MAX_SEGMENTS - 1
        return
    assert (spans[0].start_seconds, spans[-1].end_seconds) == (0, duration)
    assert all(one.end_seconds == next_one.start_seconds for one, next_one in pairwise(spans))
    if duration >= seconds / 2:
        assert all(seconds * 0.4999 <= span.end_seconds - span.start_seconds <= seconds * 1.5001 for span in spans)


def test_too_many_segments_are_refused_with_a_length_that_is_accepted() -> None:
    with pytest.raises(UsageError, match=r"67 min have 4000 segments of 1 s") as caught:
        cut_evenly(4000.0, 1.0)
    assert caught.value.remedy == "Use --segments 4s or longer ones."
    assert len(cut_evenly(4000.0, 4.0)) == MAX_SEGMENTS


def shots(*colors_and_counts: tuple[tuple[float, ...], int]) -> list[tuple[float, tuple[float, ...]]]:
    """Ten pictures a second of one color after the other."""
    colors = [color for color, count in colors_and_counts for _ in range(count)]
    return [(number / 10, color) for number, color in enumerate(colors)]


FAINT = (0.6, 0.4, 0.0)
SLOW = [(number / 10, (1 - number / 60, number / 60, 0.0)) for number in range(61)]
RESTLESS = [(number / 10, (RED, GREEN, BLUE)[number % 3]) for number in range(60)]


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (shots((RED, 20), (GREEN, 15), (RED, 25)), [0, 1.95, 3.45]),  # midway between the frames around the cut
        (shots((RED, 20), (FAINT, 5), (GREEN, 20), (BLUE, 5)), [0, 2.45]),  # a second or longer; the clearer cut stays
        (shots((RED, 20), (GREEN, 1), (RED, 20)), [0]),  # a flash
        (SLOW, [0]),
        (RESTLESS, [0]),
        ([], [0]),
        (SLOW[:1], [0]),
    ],
)
def test_scenes_begin_at_cuts_that_last(
    pictures: Sequence[tuple[float, Sequence[float]]], expected: list[float]
) -> None:
    duration = max(len(pictures) / 10, 5.0)
    spans = cut_at_scenes(measure_changes(pictures), duration)
    assert starts(spans) == expected
    assert [span.end_seconds for span in spans] == [*(span.start_seconds for span in spans[1:]), duration]


def test_of_too_many_scenes_the_clearest_are_kept() -> None:
    pictures = [
        (second + part / 10, ((RED, GREEN)[second % 2] if second < 1500 else (0.7, 0.3, 0.0))) for second in range(1600)
        for part in range(10)
    ]  # fmt: skip
    assert len(cut_at_scenes(measure_changes(pictures), 1600.0)) == MAX_SEGMENTS


@pytest.mark.parametrize(
    ("times", "per_second", "expected"),
    [
        ([5 + number / 25 for number in range(26)], 5.0, [0, 5, 10, 15, 20, 25]),
        ([0.0, 1.0, 2.0], 12.0, [0, 1, 2]),
        ([0.0, 0.01, 0.02, 1e9, 1e9 + 1], 12.0, [0, 3, 4]),
        ([7.0], 12.0, [0]),
    ],
)
def test_an_intervals_first_frame_is_sampled(times: list[float], per_second: float, expected: list[int]) -> None:
    assert sample_indices(times, per_second) == expected


def test_a_signature_depends_on_colors_and_their_places() -> None:
    left, right = np.zeros((90, 130, 3), np.uint8), np.zeros((90, 130, 3), np.uint8)
    left[:, :65], right[:, 65:] = 255, 255

    def change(one: np.ndarray, other: np.ndarray) -> float:
        return sum(abs(a - b) for a, b in zip(signature(one), signature(other), strict=True)) / 2

    assert sum(signature(left)) == pytest.approx(1)
    assert change(left, left) == 0
    assert change(left, right) > 0.9
    assert change(left, np.zeros_like(left)) == pytest.approx(0.5, abs=0.05)
    assert signature(np.zeros((1, 1, 3), np.uint8))[0] == pytest.approx(1 / 3)  # one pixel is a picture too


def write_shots(path: Path, fps: int, frame_counts: Sequence[int]) -> Path:
    """Shots of noise around a color each, with a bright square that moves through all of them."""
    chance = np.random.default_rng(4)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for number, shot in enumerate(np.repeat(np.arange(len(frame_counts)), frame_counts)):
            rgb = chance.integers(0, 24, (96, 160, 3)) + np.array(
                [(150, 60, 60), (60, 110, 60), (60, 60, 150)][shot % 3]
            )
            place = number * 3 % 130
            rgb[30:60, place : place + 30] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_the_cuts_of_a_synthetic_clip_are_found(tmp_path: Path) -> None:
    path = write_shots(tmp_path / "shots.mp4", 24, [48, 30, 72, 10, 60])
    with open_video(str(path)) as reader:
        spans = find_scenes(reader)
    # The fourth shot is shorter than a second: it belongs to the one before or the one behind it.
    assert len(spans) == 4
    assert starts(spans)[:3] == pytest.approx([0, 2.0, 3.25], abs=1 / 12)
    assert min(abs(starts(spans)[3] - cut) for cut in (6.25, 160 / 24)) < 1 / 12
    assert spans[-1].end_seconds == pytest.approx(220 / 24, abs=0.01)


def test_a_clip_without_cuts_is_one_scene() -> None:
    with open_video(str(Path(__file__).parents[2] / "assets" / "demo.mp4")) as reader:
        assert find_scenes(reader) == [Span(0.0, reader.info.duration_seconds)]


# Where a new shot begins, found by eye in contact sheets; bikes.mp4 has one more cut 0.3 s before its end.
REAL = {
    "bikes.mp4": [1.2, 3.04, 5.48, 7.48],
    "scene_cuts.mp4": [1.2, 3.04, 5.48, 7.48],
    "bigbuckbunny_720p.mp4": [],
    "counting.mp4": [],
    "rotated_vfr_fire.mp4": [],
    "newtonscradle.gif": [],
}


@pytest.mark.parametrize("name", REAL)
def test_the_cuts_of_real_clips_are_found(real_clips: Path, name: str) -> None:
    with open_video(str(real_clips / name)) as reader:
        assert starts(find_scenes(reader))[1:] == pytest.approx(REAL[name], abs=1 / 12)


def test_scenes_of_a_clip_that_breaks_off_end_where_it_does(real_clips: Path) -> None:
    with open_video(str(real_clips / "corrupted.mp4")) as reader:
        spans = find_scenes(reader)
        assert any("the file is damaged" in note for note in reader.notes)
    assert spans == [Span(0.0, 2.7)]
