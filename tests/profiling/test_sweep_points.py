"""Points, rows and summaries of a sweep, on plain numbers."""

import pytest

from tests.planner.plan_builders import SPEC_2B, made_video
from vidqa.errors import UsageError
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
from vidqa.profiling.sweep_points import (
    SweepPoint,
    SweepRow,
    even,
    frame_points,
    frames_for_budget,
    make_row,
    parse_counts,
    parse_sizes,
    size_points,
    slope,
    summarise,
)
from vidqa.types import Request

REQUEST = Request("clip.mp4", "what happens?")
GIB = 2**30


def row(side: str, frames: int, tokens: int, peak: float | None, **how: object) -> SweepRow:
    outcome = "ok" if peak is not None else "out_of_memory"
    size = None if peak is None else int(peak * GIB)
    return SweepRow(side, frames, frames, 1008, 560, tokens, outcome, peak_bytes=size, **how)  # type: ignore[arg-type]


def test_counts_are_sorted_and_taken_once() -> None:
    assert parse_counts("20, 5,10,5,") == (5, 10, 20)
    for bad in ("", "5,ten", "0", "-4", "²", "1.5", ",".join(map(str, range(1, 500)))):
        with pytest.raises(UsageError):
            parse_counts(bad)


def test_sizes_are_taken_once() -> None:
    assert parse_sizes("448x252,224x126,448x252") == ((448, 252), (224, 126))
    for bad in ("", "448", "448x252,big"):
        with pytest.raises(UsageError):
            parse_sizes(bad)


def test_odd_counts_are_floored_not_rounded() -> None:
    assert [even(count) for count in (1, 2, 3, 5, 15, 25, 30)] == [2, 2, 2, 4, 14, 24, 30]


def test_the_published_t4_sweep_has_these_points() -> None:
    # 1,466 tokens at 5 frames and so on are 720 a temporal slice of the floored count, and 26 of text.
    points, notes = frame_points(made_video(59), SPEC_2B, REFERENCE_BOUNDS, (5, 10, 15, 20, 25, 30), REQUEST)
    assert [point.visual_tokens + 26 for point in points] == [1466, 3626, 5066, 7226, 8666, 10826]
    assert {(point.width, point.height) for point in points} == {(1008, 560)}
    assert [point.frames for point in points] == [4, 10, 14, 20, 24, 30]
    assert notes == [f"--frames {odd} becomes {odd - 1}: a temporal slice is 2 frames" for odd in (5, 15, 25)]


def test_counts_that_give_the_same_frames_run_once() -> None:
    points, notes = frame_points(made_video(1), SPEC_2B, REFERENCE_BOUNDS, (4, 5, 100, 768), REQUEST)
    assert [(point.asked, point.frames) for point in points] == [(4, 4), (100, 24)]  # 25 pictures: 24 in slices
    assert any("--frames 5 gives 4 frames again" in note for note in notes)
    assert any("--frames 100 becomes 24: the video has no more" in note for note in notes)
    assert any("--frames 768 gives 24 frames again" in note for note in notes)


def test_an_asked_size_is_rounded_to_whole_tokens_and_kept() -> None:
    request = Request("clip.mp4", "what?", size=(450, 250))
    points, _ = frame_points(made_video(10), SPEC_2B, REFERENCE_BOUNDS, (4, 8), request)
    assert [(point.width, point.height) for point in points] == [(448, 252)] * 2
    assert [point.visual_tokens for point in points] == [2 * 16 * 9, 4 * 16 * 9]


def test_sizes_share_a_token_budget() -> None:
    sizes = ((1008, 560), (504, 280), (448, 252), (252, 140), (112, 112))
    points, notes = size_points(made_video(120), SPEC_2B, REFERENCE_BOUNDS, sizes, 8, REQUEST)
    tokens = [point.visual_tokens for point in points]
    assert tokens[0] == 4 * 720
    assert all(abs(count / tokens[0] - 1) < 0.01 for count in tokens)
    assert [point.frames for point in points] == [8, 32, 40, 128, 360]
    assert all(
        point.visual_tokens == SPEC_2B.visual_tokens(point.frames, point.height, point.width) for point in points
    )
    assert "2,880 visual tokens" in notes[0]


def test_a_video_too_short_for_a_size_is_refused_with_numbers() -> None:
    with pytest.raises(UsageError, match=r"112x112 needs 360 frames .* the video has 250"):
        size_points(made_video(10), SPEC_2B, REFERENCE_BOUNDS, ((1008, 560), (112, 112)), 8, REQUEST)


def test_frames_for_a_budget_are_even_and_nearest() -> None:
    assert frames_for_budget(1000, [1000, 500, 333, 90, 3000]) == [2, 4, 6, 22, 2]


def test_the_results_values_replace_the_planned_ones() -> None:
    made = make_row(
        "vidqa", SweepPoint(9, 8, 112, 84, 48), 100, {"outcome": "ok", "frames": 6, "peak_bytes": 7, "notes": ["x"]}
    )
    assert (made.asked, made.frames, made.visual_tokens, made.peak_bytes, made.notes) == (9, 6, 48, 7, ("x",))


def test_the_slope_of_a_line_is_found_through_its_noise() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 0.9), (1, 3.2), (2, 4.9)]) == pytest.approx(2)
    assert slope([(3, 1), (3, 2)]) is None


def test_a_summary_has_slopes_limits_and_agreement() -> None:
    kv = 28 * 1024
    rows = [
        row("vidqa", frames, frames * 360, 4.5 + frames * 360 * kv / GIB, answer="a dog", predicted_peak_bytes=5 * GIB)
        for frames in (4, 10, 30)
    ]
    rows += [row("transformers", frames, frames * 360, peak, answer="a dog") for frames, peak in ((4, 4.6), (10, 5.9))]
    rows.append(row("transformers", 30, 10800, None))
    summary = summarise(rows, kv)
    assert summary["sides"]["vidqa"]["bytes_per_token"] == pytest.approx(kv, rel=1e-3)
    assert summary["sides"]["vidqa"]["out_of_memory_from_frames"] is None
    assert summary["sides"]["vidqa"]["prediction_off_by"] == pytest.approx(5 / rows[0].peak_bytes * GIB - 1)  # type: ignore[operator]
    assert summary["sides"]["transformers"]["out_of_memory_from_frames"] == 30
    assert summary["sides"]["transformers"]["largest_frames"] == 10
    assert summary["sides"]["transformers"]["peak_spread"] == pytest.approx(5.9 / 4.6 - 1, rel=1e-3)
    assert summary["same_answers"] is True
    rows.append(row("vidqa", 20, 7200, 5.0, answer="a cat"))
    rows.append(row("transformers", 20, 7200, 9.0, answer="a dog"))
    assert summarise(rows, kv)["same_answers"] is False


def test_without_measurements_the_summary_is_none() -> None:
    summary = summarise([row("vidqa", 4, 1440, None)], 1)
    assert summary["sides"]["vidqa"]["measured"] == 0
    assert summary["sides"]["vidqa"]["bytes_per_token"] is None
    assert summary["same_answers"] is None
    assert "transformers" not in summary["sides"]
