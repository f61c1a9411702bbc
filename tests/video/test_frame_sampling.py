"""Frame sampling: hand-computed cases, and equality with qwen-vl-utils."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qwen_vl_utils import vision_process as reference

from vidqa.errors import UsageError
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
from vidqa.types import PixelBounds, VideoInfo
from vidqa.video.frame_sampling import choose_indices, frame_size, smart_resize


def video(frames: int, fps: float = 25.0, pts: tuple[float, ...] | None = None, start: float = 0.0) -> VideoInfo:
    times = pts or tuple(start + index / fps for index in range(frames))
    return VideoInfo(
        path="clip.mp4", container="mp4", codec="h264", width=640, height=360, coded_width=640, coded_height=360,
        rotation_degrees=0, pixel_aspect=1.0, fps=fps, frame_count=frames,
        duration_seconds=times[-1] - times[0] + 1 / fps, start_seconds=times[0], constant_rate=pts is None,
        pts_seconds=times, sources={},
    )  # fmt: skip


def choose(
    info: VideoInfo,
    frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    bounds: PixelBounds = REFERENCE_BOUNDS,
) -> tuple[int, ...]:
    return choose_indices(info, frames=frames, fps=fps, start_seconds=start, end_seconds=end, bounds=bounds)


@settings(max_examples=400, deadline=None)
@given(
    total=st.integers(2, 40_000),
    fps=st.sampled_from([1.0, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 60.0]),
    rate=st.sampled_from([None, 0.5, 1.0, 2.0, 3.7]),
)
def test_default_indices_equal_qwen_vl_utils(total: int, fps: float, rate: float | None) -> None:
    ele = {} if rate is None else {"fps": rate}
    count = reference.smart_nframes(ele, total_frames=total, video_fps=fps)
    expected = torch.linspace(0, total - 1, count).round().long().tolist()
    assert list(choose(video(total, fps), fps=rate)) == expected


@settings(max_examples=200, deadline=None)
@given(total=st.integers(40, 20_000), frames=st.integers(2, 40))
def test_a_number_of_frames_equals_qwen_vl_utils(total: int, frames: int) -> None:
    count = reference.smart_nframes({"nframes": frames}, total_frames=total, video_fps=25.0)
    expected = torch.linspace(0, total - 1, count).round().long().tolist()
    assert list(choose(video(total), frames=frames)) == expected


@settings(max_examples=200, deadline=None)
@given(start=st.floats(0, 50), length=st.floats(1, 50), fps=st.sampled_from([24.0, 25.0, 30.0]))
def test_a_time_range_equals_qwen_vl_utils(start: float, length: float, fps: float) -> None:
    total = 3000
    for moment in (start, start + length):  # a microsecond from a frame's time counts as that time
        assume(moment == 0 or abs(moment * fps - round(moment * fps)) > 1e-4)
    ele = {"video_start": start, "video_end": start + length}
    first, last, inside = reference.calculate_video_frame_range(ele, total, fps)
    count = reference.smart_nframes({}, total_frames=inside, video_fps=fps)
    expected = torch.linspace(first, last, count).round().long().tolist()
    assert list(choose(video(total, fps), start=start, end=start + length)) == expected


@settings(max_examples=400, deadline=None)
@given(
    height=st.integers(21, 4000),
    width=st.integers(21, 4000),
    bounds=st.sampled_from([(100352, 602112), (7056, 18816), (3136, 12845056)]),
)
def test_smart_resize_equals_qwen_vl_utils(height: int, width: int, bounds: tuple[int, int]) -> None:
    low, high = bounds
    expected = reference.smart_resize(height, width, 28, low, high)
    if min(expected) > 0:  # the reference lets a side become 0
        assert smart_resize(height, width, factor=28, min_pixels=low, max_pixels=high) == expected


def test_720p_costs_720_tokens_per_slice() -> None:
    height, width = frame_size(720, 1280, 8, REFERENCE_BOUNDS, factor=28)
    assert (width, height) == (1008, 560)
    assert height * width // 28**2 == 720


def test_many_frames_share_the_pixels_of_the_whole_video() -> None:
    few = frame_size(720, 1280, 64, REFERENCE_BOUNDS, factor=28)
    many = frame_size(720, 1280, 768, REFERENCE_BOUNDS, factor=28)
    assert many[0] * many[1] < few[0] * few[1]
    assert many[0] * many[1] <= REFERENCE_BOUNDS.total_pixels / 768 * 2


@pytest.mark.parametrize(
    ("available", "frames", "expected"),
    [(1, None, (0, 0)), (100, 1, (49, 49)), (3, None, (0, 2)), (7, 100, (0, 1, 2, 4, 5, 6))],
)
def test_the_number_of_frames_is_even_and_at_most_the_available_ones(
    available: int, frames: int | None, expected: tuple[int, ...]
) -> None:
    assert choose(video(available), frames=frames) == expected


def test_a_variable_rate_is_sampled_evenly_in_time() -> None:
    # Ten frames in the first second, then one every second until 10 s.
    times = tuple(index / 10 for index in range(10)) + tuple(float(second) for second in range(1, 11))
    chosen = choose(video(20, 2.0, times), frames=6)
    assert [times[index] for index in chosen] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_range_is_by_the_frames_own_times_at_any_mean_rate() -> None:
    times = tuple(place / 30 for place in range(120)) + tuple(4 + place / 15 for place in range(60))
    halved = video(180, 22.5, times)
    for info in (halved, replace(halved, constant_rate=True)):  # a rate that is off by less than half a frame
        chosen = choose(info, start=4.2, end=5.0, frames=12)
        assert (chosen[0], chosen[-1]) == (123, 135)


def test_a_held_frame_counts_as_long_as_the_range() -> None:
    held = replace(video(50, 25.0, tuple(place / 25 for place in range(50))), duration_seconds=61.96)
    assert choose(held, start=30.0) == (49, 49)
    assert len(choose(held, end=6.0)) == 12  # 2 per second of 6 s
    assert len(choose(held)) == 50


def test_times_count_from_the_first_frame() -> None:
    late = video(250, start=100.0)
    assert choose(late, start=2.0, end=4.0) == choose(video(250), start=2.0, end=4.0)
    times = tuple(100 + index / 25 + (index % 2) * 0.01 for index in range(250))
    chosen = choose(replace(video(250, 25.0, times), constant_rate=False), start=2.0, end=4.0)
    assert 102.0 <= times[chosen[0]] < 102.1
    assert 103.9 < times[chosen[-1]] <= 104.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "--frames 0"),
        ({"frames": 4, "fps": 2.0}, "exclude each other"),
        ({"fps": 0.0}, "--fps 0.0"),
        ({"start": 4.0, "end": 2.0}, "0:04.0 is not before --end 0:02.0"),
        ({"start": 3.0, "end": 3.0}, "not before"),
        ({"start": 11.0}, "past the end"),
        ({"start": -1.0}, "before the start"),
    ],
)
def test_impossible_options_are_refused_with_numbers(options: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        choose(video(250), **options)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_a_picture_longer_than_200_to_1_is_refused() -> None:
    with pytest.raises(UsageError, match="200:1"):
        smart_resize(4, 1000, factor=28, min_pixels=7056, max_pixels=18816)
