"""Prefetching: every clip once, in bounded memory, with files, decoders and readers that fail."""

import hashlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.clips import read_number, write_clip
from tests.conftest import ROOT
from tests.decoders import scripted_decoder
from vidqa.batch.prefetch import PrefetchedClip, Prefetcher
from vidqa.config import EngineConfig
from vidqa.engine.session import Session
from vidqa.errors import Interrupted, UsageError, VideoNotFound, VideoUnreadable, VidqaError
from vidqa.events import Answered
from vidqa.types import Request, VideoInfo
from vidqa.video.reader import Decoding, VideoReader, open_video

DEMO = str(ROOT / "assets" / "demo.mp4")
INDICES = (0, 5, 9, 20)
SIZE = (128, 64)
CLIP_BYTES = len(INDICES) * SIZE[0] * SIZE[1] * 3


@dataclass(frozen=True)
class Job:
    path: str
    indices: tuple[int, ...] = INDICES


def planned_indices(job: Job, info: VideoInfo) -> Sequence[int]:
    return job.indices


def prefetch(
    jobs: Iterable[Job], prepare: Callable[[Job, VideoInfo], Sequence[int]] = planned_indices, *,
    processes: int = 2, max_bytes: int = 2**24, max_ready: int = 4, deadline: float = 60.0,
) -> Prefetcher[Job]:  # fmt: skip
    decoding = Decoding(deadline_seconds=deadline)
    return Prefetcher(
        iter(jobs), prepare, processes=processes, max_bytes=max_bytes, max_ready=max_ready, decoding=decoding
    )


def numbers(ready: PrefetchedClip[Job], indices: Sequence[int] = INDICES) -> list[int]:
    """Return the numbers drawn in the frames."""
    assert ready.reader is not None, ready.error
    return [read_number(frame.rgb) for frame in ready.reader.frames(indices)]


def copies(folder: Path, count: int) -> list[Job]:
    first = write_clip(folder / "0.mp4", 25, size=SIZE)
    for number in range(1, count):
        shutil.copy(first, folder / f"{number}.mp4")
    return [Job(str(folder / f"{number}.mp4")) for number in range(count)]


def no_process_is_left() -> bool:
    return not psutil.Process().children(recursive=True)


def test_every_clip_comes_once_with_its_frames(tmp_path: Path) -> None:
    paths = [shutil.copy(DEMO, tmp_path / f"{number}.mp4") for number in range(12)]
    with open_video(DEMO) as reader:
        expected = [frame.rgb for frame in reader.frames(INDICES)]
    seen = []
    with prefetch(Job(str(path)) for path in paths) as prefetcher:
        for ready in prefetcher:
            assert ready.reader is not None
            for frame, rgb in zip(ready.reader.frames(INDICES), expected, strict=True):
                assert np.array_equal(frame.rgb, rgb)
            ready.reader.check_coverage(INDICES)
            seen.append(ready.job.path)
            ready.close()
    assert sorted(seen) == sorted(map(str, paths))
    assert no_process_is_left()


def spread(job: Job, info: VideoInfo) -> Sequence[int]:
    return sorted(set(np.linspace(0, info.frame_count - 1, 5).round().astype(int).tolist()))


def result_of(job: Job, open_reader: Callable[[], VideoReader]) -> tuple[object, ...]:
    """Return the hashes of a clip's frames and its notes, or the error."""
    try:
        with open_reader() as reader:
            indices = spread(job, reader.info)
            digests = [hashlib.sha256(frame.rgb.tobytes()).hexdigest() for frame in reader.frames(indices)]
            reader.check_coverage(indices)
            return digests, reader.notes
    except VidqaError as error:
        return type(error), str(error)


def prepared(ready: PrefetchedClip[Job]) -> VideoReader:
    if ready.error is not None:
        raise ready.error
    assert ready.reader is not None
    return ready.reader


def test_real_clips_give_the_same_frames_or_error_as_without_prefetching(real_clips: Path) -> None:
    jobs = [Job(str(path)) for path in sorted(real_clips.iterdir())]
    outcomes = {}
    with prefetch(jobs, spread, max_bytes=2**26) as prefetcher:
        for ready in prefetcher:
            outcomes[ready.job] = result_of(ready.job, partial(prepared, ready))
            ready.close()
        assert 0 < prefetcher.peak_bytes <= 2**26
    assert len(outcomes) == len(jobs) > 20
    for job in jobs:
        assert outcomes[job] == result_of(job, partial(open_video, job.path)), job.path


@pytest.mark.parametrize("max_bytes", [0, CLIP_BYTES - 1, CLIP_BYTES, 3 * CLIP_BYTES])
def test_a_group_is_read_in_any_order_within_the_budget(tmp_path: Path, max_bytes: int) -> None:
    done = 0
    with prefetch(copies(tmp_path, 15), max_bytes=max_bytes) as prefetcher:
        while group := list(itertools.islice(prefetcher, 5)):  # more than find room at once
            for ready in reversed(group):
                assert numbers(ready) == list(INDICES)
                ready.close()
                done += 1
        assert prefetcher.peak_bytes <= max_bytes
        assert (prefetcher.peak_bytes > 0) == (max_bytes >= CLIP_BYTES)
    assert done == 15


def test_unread_clips_do_not_block_others(tmp_path: Path) -> None:
    with prefetch(copies(tmp_path, 8), max_bytes=CLIP_BYTES) as prefetcher:
        held = list(prefetcher)
        assert len(held) == 8
        assert numbers(held[5]) == list(INDICES)


def test_jobs_are_pulled_at_most_max_ready_early(tmp_path: Path) -> None:
    job = copies(tmp_path, 1)[0]
    pulled, taken, furthest = 0, 0, 0

    def endless() -> Iterator[Job]:
        nonlocal pulled, furthest
        while True:
            pulled += 1
            furthest = max(furthest, pulled - taken)
            yield job

    with prefetch(endless(), max_ready=4) as prefetcher:
        for ready in itertools.islice(prefetcher, 60):
            numbers(ready)
            ready.close()
            taken += 1
    assert 1 < furthest <= 4 + 1  # the one that was yielded, before it was counted


def test_unplanned_frames_and_a_second_reading_come_from_the_file(tmp_path: Path) -> None:
    with prefetch(copies(tmp_path, 2)) as prefetcher:
        first, second = prefetcher
        assert numbers(first, (3, 4)) == [3, 4]
        assert numbers(first) == list(INDICES)
        assert numbers(second) == numbers(second) == list(INDICES)
        second.close()
        assert numbers(second) == list(INDICES)


def test_closing_an_unread_reader_keeps_its_frames(tmp_path: Path) -> None:
    with prefetch(copies(tmp_path, 1), processes=1) as prefetcher:
        ready = next(prefetcher)
        assert next(prefetcher, None) is None  # its frames are decoded, or being decoded
        assert ready.reader is not None
        ready.reader.close()
        os.remove(ready.job.path)
        assert numbers(ready) == list(INDICES)
        with pytest.raises(VideoNotFound):
            numbers(ready)


@pytest.mark.parametrize("changes", [False, True])
def test_a_file_is_opened_once_unless_it_changes(
    changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, indices = copies(tmp_path, 1)[0].path, (39,) if changes else (7, 8, 9)
    opened = scripted_decoder(tmp_path, monkeypatch)

    def jobs() -> Iterator[Job]:
        yield Job(path)
        if changes:
            write_clip(Path(path), 40, size=SIZE)
        yield Job(path, indices)

    with prefetch(jobs(), processes=1) as prefetcher:
        assert [numbers(ready, ready.job.indices) for ready in prefetcher] == [list(INDICES), list(indices)]
    assert [name for _, name in opened()] == ["0.mp4"] * (1 + changes)


def test_errors_of_opening_and_of_prepare_are_their_jobs_errors(tmp_path: Path) -> None:
    def prepare(job: Job, info: VideoInfo) -> Sequence[int]:
        if job.path.endswith("1.mp4"):
            raise UsageError("It cannot be.", "Ask otherwise.")
        if job.path.endswith("2.mp4"):
            raise KeyError("surprise")
        return job.indices

    jobs = copies(tmp_path, 5)
    (tmp_path / "3.mp4").write_bytes(b"no video at all" * 99)
    os.remove(jobs[4].path)
    with prefetch(jobs, prepare) as prefetcher:
        results = sorted(prefetcher, key=lambda ready: ready.job.path)
    kinds = [type(None), UsageError, VidqaError, VideoUnreadable, VideoNotFound]
    assert [type(ready.error) for ready in results] == kinds
    assert [ready.info is None for ready in results] == [False, False, False, True, True]
    assert [ready.reader is None for ready in results] == [False, True, True, True, True]
    assert "KeyError" in str(results[2].error)


def test_an_exception_of_the_jobs_is_raised_after_the_last_one(tmp_path: Path) -> None:
    def jobs() -> Iterator[Job]:
        yield from copies(tmp_path, 2)
        raise OSError("the list broke off")

    with prefetch(jobs()) as prefetcher:
        assert numbers(next(prefetcher)) == numbers(next(prefetcher)) == list(INDICES)
        with pytest.raises(OSError, match="broke off"):
            next(prefetcher)


def test_a_file_that_changed_before_it_is_read_is_an_error(tmp_path: Path) -> None:
    with prefetch(copies(tmp_path, 1), max_bytes=0) as prefetcher:
        (ready,) = prefetcher
        write_clip(Path(ready.job.path), 40, size=SIZE)
        with pytest.raises(VideoUnreadable, match="changed"):
            numbers(ready)


def test_a_decoder_that_dies_or_hangs_fails_one_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = copies(tmp_path, 8)
    for number, name in ((2, "die_open"), (4, "hang_open"), (5, "die_frames"), (6, "hang_frames")):
        os.rename(jobs[number].path, tmp_path / f"{name}.mp4")
        jobs[number] = Job(str(tmp_path / f"{name}.mp4"))
    scripted_decoder(tmp_path, monkeypatch)
    outcomes = {}
    with prefetch(jobs, deadline=2.0) as prefetcher:
        for ready in prefetcher:
            try:
                if ready.error is not None:
                    raise ready.error
                outcomes[Path(ready.job.path).stem] = str(numbers(ready))
            except VideoUnreadable as error:
                outcomes[Path(ready.job.path).stem] = error.what
            ready.close()
    good = dict.fromkeys("0137", str(list(INDICES)))
    assert {name: outcomes[name] for name in good} == good
    assert "SIGKILL" in outcomes["die_open"] and "SIGKILL" in outcomes["die_frames"]
    assert "2 s" in outcomes["hang_open"] and "2 s" in outcomes["hang_frames"]
    assert len(outcomes) == 8 and no_process_is_left()


def test_a_decoder_that_dies_of_earlier_files_fails_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = scripted_decoder(tmp_path, monkeypatch, dies_at=3)
    with prefetch(copies(tmp_path, 7), processes=1) as prefetcher:
        assert [numbers(ready) for ready in prefetcher] == [list(INDICES)] * 7
    assert len({process for process, _ in opened()}) == 4


def test_closing_ends_the_wait_for_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    path = write_clip(tmp_path / "hang_open.mp4", 3)
    prefetcher = prefetch(iter([Job(str(path))] * 9))
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(next(prefetcher, "ended")))
    waiting.start()
    prefetcher.close()
    waiting.join(30)
    assert found == ["ended"]
    assert no_process_is_left()


@pytest.mark.parametrize(
    ("ending", "max_bytes"),
    [("close", 2**20), ("abandon", 2**20), ("abandon", 0)],  # out of the buffer, and from the file
)
def test_closing_or_abandoning_ends_the_wait_for_a_frame(
    ending: str, max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    path = write_clip(tmp_path / "hang_frames.mp4", 25, size=SIZE)
    with prefetch([Job(str(path))], max_bytes=max_bytes) as prefetcher:
        ready = next(prefetcher)
        assert ready.reader is not None
        threading.Timer(0.2, prefetcher.close if ending == "close" else ready.reader.abandon).start()
        with pytest.raises((Interrupted, VideoUnreadable)):
            numbers(ready)
    assert no_process_is_left()


def test_closing_does_not_wait_for_blocked_jobs() -> None:
    unblock, is_waiting = threading.Event(), threading.Event()

    def jobs() -> Iterator[Job]:
        is_waiting.set()
        unblock.wait(60)
        yield Job(DEMO)

    prefetcher = prefetch(jobs())
    assert is_waiting.wait(30)
    prefetcher.close()
    assert not unblock.is_set() and next(prefetcher, None) is None
    unblock.set()


def test_a_session_gives_the_same_answer_with_a_prefetched_reader() -> None:
    request = Request(DEMO, "What happens in this video?")
    config = EngineConfig(device="cpu", isolate_decoder=False, remember=False)
    with Session(config) as session:
        plain = list(session.ask(request))[-1]
        indices = session.plan(request).indices
    with prefetch([Job(DEMO, indices)]) as prefetcher:
        ready = next(prefetcher)
        assert ready.reader is not None
        reader = ready.reader
        with Session(config, opener=lambda request, is_cancelled: reader) as session:
            prepared = list(session.ask(request))[-1]
        assert prefetcher.peak_bytes > 0
    assert isinstance(plain, Answered) and isinstance(prepared, Answered)
    assert prepared.answer.text == plain.answer.text
