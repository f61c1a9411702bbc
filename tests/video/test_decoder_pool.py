"""One decoder process for many files, and the time that one file may take."""

import time
from pathlib import Path

import pytest

from tests.clips import read_number, write_clip
from tests.decoders import scripted_decoder
from vidqa.errors import Interrupted, VideoUnreadable
from vidqa.video.decoder_pool import ReusedDecoder
from vidqa.video.reader import Decoding, never, open_source


def clips(folder: Path, count: int) -> list[str]:
    return [str(write_clip(folder / f"{number}.mp4", 5 + number)) for number in range(count)]


@pytest.mark.parametrize("isolated", [True, False])
def test_each_file_gives_its_own_facts_and_frames(tmp_path: Path, isolated: bool) -> None:
    with ReusedDecoder(Decoding(isolated), never) as decoder:
        for number, path in enumerate(clips(tmp_path, 3)):
            info, source = decoder.open(path)
            assert (info.path, info.frame_count) == (path, 5 + number)
            assert [read_number(frame.rgb) for frame in source.frames((1, 4))] == [1, 4]


def test_a_process_serves_file_after_file_and_is_replaced_after_the_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = scripted_decoder(tmp_path, monkeypatch)
    monkeypatch.setattr("vidqa.video.decoder_pool.MAX_FILES", 3)
    with ReusedDecoder(Decoding(), never) as decoder:
        for path in clips(tmp_path, 7):
            decoder.open(path)
    processes = [process for process, _ in opened()]
    assert [processes.count(process) for process in dict.fromkeys(processes)] == [3, 3, 1]


def test_a_bad_file_leaves_the_process_and_a_reading_that_was_left_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = scripted_decoder(tmp_path, monkeypatch)
    first, second, third = clips(tmp_path, 3)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing that is a video" * 50)
    with ReusedDecoder(Decoding(), never) as decoder:
        decoder.open(first)
        with pytest.raises(VideoUnreadable, match=r"bad\.mp4"):
            decoder.open(str(bad))
        _, source = decoder.open(second)
        next(iter(source.frames((0, 1, 2))))
        assert len({process for process, _ in opened()}) == 1
        _, source = decoder.open(third)
        assert [read_number(frame.rgb) for frame in source.frames((6,))] == [6]
    assert len({process for process, _ in opened()}) == 2


def test_waiting_for_a_decoder_ends_when_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    path = write_clip(tmp_path / "hang_frames.mp4", 5)
    stopped = False
    with ReusedDecoder(Decoding(), lambda: stopped) as decoder:
        _, source = decoder.open(str(path))
        stopped = True
        with pytest.raises(Interrupted):
            list(source.frames((0,)))


def test_a_clip_whose_frames_all_come_late_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    path = write_clip(tmp_path / "slow_frames.mp4", 250)
    with ReusedDecoder(Decoding(clip_deadline_seconds=3.0), never) as decoder:
        _, source = decoder.open(str(path))
        with pytest.raises(VideoUnreadable, match="busy for 3 s in all"):
            list(source.frames(range(250)))  # 50 s in all, each reply well within its deadline


def test_time_that_the_caller_takes_is_not_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumped = 0.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + jumped

    monkeypatch.setattr("vidqa.video.reader.time", Clock)
    _, source = open_source(clips(tmp_path, 1)[0], Decoding(clip_deadline_seconds=60.0))
    count = 0
    for _ in source.frames(range(5)):
        jumped += 100.0
        count += 1
    source.close()
    assert count == 5
