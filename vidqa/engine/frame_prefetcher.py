"""Decodes and resizes frames in a thread, ahead of the device."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vidqa.engine.no_grad import no_grad_scope
from vidqa.engine.vision import PreparedFrame
from vidqa.models.vlm import VisionLanguageModel
from vidqa.planner.memory_model import GROUPS_AHEAD
from vidqa.types import Plan
from vidqa.video.reader import VideoReader

Resize = Callable[[Any, int, int], Tensor]  # frame (h, w, 3) uint8, height, width -> (3, height, width) uint8
_POLL_SECONDS = 0.05  # how often a waiting thread checks whether it should stop


@dataclass(frozen=True, slots=True)
class _End:
    """The last item of the queue: the error that ended the thread, if any."""

    error: BaseException | None


class FramePrefetcher:
    """A plan's frames at their final size; a few groups of them are ready before they are taken.

    The thread starts at once; its error is raised to the consumer. `check` is called while the queue is empty and may
    raise; `on_frame` is called in the thread with every frame's pixels. Iterate once, and close in any case.
    """

    def __init__(
        self,
        reader: VideoReader,
        plan: Plan,
        model: VisionLanguageModel,
        check: Callable[[], None],
        on_frame: Callable[[Tensor], None],
    ) -> None:
        self._reader, self._check = reader, check
        capacity = GROUPS_AHEAD * plan.run_config.vision_chunk * model.spec.vision.temporal_patch
        self._queue: queue.Queue[PreparedFrame | _End] = queue.Queue(min(capacity, len(plan.indices)))
        self._stop = threading.Event()
        arguments = (reader, plan, model.family.resize_frame, self._queue, self._stop, on_frame)
        self._thread = threading.Thread(target=_work, args=arguments, name="vidqa-frames", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[PreparedFrame]:
        while not isinstance(item := self._get(), _End):
            yield item
        if (error := item.error) is not None:
            try:
                raise error
            finally:
                del error, item  # they refer back to this frame, which would stay alive with them

    def _get(self) -> PreparedFrame | _End:
        while True:
            try:
                return self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._check()

    def close(self) -> None:
        """Stop the thread, if it has not ended, and wait for it."""
        if self._thread.is_alive():
            self._stop.set()
            self._reader.abandon()
        self._thread.join()


def _work(
    reader: VideoReader,
    plan: Plan,
    resize: Resize,
    ready: "queue.Queue[PreparedFrame | _End]",
    stop: threading.Event,
    on_frame: Callable[[Tensor], None],
) -> None:
    try:
        with no_grad_scope():  # grad mode belongs to a thread
            for frame in reader.frames(plan.indices):
                pixels = resize(frame.rgb, plan.run_config.height, plan.run_config.width)
                prepared = PreparedFrame(pixels, frame.timestamp_seconds)
                del pixels
                on_frame(prepared.pixels)
                if not _put(ready, prepared, stop):
                    return
                del prepared  # it would stay alive while the next one is decoded
    except BaseException as error:
        _put(ready, _End(error), stop)
    else:
        _put(ready, _End(None), stop)


def _put(ready: "queue.Queue[PreparedFrame | _End]", item: PreparedFrame | _End, stop: threading.Event) -> bool:
    """Wait for room; return whether the item was put before the stop."""
    while not stop.is_set():
        with suppress(queue.Full):
            ready.put(item, timeout=_POLL_SECONDS)
            return True
    return False
