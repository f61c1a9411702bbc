"""bench_focus: its clips and its rows."""

from itertools import pairwise

import bench_focus
from bench_focus import CASES, MINUTES, SIDES, long_case, rows_of

from benchlib.paired import Marks
from demo_world.recipes import RECIPES

RECIPE = RECIPES["qwen3_vl"]


def test_long_clips_have_the_events_that_their_case_says() -> None:
    for case in MINUTES:
        clip, turn = long_case(case, 5, RECIPE)
        asked, *others = (event.scene.actors[0] for event in clip.events)
        assert asked.names[0] in turn.question and asked.names[0] in turn.answer
        assert clip.seconds == 60 * MINUTES[case] and (clip.noise > 0) == (case == "noise")
        assert len(others) == (bench_focus.OTHERS if case == "others" else 0)
        assert not {asked.color, asked.end_color} & {
            color for other in others for color in (other.color, other.end_color)
        }
        lengths = [event.seconds for event in clip.events]
        assert lengths == [0.2] if case == "glimpse" else all(0.5 <= length <= 1.0 for length in lengths)
        starts = sorted(event.start_seconds for event in clip.events)
        assert starts[0] >= 1 and starts[-1] + 1 < clip.seconds
        assert all(later - earlier > 1 for earlier, later in pairwise(starts))


def test_rows_and_bars_have_the_same_names() -> None:
    results = [
        {side: Marks(right, 320, 320) for side in SIDES} | {"even": Marks(0.0, 320, 320)} for right in (1.0, 0.5)
    ]
    keys = {row.key: row.value for case in CASES for row in rows_of(case, results)}
    assert set(bench_focus.BARS) <= set(keys)
    assert keys["others: both, right"] == 0.75 and keys["short: change, points gained"] == 75.0
