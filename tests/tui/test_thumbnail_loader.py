"""The thumbnail loader: newer requests replace older ones, and bad files end in a message."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.message import Message

from tests.tui.scripted import DEMO
from vidqa.errors import VideoTooDamaged
from vidqa.tui import thumbnail_loader
from vidqa.tui.thumbnail_loader import ThumbnailLoader
from vidqa.tui.worker_messages import FrameDecoded, FramesFailed, VideoFailed, VideoOpened
from vidqa.types import Frame
from vidqa.video.reader import VideoReader, open_video

_SECONDS = 30


@contextmanager
def running_loader(*, isolated: bool = False) -> Iterator[tuple[ThumbnailLoader, Callable[[], Message]]]:
    """A running loader, and a function that returns its next message."""
    posted: queue.Queue[Message] = queue.Queue()
    loader = ThumbnailLoader(posted.put, isolated=isolated)
    thread = threading.Thread(target=loader.run)
    thread.start()
    try:
        yield loader, lambda: posted.get(timeout=_SECONDS)
    finally:
        loader.close()
        thread.join(_SECONDS)
        assert not thread.is_alive()


def test_facts_then_the_wanted_frames_in_order() -> None:
    with running_loader() as (loader, receive):
        loader.open(DEMO)
        opened = receive()
        assert isinstance(opened, VideoOpened) and opened.video.width == 320
        loader.request(range(0, 40, 3))  # more than are decoded in one go
        shown = [receive() for _ in range(0, 40, 3)]
        assert [one.index for one in shown if isinstance(one, FrameDecoded)] == list(range(0, 40, 3))


def test_a_bad_file_is_an_error_and_the_next_one_opens(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with running_loader(isolated=True) as (loader, receive):
        loader.open(str(bad))
        failed = receive()
        assert isinstance(failed, VideoFailed) and failed.error.remedy
        loader.open(DEMO)
        assert isinstance(receive(), VideoOpened)


def test_frames_of_an_older_request_are_not_decoded() -> None:
    with running_loader() as (loader, receive):
        loader.open(DEMO)
        receive()
        loader.request(range(90))
        loader.request((5, 7))
        indices = []
        while 7 not in indices or 5 not in indices:
            message = receive()
            assert isinstance(message, FrameDecoded)
            indices.append(message.index)
        assert len(indices) <= 8 + 2, "at most the first batch of the older request"


def test_a_new_path_kills_the_decoder_that_another_one_keeps_busy(tmp_path: Path) -> None:
    with running_loader(isolated=True) as (loader, receive):
        loader.open(DEMO)
        opened = receive()
        assert isinstance(opened, VideoOpened)
        loader.request(tuple(range(90)) * 50)
        assert isinstance(receive(), FrameDecoded)
        copy = tmp_path / "copy.mp4"
        copy.write_bytes(Path(DEMO).read_bytes())
        loader.open(str(copy))
        while not isinstance(message := receive(), VideoOpened):
            assert isinstance(message, FrameDecoded), "abandoning is no failure"
        assert message.video.path == str(copy)


def test_a_video_is_not_shown_if_another_was_requested_while_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(DEMO).read_bytes())
    with running_loader() as (loader, receive):

        def open_slowly(path: str, **options: Any) -> VideoReader:
            if path == DEMO:
                loader.open(str(copy))
            return open_video(path, **options)

        monkeypatch.setattr(thumbnail_loader, "open_video", open_slowly)
        loader.open(DEMO)
        opened = receive()
        assert isinstance(opened, VideoOpened) and opened.video.path == str(copy)
        loader.request((3,))
        assert isinstance(receive(), FrameDecoded)


def test_frames_that_were_requested_come_also_if_other_subtitles_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.srt"
    bad.write_text("no subtitles")
    with running_loader() as (loader, receive):
        loader.open(DEMO)
        assert isinstance(receive(), VideoOpened)
        loader.request(range(0, 80, 2))
        loader.open(DEMO, subs=str(bad), reread=True)
        shown, failures = [], 0
        while len(shown) < 40:
            message = receive()
            if isinstance(message, VideoFailed):
                assert message.reread and "no subtitle" in message.error.what
                failures += 1
            else:
                assert isinstance(message, FrameDecoded)
                shown.append(message.index)
        assert shown == list(range(0, 80, 2)) and failures == 1


def test_after_a_failure_the_next_request_opens_the_video_again(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks = [7, 80]  # frames at which the first two readers fail

    class BreakingReader(VideoReader):
        def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
            for frame in super().frames(indices):
                if breaks and frame.index >= breaks[0]:
                    breaks.pop(0)
                    raise VideoTooDamaged("The file is damaged.")
                yield frame

    def open_breaking(path: str, **options: Any) -> VideoReader:
        reader = open_video(path, **options)
        return BreakingReader(reader.info, reader._source)

    monkeypatch.setattr(thumbnail_loader, "open_video", open_breaking)
    with running_loader() as (loader, receive):
        loader.open(DEMO)
        receive()
        loader.request(range(0, 40, 4))
        decoded = [receive(), receive()]
        assert [one.index for one in decoded if isinstance(one, FrameDecoded)] == [0, 4]
        failed = receive()
        assert isinstance(failed, FramesFailed) and failed.indices == {8, 12, 16, 20, 24, 28}
        later = [receive(), receive()]
        assert [one.index for one in later if isinstance(one, FrameDecoded)] == [32, 36], "of the next batch"
        for expected in (FramesFailed, FrameDecoded):
            loader.request_first(81)
            assert isinstance(receive(), expected)


def test_the_frame_of_the_viewer_comes_before_those_of_the_strip_which_come_too() -> None:
    with running_loader() as (loader, receive):
        loader.open(DEMO)
        receive()
        loader.request(range(40))
        loader.request_first(80)
        shown = [receive() for _ in range(41)]
        indices = [one.index for one in shown if isinstance(one, FrameDecoded)]
        assert sorted(indices) == [*range(40), 80] and indices.index(80) <= 8
