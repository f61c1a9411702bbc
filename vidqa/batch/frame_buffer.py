"""Frames of clips that are decoded before anybody asks for them, and the room that all of them share.

A clip is decoded ahead only where all its frames find room, so that no clip waits in its middle for
another one. What found no room, or is asked for in another way than was foreseen, is decoded when it is
read, by a process of its own. Knows frames and bytes; knows no model and no jobs.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

from vidqa.errors import Interrupted, VideoUnreadable, VidqaError
from vidqa.types import Frame, VideoInfo
from vidqa.video.open import Source
from vidqa.video.reader import Decoding, open_source


class MemoryBudget:
    """The bytes that buffered frames may take, and the one condition that all who wait here wait on.

    `most_held_bytes` is the most that frames took so far.
    """

    def __init__(self, most_bytes: int) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self.most_held_bytes = 0
        self._held_bytes = 0
        self._free_bytes = most_bytes
        self._most_bytes = most_bytes

    def could_take(self, count: int) -> bool:
        """Whether so many bytes fit into the empty room."""
        return count <= self._most_bytes

    def take(self, count: int) -> bool:
        """Keep bytes free for a clip; whether there were as many. The condition is held."""
        if self.closed or count > self._free_bytes:
            return False
        self._free_bytes -= count
        return True

    def give_back(self, count: int) -> None:
        """Bytes that a clip needs no more. The condition is held."""
        self._free_bytes += count
        self.changed.notify_all()

    def hold(self, count: int) -> None:
        """Frames came (or went, below 0). The condition is held."""
        self._held_bytes += count
        self.most_held_bytes = max(self.most_held_bytes, self._held_bytes)
        self.changed.notify_all()

    def close(self) -> None:
        """Whoever waits here wakes up."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class BufferedFrames:
    """The foreseen frames of one clip: a decoder puts them in, a reader takes them out, each once.

    Neither waits for the other but for the reader's next frame.
    """

    def __init__(self, room: MemoryBudget, path: str, info: VideoInfo, indices: Sequence[int]) -> None:
        self.path, self.info, self.indices = path, info, tuple(indices)
        self._room = room
        self._frame_bytes = info.coded_width * info.coded_height * 3
        self._frames: deque[Frame] = deque()
        self._missing = 0  # frames that room is kept for and that did not come yet
        self._filling = False  # a decoder is at it, or was: frames can be waited for
        self._begun = False  # a reader has taken what there is: nobody else can
        self._ended: str | VidqaError | None = None  # why no more frames come

    @property
    def total_bytes(self) -> int:
        """What all foreseen frames take."""
        return self._frame_bytes * len(self.indices)

    def reserve(self) -> bool:
        """Take room for all frames: they are put in from now on. The room's condition is held."""
        if self._filling or self._begun or not self._room.take(self.total_bytes):
            return False
        self._filling, self._missing = True, len(self.indices)
        return True

    @property
    def wanted(self) -> bool:
        """Whether decoding it ahead, which was not begun, would still serve anybody. The room's condition is held."""
        return not (self._filling or self._begun)

    def put(self, frame: Frame) -> bool:
        """Add the next frame; false if no more are wanted."""
        with self._room.changed:
            if not self._missing or self._room.closed:
                return False
            if frame.rgb.nbytes > self._frame_bytes:  # larger in its middle than at its start
                self._give_up()
                return False
            self._missing -= 1
            self._frames.append(frame)
            self._room.hold(frame.rgb.nbytes)
            return True

    def end(self, why: str | VidqaError) -> None:
        """No more frames come: an error, or the decoder's word for why it stopped, empty where all came."""
        with self._room.changed:
            self._ended = why
            self._room.give_back(self._missing * self._frame_bytes)
            self._missing = 0

    def give_up(self) -> None:
        """Leave the frames that did not come yet to whoever reads the clip."""
        with self._room.changed:
            self._give_up()

    def begin(self, indices: Sequence[int]) -> bool:
        """Whether these frames are here or on their way; they are the caller's from now on."""
        with self._room.changed:
            if not self._begun and tuple(indices) == self.indices:
                self._begun = True
                return self._filling
            self.drop(unread=True)  # nobody will ask for them any more
            return False

    def take(self, reading: "BufferedReader") -> Frame | None:
        """The next frame, once it is there; None after the last. Raises what decoding raised."""
        with self._room.changed:
            while not self._frames and self._missing:
                if reading.abandoned or self._room.closed:
                    raise Interrupted("Stopped while frames were waited for.", "Nothing was answered yet.")
                self._room.changed.wait()
            if self._frames:
                return self._pop()
            if isinstance(self._ended, VidqaError):
                raise self._ended
            return None

    @property
    def stopped(self) -> str | None:
        """Why decoding stopped, empty where all frames came; None where it was given up."""
        return self._ended if isinstance(self._ended, str) else None

    def drop(self, *, unread: bool) -> None:
        """Let go of frames: of those that a reader has begun with, or also of the `unread` ones."""
        with self._room.changed:
            if unread or self._begun:
                self._begun = True
                self._give_up()
                while self._frames:
                    self._pop()

    def wake(self) -> None:
        """Let whoever waits for a frame look around."""
        with self._room.changed:
            self._room.changed.notify_all()

    def _pop(self) -> Frame:
        frame = self._frames.popleft()
        self._room.hold(-frame.rgb.nbytes)
        self._room.give_back(self._frame_bytes)
        return frame

    def _give_up(self) -> None:
        self._room.give_back(self._missing * self._frame_bytes)
        self._missing = 0


class BufferedReader:
    """A video's source: the foreseen frames out of the buffer, once; else the file, opened anew.

    Closing it ends a reading. Frames that no reading began with stay, for another try.
    """

    def __init__(self, buffered: BufferedFrames, how: Decoding) -> None:
        self.stopped = ""
        self.abandoned = False
        self._buffered, self._how = buffered, how
        self._direct: Source | None = None

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Frames in order, until the end or the damage."""
        given = 0
        if self._buffered.begin(indices):
            while (frame := self._buffered.take(self)) is not None:
                given += 1
                yield frame
            if self._buffered.stopped is not None:
                self.stopped = self._buffered.stopped
                return
        if rest := indices[given:]:
            yield from self._read(rest)

    def abandon(self) -> None:
        """Make `frames` end soon, from another thread."""
        self.abandoned = True
        self._buffered.wake()
        if (direct := self._direct) is not None:
            direct.abandon()

    def close(self) -> None:
        """Let go of a reading that was begun."""
        self._buffered.drop(unread=False)
        self.abandoned = False

    def _read(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Straight from the file, by a process that ends with this reading and with its thread."""
        path = self._buffered.path
        info, source = open_source(path, self._how, lambda: self.abandoned)
        with closing(source):
            if info.pts_seconds != self._buffered.info.pts_seconds:
                raise VideoUnreadable(f"{path} changed after it was opened.", "Caption it again once it is complete.")
            self._direct = source
            try:
                if not self.abandoned:
                    yield from source.frames(indices)
                self.stopped = source.stopped
            finally:
                self._direct = None
