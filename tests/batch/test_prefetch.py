"""Reading ahead: every clip once, in bounded memory, whatever becomes of files, decoders and readers."""

import hashlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.clips import read_number, write_clip
from tests.decoders import scripted_decoder
from vidqa.batch.prefetch import PrefetchedClip, Prefetcher
from vidqa.config import EngineConfig
from vidqa.engine.session import Session
from vidqa.errors import Interrupted, UsageError, VideoNotFound, VideoUnreadable, VidqaError
from vidqa.events import Answered
from vidqa.types import Request, VideoInfo
from vidqa.video.reader import Decoding, VideoReader, open_video

ASSETS = Path(__file__).parents[2] / "assets"
DEMO = str(ASSETS / "demo.mp4")
INDICES = (0, 5, 9, 20)
SIZE = (128, 64)
CLIP_BYTES = len(INDICES) * SIZE[0] * SIZE[1] * 3


@dataclass(frozen=True)
class Named:
    path: str
    indices: tuple[int, ...] = INDICES


def foreseen(job: Named, info: VideoInfo) -> Sequence[int]:
    return job.indices


def reading(
    jobs: Iterator[Named], *, processes: int = 2, most_bytes: int = 2**24, most_ready: int = 4, deadline: float = 60.0
) -> Prefetcher[Named]:
    return Prefetcher(
        jobs, foreseen, processes=processes, most_bytes=most_bytes, most_ready=most_ready,
        how=Decoding(deadline_seconds=deadline),
    )  # fmt: skip


def numbers(ready: PrefetchedClip[Named], indices: Sequence[int] = INDICES) -> list[int]:
    """What the frames of a numbered clip say that they are."""
    assert ready.reader is not None, ready.error
    return [read_number(frame.rgb) for frame in ready.reader.frames(indices)]


def copies(folder: Path, count: int) -> list[Named]:
    first = write_clip(folder / "0.mp4", 25, size=SIZE)
    for number in range(1, count):
        shutil.copy(first, folder / f"{number}.mp4")
    return [Named(str(folder / f"{number}.mp4")) for number in range(count)]


def no_process_is_left() -> bool:
    return not psutil.Process().children(recursive=True)


def test_every_clip_comes_once_with_the_frames_of_its_file(tmp_path: Path) -> None:
    paths = [shutil.copy(DEMO, tmp_path / f"{number}.mp4") for number in range(12)]
    with open_video(DEMO) as reader:
        expected = [frame.rgb for frame in reader.frames(INDICES)]
    seen = []
    with reading(Named(str(path)) for path in paths) as ahead:
        for ready in ahead:
            assert ready.reader is not None
            for frame, rgb in zip(ready.reader.frames(INDICES), expected, strict=True):
                assert np.array_equal(frame.rgb, rgb)
            ready.reader.check_coverage(INDICES)
            seen.append(ready.job.path)
            ready.close()
    assert sorted(seen) == sorted(map(str, paths))
    assert no_process_is_left()


def spread(job: Named, info: VideoInfo) -> Sequence[int]:
    return sorted(set(np.linspace(0, info.frame_count - 1, 5).round().astype(int).tolist()))


def outcome(job: Named, open_reader: Callable[[], VideoReader]) -> tuple[object, ...]:
    """What reading a clip gives: its frames' hashes and its notes, or the error's kind and words."""
    try:
        with open_reader() as reader:
            indices = spread(job, reader.info)
            digests = [hashlib.sha256(frame.rgb.tobytes()).hexdigest() for frame in reader.frames(indices)]
            reader.check_coverage(indices)
            return digests, reader.notes
    except VidqaError as error:
        return type(error), str(error)


def prepared(ready: PrefetchedClip[Named]) -> VideoReader:
    if ready.error is not None:
        raise ready.error
    assert ready.reader is not None
    return ready.reader


def test_every_real_clip_gives_the_frames_or_the_error_that_opening_it_gives(real_clips: Path) -> None:
    jobs = [Named(str(path)) for path in sorted(real_clips.iterdir())]
    fates = {}
    with Prefetcher(iter(jobs), spread, processes=2, most_bytes=2**26, most_ready=4, how=Decoding()) as ahead:
        for ready in ahead:
            fates[ready.job] = outcome(ready.job, partial(prepared, ready))
            ready.close()
        assert 0 < ahead.most_held_bytes <= 2**26
    assert len(fates) == len(jobs) > 20
    for job in jobs:
        assert fates[job] == outcome(job, partial(open_video, job.path)), job.path


@pytest.mark.parametrize("most_bytes", [0, CLIP_BYTES - 1, CLIP_BYTES, 3 * CLIP_BYTES])
def test_a_group_is_read_in_any_order_and_its_frames_never_take_more_than_their_room(
    tmp_path: Path, most_bytes: int
) -> None:
    done = 0
    with reading(iter(copies(tmp_path, 15)), most_bytes=most_bytes) as ahead:
        while group := list(itertools.islice(ahead, 5)):  # more than find room at once
            for ready in reversed(group):
                assert numbers(ready) == list(INDICES)
                ready.close()
                done += 1
        assert ahead.most_held_bytes <= most_bytes
        assert (ahead.most_held_bytes > 0) == (most_bytes >= CLIP_BYTES)
    assert done == 15


def test_clips_that_are_never_read_do_not_hold_up_the_others(tmp_path: Path) -> None:
    with reading(iter(copies(tmp_path, 8)), most_bytes=CLIP_BYTES) as ahead:
        held = list(ahead)
        assert len(held) == 8
        assert numbers(held[5]) == list(INDICES)


def test_jobs_are_pulled_only_as_far_ahead_as_was_asked(tmp_path: Path) -> None:
    job = copies(tmp_path, 1)[0]
    pulled, taken, furthest = 0, 0, 0

    def endless() -> Iterator[Named]:
        nonlocal pulled, furthest
        while True:
            pulled += 1
            furthest = max(furthest, pulled - taken)
            yield job

    with reading(endless(), most_ready=4) as ahead:
        for ready in itertools.islice(ahead, 60):
            numbers(ready)
            ready.close()
            taken += 1
    assert 1 < furthest <= 4 + 1  # the one that was yielded, before it was counted


def test_other_frames_than_foreseen_and_a_second_reading_come_from_the_file(tmp_path: Path) -> None:
    with reading(iter(copies(tmp_path, 2))) as ahead:
        first, second = ahead
        assert numbers(first, (3, 4)) == [3, 4]
        assert numbers(first) == list(INDICES)
        assert numbers(second) == numbers(second) == list(INDICES)
        second.close()
        assert numbers(second) == list(INDICES)


def test_a_reader_that_is_closed_unread_keeps_its_frames_for_another_try(tmp_path: Path) -> None:
    with reading(iter(copies(tmp_path, 1)), processes=1) as ahead:
        ready = next(ahead)
        assert next(ahead, None) is None  # its frames are decoded, or being decoded
        assert ready.reader is not None
        ready.reader.close()
        os.remove(ready.job.path)
        assert numbers(ready) == list(INDICES)
        with pytest.raises(VideoNotFound):
            numbers(ready)


def test_two_ranges_of_one_file_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copies(tmp_path, 1)[0].path
    opened = scripted_decoder(tmp_path, monkeypatch)
    with reading(iter([Named(path, (0, 1)), Named(path, (7, 8, 9))]), processes=1) as ahead:
        assert [numbers(ready, ready.job.indices) for ready in ahead] == [[0, 1], [7, 8, 9]]
    assert [name for _, name in opened()] == ["0.mp4"]


def test_a_file_that_changes_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copies(tmp_path, 1)[0].path
    opened = scripted_decoder(tmp_path, monkeypatch)

    def jobs() -> Iterator[Named]:
        yield Named(path)
        write_clip(Path(path), 40, size=SIZE)
        yield Named(path, (39,))

    with reading(jobs(), processes=1) as ahead:
        assert [numbers(ready, ready.job.indices) for ready in ahead] == [list(INDICES), [39]]
    assert len(opened()) == 2


def test_what_prepare_raises_is_its_jobs_error(tmp_path: Path) -> None:
    def prepare(job: Named, info: VideoInfo) -> Sequence[int]:
        if job.path.endswith("1.mp4"):
            raise UsageError("It cannot be.", "Ask otherwise.")
        if job.path.endswith("2.mp4"):
            raise KeyError("surprise")
        return job.indices

    jobs = iter(copies(tmp_path, 4))
    with Prefetcher(jobs, prepare, processes=2, most_bytes=2**24, most_ready=4, how=Decoding()) as ahead:
        told = {Path(ready.job.path).stem: ready for ready in ahead}
    assert sorted(told) == ["0", "1", "2", "3"]
    assert isinstance(told["1"].error, UsageError) and told["1"].info is not None and told["1"].reader is None
    assert type(told["2"].error) is VidqaError and "KeyError" in told["2"].error.what
    assert told["0"].error is told["3"].error is None


def test_what_the_jobs_raise_is_raised_behind_the_last_one(tmp_path: Path) -> None:
    def jobs() -> Iterator[Named]:
        yield from copies(tmp_path, 2)
        raise OSError("the list broke off")

    with reading(jobs()) as ahead:
        assert numbers(next(ahead)) == numbers(next(ahead)) == list(INDICES)
        with pytest.raises(OSError, match="broke off"):
            next(ahead)


def test_a_file_that_vanished_and_one_that_is_no_video_are_their_jobs_errors(tmp_path: Path) -> None:
    jobs = copies(tmp_path, 3)
    (tmp_path / "1.mp4").write_bytes(b"no video at all" * 99)
    os.remove(jobs[2].path)
    with reading(iter(jobs), processes=1) as ahead:
        good, bad, gone = ahead
        assert numbers(good) == list(INDICES)
    assert isinstance(bad.error, VideoUnreadable) and isinstance(gone.error, VideoNotFound)
    assert bad.info is gone.info is None


def test_a_file_that_is_another_one_when_it_is_read_is_told(tmp_path: Path) -> None:
    with reading(iter(copies(tmp_path, 1)), most_bytes=0) as ahead:
        (ready,) = ahead
        write_clip(Path(ready.job.path), 40, size=SIZE)
        with pytest.raises(VideoUnreadable, match="changed"):
            numbers(ready)


def test_a_decoder_that_dies_or_hangs_takes_one_clip_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = copies(tmp_path, 8)
    for number, name in ((2, "die_open"), (4, "hang_open"), (5, "die_frames"), (6, "hang_frames")):
        os.rename(jobs[number].path, tmp_path / f"{name}.mp4")
        jobs[number] = Named(str(tmp_path / f"{name}.mp4"))
    scripted_decoder(tmp_path, monkeypatch)
    fates = {}
    with reading(iter(jobs), deadline=2.0) as ahead:
        for ready in ahead:
            try:
                if ready.error is not None:
                    raise ready.error
                fates[Path(ready.job.path).stem] = str(numbers(ready))
            except VideoUnreadable as error:
                fates[Path(ready.job.path).stem] = error.what
            ready.close()
    good = dict.fromkeys("0137", str(list(INDICES)))
    assert {name: fates[name] for name in good} == good
    assert "SIGKILL" in fates["die_open"] and "SIGKILL" in fates["die_frames"]
    assert "2 s" in fates["hang_open"] and "2 s" in fates["hang_frames"]
    assert len(fates) == 8 and no_process_is_left()


def test_a_process_that_other_files_spoiled_costs_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = scripted_decoder(tmp_path, monkeypatch, dies_at=3)
    with reading(iter(copies(tmp_path, 7)), processes=1) as ahead:
        assert [numbers(ready) for ready in ahead] == [list(INDICES)] * 7
    assert len({process for process, _ in opened()}) == 4


def test_closing_ends_who_waits_for_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    path = write_clip(tmp_path / "hang_open.mp4", 3)
    ahead = reading(iter([Named(str(path))] * 9))
    came: list[object] = []
    waiting = threading.Thread(target=lambda: came.append(next(ahead, "ended")))
    waiting.start()
    ahead.close()
    waiting.join(30)
    assert came == ["ended"]
    assert no_process_is_left()


def test_closing_ends_who_waits_for_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    path = write_clip(tmp_path / "hang_frames.mp4", 25, size=SIZE)
    with reading(iter([Named(str(path))])) as ahead:
        ready = next(ahead)
        threading.Timer(0.2, ahead.close).start()
        with pytest.raises(Interrupted):
            numbers(ready)
    assert no_process_is_left()


def test_abandoning_a_reader_ends_who_waits_for_its_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    path = write_clip(tmp_path / "hang_frames.mp4", 25, size=SIZE)
    for most_bytes in (2**20, 0):  # out of the buffer, and straight from the file
        with reading(iter([Named(str(path))]), most_bytes=most_bytes) as ahead:
            ready = next(ahead)
            assert ready.reader is not None
            threading.Timer(0.2, ready.reader.abandon).start()
            with pytest.raises((Interrupted, VideoUnreadable)):
                numbers(ready)
    assert no_process_is_left()


def test_closing_does_not_wait_for_a_list_of_files_that_does_not_come() -> None:
    come, asked = threading.Event(), threading.Event()

    def jobs() -> Iterator[Named]:
        asked.set()
        come.wait(60)
        yield Named(DEMO)

    ahead = reading(jobs())
    assert asked.wait(30)
    ahead.close()
    assert not come.is_set() and next(ahead, None) is None
    come.set()


def test_a_session_answers_by_a_prepared_reader_as_by_the_file() -> None:
    request = Request(DEMO, "What happens in this video?")
    config = EngineConfig(device="cpu", isolate_decoder=False, remember=False)
    with Session(config) as session:
        plain = list(session.ask(request))[-1]
        indices = session.plan(request).indices
    with reading(iter([Named(DEMO, indices)])) as ahead:
        ready = next(ahead)
        assert ready.reader is not None
        reader = ready.reader
        with Session(config, opener=lambda asked, stopped: reader) as session:
            prepared = list(session.ask(request))[-1]
        assert ahead.most_held_bytes > 0
    assert isinstance(plain, Answered) and isinstance(prepared, Answered)
    assert prepared.answer.text == plain.answer.text
