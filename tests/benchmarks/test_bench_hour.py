"""bench_hour: its clip, both ways to place frames, and two questions that select them."""

from pathlib import Path

import pytest
from bench_hour import SAMPLES, measure, select_twice, write_hour

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


def test_the_second_question_selects_without_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    clip = tmp_path / "clip.mp4"
    write_hour(clip, 40.0, 96)
    (one, other), *rest = select_twice(clip, 8, "demo", 2)
    assert one.stages == {"video", "vision", "focus", "prefill", "decode"} and len(rest) == 1
    assert other.stages == {"focus", "prefill", "decode"}
    assert rest[0][0].stages == one.stages, "each round begins with the video"
    with pytest.raises(RuntimeError, match="the stages were"):  # half of the clip's frames are no selection
        next(select_twice(clip, 32, "demo", 1))
