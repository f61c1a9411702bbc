"""The thread that reads videos for the screen: newer wishes replace older ones, and bad files end in a message."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from textual.message import Message

from tests.tui.scripted import DEMO
from vidqa.tui.thumbnail_loader import ThumbnailLoader
from vidqa.tui.worker_messages import FrameShown, VideoFailed, VideoOpened

_SECONDS = 30


@contextmanager
def projecting(*, isolated: bool = False) -> Iterator[tuple[ThumbnailLoader, Callable[[], Message]]]:
    """A running projector, and what it says next."""
    said: queue.Queue[Message] = queue.Queue()
    projector = ThumbnailLoader(said.put, isolated=isolated)
    thread = threading.Thread(target=projector.run)
    thread.start()
    try:
        yield projector, lambda: said.get(timeout=_SECONDS)
    finally:
        projector.leave()
        thread.join(_SECONDS)
        assert not thread.is_alive()


def test_facts_then_the_wanted_frames_in_order() -> None:
    with projecting() as (projector, hear):
        projector.open(DEMO)
        opened = hear()
        assert isinstance(opened, VideoOpened) and opened.video.width == 320
        projector.want(range(0, 40, 3))  # more than are decoded in one go
        shown = [hear() for _ in range(0, 40, 3)]
        assert [one.index for one in shown if isinstance(one, FrameShown)] == list(range(0, 40, 3))


def test_a_bad_file_is_told_and_the_next_one_opens(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with projecting(isolated=True) as (projector, hear):
        projector.open(str(bad))
        failed = hear()
        assert isinstance(failed, VideoFailed) and failed.path == str(bad) and failed.error.remedy
        projector.open(DEMO)
        assert isinstance(hear(), VideoOpened)


def test_frames_that_nobody_wants_any_more_are_not_decoded() -> None:
    with projecting() as (projector, hear):
        projector.open(DEMO)
        hear()
        projector.want(range(90))
        projector.want((5, 7))
        indices = []
        while 7 not in indices or 5 not in indices:
            message = hear()
            assert isinstance(message, FrameShown)
            indices.append(message.index)
        assert len(indices) <= 8 + 2, "at most the first few of the old wish"


def test_a_new_path_kills_the_decoder_that_another_one_keeps_busy(tmp_path: Path) -> None:
    with projecting(isolated=True) as (projector, hear):
        projector.open(DEMO)
        opened = hear()
        assert isinstance(opened, VideoOpened)
        projector.want(tuple(range(90)) * 50)
        assert isinstance(hear(), FrameShown)
        copy = tmp_path / "copy.mp4"
        copy.write_bytes(Path(DEMO).read_bytes())
        projector.open(str(copy))
        while not isinstance(message := hear(), VideoOpened):
            assert isinstance(message, FrameShown), "giving up is no failure"
        assert message.path == str(copy)
