"""Slices are selected by plain numbers: the highest scores, an even quarter, ascending."""

import pytest

from vidqa.engine.slice_selection import Moment, even_slices, find_moments, interleaved, select_slices


def test_parts_span_the_video_and_leave_no_slice_out() -> None:
    parts = interleaved(10, 4)
    assert [list(part) for part in parts] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert [list(part) for part in interleaved(3, 8)] == [[0, 1, 2]]


@pytest.mark.parametrize("slices", [1, 2, 7, 16, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_even_slices_are_ascending_and_as_many_as_asked_for(slices: int, count: int) -> None:
    chosen = even_slices(slices, count)
    assert len(set(chosen)) == len(chosen) == min(count, slices) and list(chosen) == sorted(chosen)
    assert chosen[0] == 0 and (count == 1 or chosen[-1] == slices - 1)


def test_the_highest_scores_are_read_beside_an_even_quarter() -> None:
    scores = [0.1] * 40
    for place, score in ((11, 0.9), (12, 0.8), (30, 0.7), (31, 0.6), (5, 0.5), (6, 0.4)):
        scores[place] = score
    assert select_slices(scores, range(40), 8) == (0, 5, 6, 11, 12, 30, 31, 39)  # 0 and 39 are the even quarter


def test_an_even_slice_with_a_high_score_leaves_room_for_another() -> None:
    scores = [0.0] * 9
    scores[0], scores[4], scores[5] = 0.9, 0.5, 0.4
    assert select_slices(scores, range(9), 4) == (0, 1, 4, 5)


def test_all_are_read_where_there_are_few_and_equal_scores_take_the_earlier() -> None:
    assert select_slices([0.5, 0.1, 0.3], range(3), 8) == (0, 1, 2)
    assert select_slices([0.2] * 6, range(6), 3) == (0, 1, 2)


def test_moments_share_the_slices_in_proportion_to_their_scores() -> None:
    scores = [0.0] * 40
    scores[10:16] = [0.9, 0.9, 0.8, 0.8, 0.8, 0.8]
    scores[20:26] = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert select_slices(scores, range(40), 8) == (0, 10, 11, 12, 13, 20, 21, 39)  # of six: four and two
    scores[20:26] = [0.9] * 6
    assert select_slices(scores, range(40), 8) == (0, 10, 11, 12, 20, 21, 22, 39)


def test_slices_shortly_beside_a_moment_are_read_with_it() -> None:
    scores, seconds = [0.1] * 12, [0.0, 8.0, 9.0, 9.3, 9.5, 9.7, 10.5, 15.0, 20.0, 21.0, 22.0, 30.0]
    scores[4], scores[9] = 0.9, 0.4
    assert select_slices(scores, seconds, 5) == (0, 2, 3, 4, 5)  # 9.0 and 9.7 rather than the next highest score
    assert select_slices(scores, seconds, 4) == (0, 3, 4, 5), "the nearest"
    assert select_slices(scores, seconds, 6) == (0, 2, 3, 4, 5, 9)


def test_high_slices_of_all_moments_are_read_before_low_ones_beside_the_best() -> None:
    scores = [0.1] * 100
    scores[50], scores[70:90] = 5.0, [4.0] * 20
    assert select_slices(scores, [0.1 * place for place in range(100)], 16) == (0, 33, 50, 66, *range(70, 81), 99)


def test_neighbouring_high_slices_are_one_moment() -> None:
    scores = [0.1, 0.1, 0.8, 0.1, 0.9, 0.1, 0.1, 0.1, 0.7, 0.1, 0.1, 0.3]
    seconds = [2.0 * place for place in range(12)]
    assert find_moments(scores, seconds, 5, 24.0) == (Moment(3.0, 9.0, 0.9), Moment(15.0, 17.0, 0.7))
    assert find_moments(scores, seconds, 1, 24.0) == (Moment(3.0, 9.0, 0.9),)


def test_a_moment_does_not_begin_before_the_video() -> None:
    assert find_moments([0.9, 0.1, 0.1, 0.1], [0.0, 1.0, 2.0, 3.0], 3, 3.5) == (Moment(0.0, 0.5, 0.9),)


def test_a_slice_without_others_lasts_from_its_first_to_its_last_frame() -> None:
    assert find_moments([0.4], [3.25], 3, last_seconds=3.5) == (Moment(3.0, 3.5, 0.4),)


def test_a_moment_ends_half_way_to_the_slice_beside_it_and_with_the_video() -> None:
    uneven = [0.0, 10.0, 10.5, 11.0, 20.0]
    assert find_moments([0.1, 0.1, 0.9, 0.1, 0.1], uneven, 1, 21.0) == (Moment(10.25, 10.75, 0.9),)
    assert find_moments([0.1, 0.1, 0.1, 0.1, 0.9], uneven, 1, last_seconds=20.2) == (Moment(15.5, 20.2, 0.9),)
