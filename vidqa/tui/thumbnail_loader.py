"""The thread that reads videos for the screen: the newest path, then small pictures of the wanted frames.

Newer wishes replace older ones; what is read for nobody is given up. Knows readers and pictures,
no widget and no model.
"""

import threading
import traceback
from collections.abc import Callable, Sequence

from textual.message import Message

from vidqa.errors import VideoError, VidqaError
from vidqa.tui.half_blocks import shrink
from vidqa.tui.worker_messages import FrameShown, VideoFailed, VideoOpened
from vidqa.video.reader import VideoReader, open_video

_PIXELS = (480, 320)  # the most that is kept of a frame: enough for a large view
_TOGETHER = 8  # frames decoded in one go, between looks for newer wishes


class ThumbnailLoader:
    """`run` is the thread's body; all other methods may be called from any thread."""

    def __init__(self, post: Callable[[Message], object], *, isolated: bool = True) -> None:
        self._post, self._isolated = post, isolated
        self._changed = threading.Condition()
        self._path: str | None = None
        self._wanted: Sequence[int] = ()
        self._left = False
        self._reader: VideoReader | None = None

    def open(self, path: str) -> None:
        """Look at this video from now on, also where it is the same path again."""
        with self._changed:
            self._path, self._wanted = path, ()
            self._changed.notify()
            if self._reader is not None:
                self._reader.abandon()

    def want(self, indices: Sequence[int]) -> None:
        """Show these frames, instead of those that were wanted before."""
        with self._changed:
            self._wanted = indices
            self._changed.notify()

    def leave(self) -> None:
        """End the thread."""
        with self._changed:
            self._left = True
            self._changed.notify()
            if self._reader is not None:
                self._reader.abandon()

    def run(self) -> None:
        """Serve wishes until `leave`."""
        shown: str | None = None
        try:
            while True:
                with self._changed:
                    while not (self._left or self._path or (self._wanted and self._reader)):
                        self._changed.wait()
                    path, self._path = self._path, None
                if self._left:
                    return
                if path is not None:
                    shown = path
                    self._open(path)
                elif shown is not None:
                    self._show(shown)
        finally:
            self._close()

    def _open(self, path: str) -> None:
        self._close()
        try:
            reader = open_video(path, isolated=self._isolated)
        except VidqaError as error:
            self._fail(path, error)
            return
        except Exception as error:
            traceback.print_exc()
            self._fail(path, VideoError(f"The video cannot be opened: {type(error).__name__}: {error}."))
            return
        with self._changed:
            self._reader = reader
        self._post(VideoOpened(path, reader.info))

    def _fail(self, path: str, error: VidqaError) -> None:
        """Tell it, unless another video was wanted meanwhile."""
        with self._changed:
            stale = self._left or self._path is not None
        if not stale:
            self._post(VideoFailed(path, error))

    def _show(self, path: str) -> None:
        """Decode the next few frames that are wanted."""
        with self._changed:
            now, self._wanted = self._wanted[:_TOGETHER], self._wanted[_TOGETHER:]
            reader = self._reader
        if reader is None:
            return
        try:
            for frame in reader.frames(now):
                self._post(FrameShown(path, frame.index, shrink(frame.rgb, *_PIXELS)))
        except Exception as error:  # damaged, or given up: the question itself will tell
            if not isinstance(error, VideoError):
                traceback.print_exc()
            self._close()

    def _close(self) -> None:
        with self._changed:
            reader, self._reader, self._wanted = self._reader, None, ()
        if reader is not None:
            reader.close()
