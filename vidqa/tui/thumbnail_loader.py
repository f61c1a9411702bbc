"""The thread that opens videos for the screen and decodes small pictures of their frames.

A newer request replaces older ones, and decoding for an older one is abandoned. After a failure the next request opens
the video again.
"""

import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from textual.message import Message

from vidqa.errors import VideoError, VidqaError
from vidqa.tui.half_blocks import shrink
from vidqa.tui.worker_messages import FrameDecoded, FramesFailed, VideoFailed, VideoOpened
from vidqa.types import NO_TIMES, PictureTimes
from vidqa.video.reader import VideoReader, open_video
from vidqa.video.subtitle_files import OFF

_MAX_PIXELS = (480, 320)  # width and height of a picture, enough for the frame viewer
_BATCH = 8  # frames decoded before checking for a newer request


class ThumbnailLoader:
    """`run` is the thread's body; all other methods may be called from any thread."""

    def __init__(self, post: Callable[[Message], object], *, isolated: bool = True) -> None:
        self._post, self._isolated = post, isolated
        self._changed = threading.Condition()
        self._path: str | None = None
        self._pictures, self._subs, self._reread = NO_TIMES, OFF, False
        self._requested: Sequence[int] = ()
        self._first: int | None = None  # requested by the frame viewer
        self._closed = False
        self._reader: VideoReader | None = None
        self._reopen: Callable[[], VideoReader] | None = None  # opens the video that was opened last

    def open(self, path: str, pictures: PictureTimes = NO_TIMES, subs: str = OFF, *, reread: bool = False) -> None:
        """Open this video, instead of the previous one, even if the path is the same.

        `pictures` are the times of its pictures, where it is a folder; `subs` chooses its subtitles. `reread` says that
        the screen has this video and needs its subtitles only: the frames that are requested stay so.
        """
        with self._changed:
            self._path, self._pictures, self._subs, self._reread = path, pictures, subs, reread
            self._changed.notify()
            if not reread:
                self._requested, self._first = (), None
                if self._reader is not None:
                    self._reader.abandon()

    def request(self, indices: Sequence[int]) -> None:
        """Decode these frames, instead of those that were requested so before."""
        with self._changed:
            self._requested = indices
            self._changed.notify()

    def request_first(self, index: int) -> None:
        """Decode this frame before those of `request`, instead of another one that was requested so."""
        with self._changed:
            self._first = index
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            if self._reader is not None:
                self._reader.abandon()

    def run(self) -> None:
        """Serve requests until `close`."""
        try:
            while True:
                with self._changed:
                    while not (self._closed or self._path or (self._reopen and self._has_requests())):
                        self._changed.wait()
                    path, pictures, subs, self._path = self._path, self._pictures, self._subs, None
                    reread = self._reread
                if self._closed:
                    return
                if path is not None:
                    self._open(path, pictures, subs, reread)
                else:
                    self._decode()
        finally:
            self._close_reader()

    def _open(self, path: str, pictures: PictureTimes, subs: str, reread: bool) -> None:
        if not reread:  # else it stays in use if the subtitles cannot be read
            self._close_reader()
            with self._changed:
                self._requested, self._first, self._reopen = (), None, None
        reopen = partial(open_video, path, isolated=self._isolated, pictures=pictures, subs=subs)
        try:
            reader = reopen()
        except VidqaError as error:
            self._fail(error, reread)
            return
        except Exception as error:
            traceback.print_exc()
            self._fail(VideoError(f"The video cannot be opened: {type(error).__name__}: {error}."), reread)
            return
        with self._changed:
            stale = self._path is not None and not self._reread  # another video was requested meanwhile
            unused = reader if stale else self._reader
            if not stale:
                self._reader, self._reopen = reader, reopen
        if unused is not None:
            unused.close()
        if not stale:
            self._post(VideoOpened(reader.info, reread))

    def _fail(self, error: VidqaError, reread: bool) -> None:
        """Post the error, unless another video was requested meanwhile."""
        with self._changed:
            stale = self._closed or self._path is not None
        if not stale:
            self._post(VideoFailed(error, reread))

    def _has_requests(self) -> bool:
        return bool(self._requested) or self._first is not None

    def _next_batch(self) -> Sequence[int]:
        """Take the frame that comes first, else some of the others."""
        with self._changed:
            if (first := self._first) is not None:
                self._first = None
                return (first,)
            batch, self._requested = self._requested[:_BATCH], self._requested[_BATCH:]
            return batch

    def _decode(self) -> None:
        """Decode the next batch of requested frames, and post which of them cannot be decoded."""
        batch = self._next_batch()
        left = set(batch)
        try:
            for frame in self._open_reader().frames(batch):
                self._post(FrameDecoded(frame.index, shrink(frame.rgb, *_MAX_PIXELS)))
                left.discard(frame.index)
        except Exception as error:  # damaged or abandoned; asking the question reports it
            if not isinstance(error, VideoError):
                traceback.print_exc()
            self._close_reader()
        with self._changed:
            stale = self._closed or (self._path is not None and not self._reread)
        if left and not stale:
            self._post(FramesFailed(frozenset(left)))

    def _open_reader(self) -> VideoReader:
        """Return the open video, opened again after a failure."""
        if self._reader is None:
            assert self._reopen is not None
            reader = self._reopen()
            with self._changed:
                self._reader = reader
        return self._reader

    def _close_reader(self) -> None:
        with self._changed:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
