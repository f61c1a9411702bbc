"""Frames by change, on plain numbers: equal shares, even coverage, slices on one side of a cut."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planner.plan_builders import made_problem, made_video
from vidqa.planner.explain import sampling_gap_note
from vidqa.planner.planner import plan_video
from vidqa.types import VideoInfo
from vidqa.video.change_sampling import (
    busy_intervals,
    describe_sampling,
    frame_chances,
    longest_gap,
    noise_share,
    sample_by_change,
)
from vidqa.video.change_signal import ChangeSignal, binned, find_cuts, sparkline, within
from vidqa.video.frame_sampling import spread


def signal_of(video: VideoInfo, changes: dict[int, float], cuts: tuple[float, ...] = ()) -> ChangeSignal:
    """A complete signal with the changes of some frames."""
    seconds = tuple(video.shown_seconds(index) for index in range(video.frame_count))
    return ChangeSignal(seconds, tuple(changes.get(index, 0.0) for index in range(video.frame_count)), cuts)


def sampled(video: VideoInfo, signal: ChangeSignal, count: int, *, always: bool = True) -> tuple[int, ...]:
    return sample_by_change(video, spread(0, video.frame_count - 1, count), signal, always=always)[0]


def event(first: int, frames: int, share: float = 0.04) -> dict[int, float]:
    """The changes of something that moves in so many frames, and is gone in the one after them."""
    return dict.fromkeys(range(first, first + frames + 1), share)


@pytest.mark.parametrize(("fps", "frames"), [(10, 5), (10, 2), (25, 12), (25, 5)])
def test_a_short_event_in_ten_minutes_gets_whole_slices(fps: float, frames: int) -> None:
    video = made_video(600, fps=fps)
    first = 3713
    indices = sampled(video, signal_of(video, event(first, frames)), 32)
    inside = [index for index in indices if first <= index < first + frames]
    slices = [pair for pair in zip(indices[::2], indices[1::2], strict=True) if set(pair) <= set(inside)]
    assert len(inside) >= min(frames // 2 * 2, 4) and len(slices) == len(inside) // 2
    even = [index for index in spread(0, video.frame_count - 1, 32) if first <= index < first + frames]
    assert not even


def test_an_event_that_stands_still_is_sampled_between_its_begin_and_end() -> None:
    video = made_video(600, fps=25)
    indices = sampled(video, signal_of(video, {5000: 0.04, 5012: 0.04}), 32)
    assert len([index for index in indices if 5000 <= index < 5012]) >= 4


def test_each_of_several_events_gets_a_slice() -> None:
    video = made_video(600, fps=10)
    starts = range(200, 5800, 570)
    indices = sampled(
        video, signal_of(video, {place: share for one in starts for place, share in event(one, 7).items()}), 32
    )
    for start in starts:
        inside = [index for index in indices if start <= index < start + 7]
        assert len(inside) >= 2 and indices.index(inside[0]) % 2 == 0, start


@given(
    st.integers(2, 40), st.integers(60, 4000),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 60), st.floats(0.001, 1)), max_size=6),
    st.lists(st.floats(0, 1), max_size=4),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_counts_order_and_gaps_hold_for_any_change(
    slices: int, frames: int, runs: list[tuple[float, int, float]], cuts: list[float]
) -> None:
    video, count = made_video(frames / 10, fps=10), 2 * slices
    changes = {
        place: share
        for start, length, share in runs
        for place in range(int(start * (frames - 1)), min(int(start * (frames - 1)) + length, frames))
    }
    places = sorted({int(cut * (frames - 1)) for cut in cuts})
    signal = signal_of(video, changes, tuple(video.shown_seconds(place) for place in places))
    count = min(count, frames // 2 * 2)
    indices = sampled(video, signal, count)
    assert len(indices) == count and all(before < after for before, after in pairwise(indices))
    assert indices[0] >= 0 and indices[-1] < frames
    times = [0.0, *(video.shown_seconds(index) for index in indices), video.shown_seconds(frames - 1)]
    widest = max(after - before for before, after in pairwise(times))
    assert count <= 2 or widest <= longest_gap(times[-1], count) + 0.3


def test_the_gap_limit_is_an_eighth_or_four_distances() -> None:
    assert longest_gap(600.0, 64) == pytest.approx(4 * 600 / 63)
    assert longest_gap(600.0, 32) == pytest.approx(75.0)
    assert longest_gap(600.0, 8) == pytest.approx(3 * 600 / 7)  # an eighth is less than the even distance


def test_slices_do_not_span_a_cut() -> None:
    video = made_video(120, fps=25)
    moving = dict.fromkeys(range(1, 3000), 0.2)
    cuts = tuple(range(7, 120, 11))
    indices = sampled(video, signal_of(video, moving, tuple(map(float, cuts))), 40)
    spanned = [
        cut for cut in cuts for one, other in zip(indices[::2], indices[1::2], strict=True)
        if one < cut * 25 <= other
    ]  # fmt: skip
    assert not spanned


def test_auto_keeps_even_frames_where_they_miss_little() -> None:
    long, short = made_video(600, fps=10), made_video(20, fps=10)
    even, still = spread(0, 5999, 32), signal_of(long, {})
    moving = signal_of(long, dict.fromkeys(range(1, 6000), 0.1))
    for signal, reason in ((still, "nothing changes"), (moving, "31 of the 31 intervals")):
        indices, why = sample_by_change(long, even, signal, always=False)
        assert indices == even and why.kind == "uniform" and reason in why.reason
    close = spread(0, 199, 32)
    indices, why = sample_by_change(short, close, signal_of(short, event(50, 5)), always=False)
    assert indices == close and "0.6 s apart" in why.reason
    indices, why = sample_by_change(long, even, signal_of(long, event(3713, 5)), always=False)
    assert why.kind == "change" and indices != even and "about 1 of the 31 intervals" in why.reason
    (part,) = why.parts
    assert (part.start_seconds, part.end_seconds) == pytest.approx((371.3, 371.8)) and part.frames >= 6
    assert describe_sampling(why, 32).startswith(f"frames by change: {part.frames} of 32 where it happens")


def test_a_flash_between_two_cuts_is_sampled() -> None:
    """Everything moves a little all the time, as behind a running clock; 0.2 s of another scene lie in between."""
    video = made_video(30, fps=30)
    changes = dict.fromkeys(range(1, 900), 0.03) | {447: 0.96, 453: 0.95}
    signal = signal_of(video, changes, (14.9, 15.1))
    even = spread(0, 899, 16)
    assert not [index for index in even if 447 <= index < 453]
    indices, why = sample_by_change(video, even, signal, always=False)
    inside = [index for index in indices if 447 <= index < 453]
    assert len(inside) == 2 and indices.index(inside[0]) % 2 == 0 and "a scene at 0:14.9" in why.reason


def test_noise_in_single_blocks_draws_no_frames() -> None:
    video = made_video(600, fps=10)
    noise = dict.fromkeys(range(7, 6000, 8), 0.0013)
    indices = sampled(video, signal_of(video, noise | event(3713, 5)), 32)
    assert len([index for index in indices if 3713 <= index < 3718]) >= 4
    assert noise_share([0.0013] * 100) == pytest.approx(0.0026) and noise_share([0.5] * 100) == 0.005
    assert noise_share([]) == 0.0


def test_unscanned_stretches_between_different_keyframes_get_frames() -> None:
    """Keyframes every 10 s: from 200 to 300 s they differ, so change went on there unseen."""
    video = made_video(600, fps=10)
    seconds = tuple(float(at) for at in range(0, 600, 10))
    signal = ChangeSignal(seconds, tuple(0.4 if 200 < at <= 300 else 0.0 for at in seconds), (), complete=False)
    indices = sampled(video, signal, 32)
    assert len([index for index in indices if 2000 <= index <= 3000]) >= 16


def test_chances_sum_to_the_count_and_stay_below_one() -> None:
    times = [index / 10 for index in range(100)]
    chances = frame_chances(times, [0.0] * 40 + [1.0] * 5 + [0.0] * 55, 32)
    assert sum(chances) == pytest.approx(32) and max(chances) <= 1 + 1e-9
    assert chances[40:45] == pytest.approx([1.0] * 5)
    assert busy_intervals(times, [1.0] * 100, 9) == pytest.approx(9, rel=0.01)
    assert busy_intervals(times, [0.0] * 99 + [1.0], 9) == 1.0


def test_a_plan_says_where_its_frames_lie_and_keeps_the_count() -> None:
    problem = made_problem(12, 600.0, frames=32)
    signal = signal_of(problem.video, event(9282, 12))
    plain = plan_video(replace(problem, signal=signal))
    assert plain == plan_video(problem) and plain.sampling is None  # uniform is the default
    found = plan_video(replace(problem, request=replace(problem.request, sample="auto"), signal=signal))
    assert found.run_config == plain.run_config and len(found.indices) == 32
    assert found.sampling is not None and found.sampling.kind == "change"
    assert found.choices == (describe_sampling(found.sampling, 32),) and found.limits == plain.limits
    assert found.timestamps_seconds == tuple(map(problem.video.shown_seconds, found.indices))
    still = replace(problem, request=replace(problem.request, sample="auto"), signal=signal_of(problem.video, {}))
    assert plan_video(still).indices == plain.indices and plan_video(still).limits == plain.limits
    assert plan_video(still).choices == ("even frames: nothing changes",)
    assert not [*sampling_gap_note(plan_video(still), still.request)] and any(sampling_gap_note(plain, problem.request))
    part = replace(still, request=replace(still.request, start_seconds=100.0, end_seconds=400.0))
    assert plan_video(part).choices == ("even frames: nothing changes in this part",)
    cursor = replace(still, signal=replace(still.signal, change=(0.003,) * len(still.signal.change)))
    assert plan_video(cursor).choices == () and any(sampling_gap_note(plan_video(cursor), still.request))
    unseen = replace(still, signal=replace(signal_of(problem.video, {}), complete=False))
    assert not plan_video(unseen).choices and any(sampling_gap_note(plan_video(unseen), unseen.request))


def test_cuts_are_sudden() -> None:
    seconds = tuple(index / 10 for index in range(60))
    change = [0.02] * 60
    change[20] = 0.9
    change[40:45] = [0.7] * 5  # motion of the camera
    assert find_cuts(range(60), seconds, change) == (2.0,)
    assert find_cuts(range(0, 120, 2), seconds, change) == ()  # every other frame
    assert find_cuts((0,), (0.0,), (0.0,)) == ()


def test_the_signal_is_drawn_in_bins() -> None:
    signal = ChangeSignal((0.0, 2.5, 5.0, 9.9), (0.0, 0.25, 0.0, 1.0), (5.0,))
    assert binned(signal, 10.0, 4) == [0.0, 0.5, 0.0, 1.0]
    assert sparkline(signal, 10.0, 4) == "▁▅▁█"
    assert within(signal, 2.0, 6.0) == ChangeSignal((0.5, 3.0), (0.25, 0.0), (3.0,))
