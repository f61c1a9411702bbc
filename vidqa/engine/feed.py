"""Frames decoded and resized ahead of the device, in a thread of their own.

The queue is bounded, an exception travels through it, and leaving the loop at any point
stops and joins the thread. Knows frames; knows no model.
"""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vidqa.engine.scope import unrecorded
from vidqa.engine.vision import Picture
from vidqa.video.decode import VideoReader
from vidqa.video.patches import resize_frame

_LOOK_SECONDS = 0.05  # how often a waiting thread looks whether it should stop


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last item: why the thread ended."""

    error: BaseException | None


def pictures_ahead(
    reader: VideoReader, indices: Sequence[int], size: tuple[int, int], room: int, check: Callable[[], None]
) -> Generator[Picture, None, None]:
    """Yield the pictures of `indices` at `size` (height, width), at most `room` of them ready before they are taken.

    `check` is called while there is nothing to take; what it raises ends the reading.
    """
    ready: queue.Queue[Picture | _Ended] = queue.Queue(room)
    stop = threading.Event()
    thread = threading.Thread(target=_work, args=(reader, indices, size, ready, stop), name="vidqa-frames", daemon=True)
    thread.start()
    try:
        while not isinstance(item := _next(ready, check), _Ended):
            yield item
        if (error := item.error) is not None:
            try:
                raise error
            finally:
                del error, item  # they lead back to this frame, which would live on with them
    finally:
        if thread.is_alive():
            stop.set()
            reader.abandon()
        thread.join()


def _next(ready: "queue.Queue[Picture | _Ended]", check: Callable[[], None]) -> Picture | _Ended:
    while True:
        try:
            return ready.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            check()


def _work(
    reader: VideoReader,
    indices: Sequence[int],
    size: tuple[int, int],
    ready: "queue.Queue[Picture | _Ended]",
    stop: threading.Event,
) -> None:
    try:
        with unrecorded():  # the mode belongs to a thread: this one sets its own
            for frame in reader.frames(indices):
                if not _put(ready, Picture(resize_frame(frame.rgb, *size), frame.timestamp_seconds), stop):
                    return
    except BaseException as error:
        _put(ready, _Ended(error), stop)
    else:
        _put(ready, _Ended(None), stop)


def _put(ready: "queue.Queue[Picture | _Ended]", item: Picture | _Ended, stop: threading.Event) -> bool:
    """Wait for room; whether the item found it before the stop."""
    while not stop.is_set():
        with suppress(queue.Full):
            ready.put(item, timeout=_LOOK_SECONDS)
            return True
    return False
