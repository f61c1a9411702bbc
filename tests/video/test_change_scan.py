"""The scan for change: short events in long files, noise, time limits, files of every kind, and stored signals."""

import itertools
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from demo_world.long_clips import LongClip, LongEvent, frames_of, write_long_clip
from demo_world.world import Actor, Scene
from tests.clips import encode, write_clip
from vidqa.types import Request
from vidqa.utils.atomic_write import write_whole
from vidqa.utils.generators import finished
from vidqa.video.block_changes import BlockChanges, grid_size
from vidqa.video.change_sampling import sample_by_change
from vidqa.video.change_scan import _Scanner, evenly_spread
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.frame_sampling import spread
from vidqa.video.packet_sizes import alike, mean_sizes, size_peaks
from vidqa.video.reader import open_video
from vidqa.video.signal_cache import SignalCache

_RED = Actor(
    kind="moves", shape="circle", color="red", end_color="red", direction="right", across=0.2,
    x=0.3, y=0.5, end_x=0.6, end_y=0.5, appear=0.0, leave=2.0, start=0.0, stop=1.0, change=0.5, turn_degrees=0,
)  # fmt: skip
LONG = LongClip(120.0, (LongEvent(Scene((_RED,), "plain", 0), 71.3, 0.5),), seed=3, width=160, height=120)


def scan(path: Path, limit_seconds: float = 60.0, *, isolated: bool = False) -> ChangeSignal:
    with open_video(str(path), isolated=isolated) as reader:
        latest = 0

        def check(progress: tuple[int, int]) -> None:
            nonlocal latest
            assert latest <= progress[0] <= progress[1] == reader.info.frame_count
            latest = progress[0]

        return finished(reader.scan(limit_seconds), check)


def changed(signal: ChangeSignal, least: float = 0.01) -> list[float]:
    return [seconds for seconds, share in zip(signal.seconds, signal.change, strict=True) if share >= least]


class SteppingClock:
    """A clock in the place of the module time, that goes on by a second with every look at it."""

    def __init__(self) -> None:
        self.monotonic = itertools.count().__next__


@pytest.mark.parametrize("noise", [0.0, 12.0])
def test_an_event_of_half_a_second_stands_out(tmp_path: Path, noise: float) -> None:
    path, clip = tmp_path / "long.mp4", replace(LONG, noise=noise)
    write_long_clip(clip, path)
    signal = scan(path)
    assert signal.complete and len(signal.seconds) == clip.count and signal.cuts == ()
    seen = frames_of(clip, clip.events[0])
    assert changed(signal) == pytest.approx([index / clip.fps for index in range(seen.start, seen.stop + 1)])


def test_without_time_for_all_the_likely_groups_are_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check finds the scan too slow, so keyframes come first, and then the group whose packets stand out."""
    path = tmp_path / "long.mp4"
    write_long_clip(LONG, path)
    monkeypatch.setattr("vidqa.video.change_scan._Scanner._is_too_slow", lambda self, index: True)
    monkeypatch.setattr("vidqa.video.change_scan.time", SteppingClock())
    signal = scan(path, 26.0)
    assert not signal.complete and len(signal.seconds) < LONG.count / 2
    assert {10.0, 20.0, 60.0} <= set(signal.seconds)  # keyframes
    assert changed(signal) == pytest.approx([71.3, 71.4, 71.5, 71.6, 71.7, 71.8])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
def test_every_container_is_scanned_whole(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, 90, options={"g": "20", "bf": "2"} | ({} if name != "clip.avi" else {"bf": "0"}))
    signal = scan(path)
    assert signal.complete and len(signal.seconds) == 90
    assert min(signal.change[1:]) > 0  # each picture shows another number


def test_the_process_gives_the_same_signal_and_its_frames_afterwards(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 60)
    assert scan(path, isolated=True) == scan(path)
    with open_video(str(path)) as reader:
        first, *_ = reader.scan(5.0)
        assert first == (0, 60)
        assert [frame.index for frame in reader.frames((3, 40))] == [3, 40]


def test_pictures_of_a_folder_and_of_an_animation_are_scanned(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), (200, 30, 30) if number == 5 else (40, 40, 40)) for number in range(10)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    folder = scan(tmp_path)
    assert folder.complete and changed(folder) == pytest.approx([5 / 25, 6 / 25])
    animated = tmp_path / "made" / "animated.webp"
    animated.parent.mkdir()
    pictures[0].save(animated, save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    assert changed(scan(animated)) == pytest.approx([0.5, 0.6])
    Image.new("RGB", (64, 48)).save(tmp_path / "made" / "still.png")
    assert scan(tmp_path / "made" / "still.png").change == (0.0,)


def test_a_folder_without_time_is_scanned_sparsely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        Image.new("RGB", (32, 32), (40, 40, 40) if number < 30 else (200, 200, 200)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr("vidqa.video.picture_scan.time", SteppingClock())
    signal = scan(tmp_path, 24.0)
    assert not signal.complete and 8 < len(signal.seconds) < 40
    assert len(changed(signal)) == 1 and 30 / 25 <= changed(signal)[0] < 40 / 25


def test_a_damaged_file_is_scanned_up_to_the_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", 60)
    means = _Scanner._means

    def failing(scanner: _Scanner, picture: Any) -> np.ndarray:
        if picture.pts * picture.time_base >= 1.2:
            raise av.error.InvalidDataError(1, "damaged")
        return means(scanner, picture)

    monkeypatch.setattr(_Scanner, "_means", failing)
    signal = scan(path)
    assert not signal.complete and signal.seconds[-1] == pytest.approx(1.16)


def test_noise_does_not_change_blocks_and_a_small_spot_does() -> None:
    random, changes = np.random.default_rng(1), BlockChanges()
    noise = random.normal(100, 1.5, (400, 3, 18, 32)).round().clip(0, 255).astype(np.uint8)
    shares = [changes.add(picture) for picture in noise]
    assert sum(shares[20:]) <= 2 / 576  # two blocks in 380 pictures
    noise[-1, 0, 4:6, 7:9] += 30
    assert changes.add(noise[-1]) == 4 / 576
    assert changes.between(noise[-1], noise[0].astype(np.float32)) == 4 / 576
    changes.restart()
    assert changes.add(noise[0]) == 0.0


def test_colours_of_one_brightness_differ(tmp_path: Path) -> None:
    def pictures() -> Iterable[np.ndarray]:
        for number in range(20):
            picture = np.full((64, 64, 3), (92, 92, 92), np.uint8)
            picture[20:40, 20:40] = (215, 40, 40) if number < 10 else (52, 100, 150)  # both have a luma of 92
            yield picture

    assert changed(scan(encode(tmp_path / "clip.mp4", pictures(), options={"qp": "8", "bf": "0"}))) == [0.4]


def test_the_grid_has_blocks_of_about_equal_sides() -> None:
    assert grid_size(1920, 1080) == (32, 18) and grid_size(240, 320) == (24, 32) and grid_size(16000, 100) == (32, 1)


def test_packets_above_their_neighbours_are_peaks() -> None:
    sizes = [900, *[100 + number % 3 for number in range(49)]] * 4
    sizes[120] = 400
    keyframes = [number % 50 == 0 for number in range(200)]
    peaks = size_peaks(sizes, keyframes)
    assert len(peaks) == 4 and max(peaks) == peaks[2] > 10 and max(peaks[:2]) < 1
    assert size_peaks([10, 10], [False, False]) == [] and size_peaks([10], [True]) == [0.0]


def test_groups_with_packets_of_one_size_change_alike() -> None:
    assert mean_sizes([900, 10, 20, 800, 40], [True, False, False, True, False]) == [15.0, 40.0]
    assert alike([0.0, 0.5, 0.6, 0.4], [10.0, 200.0, 210.0, 190.0], [205.0, 9.0]) == [0.5, 0.4]
    assert alike([0.3], [5.0], [500.0]) == [0.3]


def test_motion_between_equal_keyframes_is_not_taken_for_stillness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every group of 20 pictures is the same, and few of them are scanned: the others move as well."""
    pictures = [np.full((64, 128, 3), 60, np.uint8) for _ in range(20)]
    for number, picture in enumerate(pictures):
        picture[24:40, 5 * number : 5 * number + 16] = 200  # a square that crosses the picture
    pictures *= 50
    path = encode(tmp_path / "loop.mp4", pictures, options={"g": "20", "x264-params": "scenecut=0"})
    monkeypatch.setattr("vidqa.video.change_scan._Scanner._is_too_slow", lambda self, index: True)
    monkeypatch.setattr("vidqa.video.change_scan.time", SteppingClock())
    signal = scan(path, 60.0)
    assert not signal.complete and len(signal.seconds) < 600
    with open_video(str(path), isolated=False) as reader:
        even = spread(0, 999, 16)
        assert sample_by_change(reader.info, even, signal, always=False)[1].reason.startswith(
            "the change lies in about 15 of the 15 intervals"
        )


def test_a_part_of_the_order_is_spread_evenly() -> None:
    assert list(evenly_spread(6)) == [0, 4, 2, 1, 3, 5]
    for count in (1, 2, 7, 64, 100):
        assert sorted(evenly_spread(count)) == list(range(count))
    assert list(evenly_spread(0)) == []


def test_a_signal_is_stored_by_content_and_a_damaged_file_of_it_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    path, copy = write_clip(tmp_path / "clip.mp4", 30), tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    request, signal = Request(str(path), "what?"), scan(path)
    SignalCache().store(request, signal, 5.0, on_disk=True)
    other, cache = replace(request, video=str(copy), question="who?"), SignalCache()
    assert cache.find(other, on_disk=False) is None
    assert cache.find(other, on_disk=True) == signal
    assert cache.find(other, on_disk=False) == signal  # from memory now
    assert SignalCache().find(replace(other, stream=1), on_disk=True) is None

    (stored,) = (tmp_path / "state" / "scans").iterdir()
    text = json.loads(stored.read_text())
    for damaged in ("", "[]", "{}", json.dumps(text | {"change": [0.5]}), json.dumps(text | {"cuts": ["x"]}),
                    json.dumps(text | {"seconds": text["seconds"][::-1]}), '{"limit_s": NaN}', "\0" * 40):  # fmt: skip
        stored.write_text(damaged)
        assert SignalCache().find(other, on_disk=True) is None, damaged
    copy.write_bytes(path.read_bytes() + b"\0")  # other content
    assert cache.find(other, on_disk=True) is None


def test_a_scan_that_was_cut_short_is_repeated_with_far_more_time(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 10)
    cache, request = SignalCache(), Request(str(path), "what?")
    cache.store(request, replace(scan(path), complete=False), 5.0, on_disk=False)
    assert cache.find(request, 9.0, on_disk=False) is not None
    assert cache.find(request, 11.0, on_disk=False) is None


def test_no_damage_of_a_stored_signal_stops_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-written files, and numbers that no scan gives, are as good as none; the next scan replaces them."""
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    (clip := tmp_path / "clip.mp4").write_bytes(b"a video")
    request, signal = Request(str(clip), "?"), ChangeSignal((0.0, 0.5, 1.0), (0.0, 0.25, 1.0), (1.0,))
    SignalCache().store(request, signal, 5.0, on_disk=True)
    (stored,) = (tmp_path / "state" / "scans").iterdir()
    whole = stored.read_text()
    halves = [whole[:size] for size in range(0, len(whole) - 1, 7)]
    huge, above = whole.replace("0.25", "1" + "0" * 400), whole.replace("0.25", "2.5")
    empty = json.dumps({"limit_s": 5.0, "complete": True, "seconds": [], "change": [], "cuts": []})
    for damaged in (*halves, huge, above, empty, "[]", "[" * 100_000, "\0" * 100):
        stored.write_text(damaged)
        assert SignalCache().find(request, on_disk=True) is None, damaged[:80]
    SignalCache().store(request, signal, 5.0, on_disk=True)
    assert SignalCache().find(request, on_disk=True) == signal


def test_threads_that_write_one_file_leave_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is stopped in the middle of its file while the other writes and replaces it."""
    path, synced, sync = tmp_path / "signal.json", list[str](), os.fsync

    def slow(descriptor: int) -> None:
        if not synced:
            synced.append("first")
            (other := threading.Thread(target=write_whole, args=(path, "of the other"))).start()
            other.join()
            assert path.read_text() == "of the other"
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    write_whole(path, "of the first")
    assert path.read_text() == "of the first" and list(tmp_path.iterdir()) == [path]
