"""benchlib.paired: differences by clip, shares of tokens, and runs that go on where they were stopped."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchlib.paired import ClipResult, Marks, measure_clips, paired, times_fewer, with_sides
from vidqa import EngineConfig


def test_differences_are_paired_by_clip() -> None:
    lost, half = paired([1.0, 1.0, 0.5, 1.0], [1.0, 0.5, 0.5, 1.0])
    assert lost == 12.5 and half == pytest.approx(1.96 * 25 / 2)
    assert paired([1.0], [0.0]) == (100.0, 0.0)


def test_tokens_are_summed_over_clips() -> None:
    results = [
        {"all": Marks(1, 100, 100), "few": Marks(1, 10, 100)},
        {"all": Marks(1, 60, 60), "few": Marks(1, 30, 60)},
    ]
    assert times_fewer(results, "few", "all") == 4.0


def _measure(case: str, seed: int, sides: Sequence[str]) -> ClipResult:
    return {side: Marks(float(seed % 2), seed, 10 * seed) for side in sides}


def test_clips_that_were_measured_are_not_measured_again(tmp_path: Path) -> None:
    config = EngineConfig(model="demo", isolate_decoder=False, remember=False)
    first = measure_clips("case", range(3), ["all"], _measure, config, tmp_path, 1)
    assert [result["all"] for result in first] == [Marks(0, 0, 0), Marks(1, 1, 10), Marks(0, 2, 20)]
    kept = tmp_path / "case.jsonl"
    kept.write_text(kept.read_text().replace("[1.0, 1, 10]", "[0.5, 7, 70]"))
    again = measure_clips("case", range(4), ["all", "few"], _measure, config, tmp_path, 1)
    assert again[1] == {"all": Marks(0.5, 7, 70), "few": Marks(1, 1, 10)}
    assert with_sides([*first, *again], "all", "few") == again
    assert len(kept.read_text().splitlines()) == 3 + 4
