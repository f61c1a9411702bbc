"""bench_hour: its clip has brief events between even frames, and both ways answer about it."""

from pathlib import Path

import pytest
from bench_hour import SAMPLES, measure, write_hour

from vidqa.video.reader import open_video


def test_a_short_rehearsal_measures_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    clip, state = tmp_path / "clip.mp4", tmp_path / "state"
    write_hour(clip, 40.0, 96)
    with open_video(str(clip), isolated=False) as reader:
        assert reader.info.frame_count == 1000 and reader.info.height == 96
    even, auto, again = (measure(clip, sample, 8, "demo", state) for sample in (*SAMPLES, SAMPLES[1]))
    assert even.scan == 0 < auto.scan < auto.first_word and even.first_word > 0
    assert again.scan > 0, "every scan is a first one"
