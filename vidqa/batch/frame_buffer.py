"""Buffers for frames that are decoded before they are read, and the memory budget that all buffers share.

A clip is decoded ahead only if all its frames fit the budget, so no clip waits halfway for another one. Frames that
did not fit, or differ from those that were planned, are decoded when they are read, in a new process.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

from vidqa.errors import Interrupted, VideoUnreadable, VidqaError
from vidqa.types import Frame, VideoInfo
from vidqa.video.change_signal import Scan
from vidqa.video.open import Source
from vidqa.video.reader import Decoding, open_source


class MemoryBudget:
    """The bytes that buffered frames may take, with the condition on which all threads of a Prefetcher wait.

    `peak_bytes` is the most that frames took so far. Except for `close`, methods need `changed` to be held.
    """

    def __init__(self, max_bytes: int) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self.max_bytes = max_bytes
        self.peak_bytes = 0
        self._used_bytes = 0
        self._free_bytes = max_bytes

    def reserve(self, count: int) -> bool:
        """Reserve bytes for a clip; returns False if they are not free."""
        if self.closed or count > self._free_bytes:
            return False
        self._free_bytes -= count
        return True

    def release(self, count: int) -> None:
        """Return reserved bytes."""
        self._free_bytes += count
        self.changed.notify_all()

    def add_used(self, count: int) -> None:
        """Count the bytes of a frame that was buffered, or removed (negative)."""
        self._used_bytes += count
        self.peak_bytes = max(self.peak_bytes, self._used_bytes)
        self.changed.notify_all()

    def close(self) -> None:
        """Wake all waiting threads and refuse reservations."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class BufferedFrames:
    """The planned frames of one clip: a decoder puts them in, a reader takes each out once."""

    def __init__(self, budget: MemoryBudget, path: str, info: VideoInfo, indices: Sequence[int]) -> None:
        self.path, self.info, self.indices = path, info, tuple(indices)
        self._budget = budget
        self._frame_bytes = info.coded_width * info.coded_height * 3
        self._frames: deque[Frame] = deque()
        self._missing = 0  # frames with reserved bytes that are not decoded yet
        self._is_decoding = False  # a decoder has begun, so frames can be waited for
        self._is_read = False  # a reader has begun to take the frames
        self._end: str | VidqaError | None = None  # why no more frames come

    @property
    def total_bytes(self) -> int:
        """The bytes of all planned frames."""
        return self._frame_bytes * len(self.indices)

    @property
    def is_waiting(self) -> bool:
        """Whether neither a decoder nor a reader has begun. Needs the budget's condition."""
        return not (self._is_decoding or self._is_read)

    def reserve(self) -> bool:
        """Reserve bytes for all frames, which `put` then adds. Needs the budget's condition."""
        if not self.is_waiting or not self._budget.reserve(self.total_bytes):
            return False
        self._is_decoding, self._missing = True, len(self.indices)
        return True

    def put(self, frame: Frame) -> bool:
        """Add the next frame; returns False if no more are needed."""
        with self._budget.changed:
            if not self._missing or self._budget.closed:
                return False
            if frame.rgb.nbytes > self._frame_bytes:  # the video grows in mid-stream
                self._release_missing()
                return False
            self._missing -= 1
            self._frames.append(frame)
            self._budget.add_used(frame.rgb.nbytes)
            return True

    def end(self, reason: str | VidqaError) -> None:
        """Add no more frames: after an error, or with the decoder's reason for stopping, empty if all came."""
        with self._budget.changed:
            self._end = reason
            self._release_missing()

    def give_up(self) -> None:
        """Leave the missing frames to the reader, which decodes them itself."""
        with self._budget.changed:
            self._release_missing()

    def begin_reading(self, indices: Sequence[int]) -> bool:
        """Return whether these frames are buffered or being decoded; they belong to the caller from now on."""
        with self._budget.changed:
            if not self._is_read and tuple(indices) == self.indices:
                self._is_read = True
                return self._is_decoding
            self.drop(unread=True)  # other frames are read, so these will not be
            return False

    def take(self, reader: "BufferedSource") -> Frame | None:
        """Wait for the next frame; None after the last. Raises the decoder's error, and Interrupted."""
        with self._budget.changed:
            while not self._frames and self._missing:
                if reader.abandoned or self._budget.closed:
                    raise Interrupted("Stopped while waiting for frames.", "Nothing was answered yet.")
                self._budget.changed.wait()
            if self._frames:
                return self._pop()
            if isinstance(self._end, VidqaError):
                raise self._end
            return None

    @property
    def stop_reason(self) -> str | None:
        """Why decoding stopped, empty if all frames came; None if it was given up."""
        return self._end if isinstance(self._end, str) else None

    def drop(self, *, unread: bool) -> None:
        """Drop the frames if a reader has begun with them, or `unread` ones too."""
        with self._budget.changed:
            if unread or self._is_read:
                self._is_read = True
                self._release_missing()
                while self._frames:
                    self._pop()

    def wake(self) -> None:
        """Let `take` check whether its reader was abandoned."""
        with self._budget.changed:
            self._budget.changed.notify_all()

    def _pop(self) -> Frame:
        frame = self._frames.popleft()
        self._budget.add_used(-frame.rgb.nbytes)
        self._budget.release(self._frame_bytes)
        return frame

    def _release_missing(self) -> None:
        self._budget.release(self._missing * self._frame_bytes)
        self._missing = 0


class BufferedSource:
    """A video source that yields the planned frames from the buffer, once, and other frames from the file.

    Closing it drops frames that were begun to be read; unread ones stay for another attempt.
    """

    def __init__(self, buffered: BufferedFrames, decoding: Decoding) -> None:
        self.stopped = ""
        self.abandoned = False
        self._buffered, self._decoding = buffered, decoding
        self._file_source: Source | None = None

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield frames in order, up to the end or the damage."""
        count = 0
        if self._buffered.begin_reading(indices):
            while (frame := self._buffered.take(self)) is not None:
                count += 1
                yield frame
            if self._buffered.stop_reason is not None:
                self.stopped = self._buffered.stop_reason
                return
        if rest := indices[count:]:
            yield from self._read_file(rest)

    def scan(self, limit_seconds: float) -> Scan:
        """Scan the file, in a process that ends with it."""
        _, source = open_source(self._buffered.path, self._decoding, lambda: self.abandoned)
        with closing(source):
            return (yield from source.scan(limit_seconds))

    def abandon(self) -> None:
        """Make `frames` end soon, from another thread."""
        self.abandoned = True
        self._buffered.wake()
        if (source := self._file_source) is not None:
            source.abandon()

    def close(self) -> None:
        """End the current reading."""
        self._buffered.drop(unread=False)
        self.abandoned = False

    def _read_file(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Decode from the file, in a process that ends with this reading."""
        path = self._buffered.path
        info, source = open_source(path, self._decoding, lambda: self.abandoned)
        with closing(source):
            if info.pts_seconds != self._buffered.info.pts_seconds:
                raise VideoUnreadable(f"{path} changed after it was opened.", "Caption it again once it is complete.")
            self._file_source = source
            try:
                if not self.abandoned:
                    yield from source.frames(indices)
                self.stopped = source.stopped
            finally:
                self._file_source = None
