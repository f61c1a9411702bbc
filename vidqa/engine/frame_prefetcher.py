"""Frames decoded and resized ahead of the device, in a thread of their own.

The queue is bounded, an exception travels through it, and leaving the loop at any point
stops and joins the thread. Knows frames; knows no model.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vidqa.engine.no_grad import no_grad_scope
from vidqa.engine.vision import PreparedFrame
from vidqa.video.reader import VideoReader

Resize = Callable[[Any, int, int], Tensor]  # picture (h, w, 3) uint8, height, width -> (3, height, width) uint8
_LOOK_SECONDS = 0.05  # how often a waiting thread looks whether it should stop


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last item: why the thread ended."""

    error: BaseException | None


def _not_counted(pixels: Tensor) -> None:
    """Memory is not counted tensor by tensor."""


class FramePrefetcher:
    """The pictures of `indices` at `size` (height, width), at most `room` of them ready before they are taken.

    The thread starts at once. `check` is called while there is nothing to take; what it raises ends
    the reading. `made` is called in the thread with every picture's pixels. Iterate once, and close in any case.
    """

    def __init__(
        self,
        reader: VideoReader,
        indices: Sequence[int],
        size: tuple[int, int],
        room: int,
        resize: Resize,
        check: Callable[[], None],
        made: Callable[[Tensor], None] = _not_counted,
    ) -> None:
        self._reader, self._check = reader, check
        self._ready: queue.Queue[PreparedFrame | _Ended] = queue.Queue(room)
        self._stop = threading.Event()
        arguments = (reader, indices, size, resize, self._ready, self._stop, made)
        self._thread = threading.Thread(target=_work, args=arguments, name="vidqa-frames", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[PreparedFrame]:
        while not isinstance(item := _next(self._ready, self._check), _Ended):
            yield item
        if (error := item.error) is not None:
            try:
                raise error
            finally:
                del error, item  # they lead back to this frame, which would live on with them

    def close(self) -> None:
        """Stop the thread, if it has not ended, and wait for it."""
        if self._thread.is_alive():
            self._stop.set()
            self._reader.abandon()
        self._thread.join()


def _next(ready: "queue.Queue[PreparedFrame | _Ended]", check: Callable[[], None]) -> PreparedFrame | _Ended:
    while True:
        try:
            return ready.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            check()


def _work(
    reader: VideoReader,
    indices: Sequence[int],
    size: tuple[int, int],
    resize: Resize,
    ready: "queue.Queue[PreparedFrame | _Ended]",
    stop: threading.Event,
    made: Callable[[Tensor], None],
) -> None:
    try:
        with no_grad_scope():  # the mode belongs to a thread: this one sets its own
            for frame in reader.frames(indices):
                picture = PreparedFrame(resize(frame.rgb, *size), frame.timestamp_seconds)
                made(picture.pixels)
                if not _put(ready, picture, stop):
                    return
                del picture  # it would live on while the next one is decoded
    except BaseException as error:
        _put(ready, _Ended(error), stop)
    else:
        _put(ready, _Ended(None), stop)


def _put(ready: "queue.Queue[PreparedFrame | _Ended]", item: PreparedFrame | _Ended, stop: threading.Event) -> bool:
    """Wait for room; whether the item found it before the stop."""
    while not stop.is_set():
        with suppress(queue.Full):
            ready.put(item, timeout=_LOOK_SECONDS)
            return True
    return False
