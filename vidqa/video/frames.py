"""Chosen frames out of an opened video, exactly those of a linear decode and no others converted.

Goes forward through the stream and seeks only where a keyframe saves work. Between
targets, pictures that nothing refers to are not decoded at all. Knows packets and
pictures; knows no process and no model.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np

from vidqa.types import Frame
from vidqa.video.probe import Opened

_SEEK_SAVES_FRAMES = 12  # a seek refills the decoder's pipeline: worth it from about here


class FrameSource:
    """Decodes chosen frames of one opened video; `stopped` says why it ended early, if it did."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._container, self._stream = opened.container, opened.stream
        self._position: int | None = None  # ticks of the last picture that came out
        self._pictures: Iterator[Any] | None = None
        self._order = -1  # counts pictures in linear mode
        self._targets: set[int] = set()
        self.stopped = ""

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield a Frame per index (ascending, repeats allowed) until the end or the damage."""
        ticks = self._opened.pts
        self._targets = {ticks[index] for index in indices}
        self.stopped = ""
        self._rewind()
        last: Frame | None = None
        for index in indices:
            if last is None or last.index != index:
                picture = self._picture_at(index)
                if picture is None:
                    return
                last = self._frame(index, picture)
            yield last

    def _frame(self, index: int, picture: Any) -> Frame:
        info = self._opened.info
        rgb = picture.to_ndarray(format="rgb24")
        turns = round((picture.rotation or 0) / 90) % 4
        seconds = info.pts_seconds[index] - info.pts_seconds[0]
        return Frame(index, seconds, np.ascontiguousarray(np.rot90(rgb, turns)))

    def _picture_at(self, index: int) -> Any | None:
        """The picture shown at an index, or None when the stream ends or breaks before it."""
        if self._opened.linear:
            return self._advance(lambda picture: self._count() >= index)
        target = self._opened.pts[index]
        self._seek_if_cheaper(target)
        return self._advance(lambda picture: picture.pts is not None and picture.pts >= target)

    def _count(self) -> int:
        self._order += 1
        return self._order

    def _rewind(self) -> None:
        """Begin again at the first packet."""
        self._container.seek(0)
        self._pictures, self._position, self._order = None, None, -1

    def _seek_if_cheaper(self, target: int) -> None:
        """Move to the keyframe before the target if that saves decoding."""
        keys, ticks = self._opened.keys, self._opened.pts
        place = bisect.bisect_right(keys, target) - 1
        at = self._position if self._position is not None else ticks[0] - 1
        saved = bisect.bisect_left(ticks, keys[place]) - bisect.bisect_right(ticks, at) if place >= 0 else 0
        if saved < _SEEK_SAVES_FRAMES:
            return
        while place >= 0 and not self._lands_before(keys[place], target):
            place -= 1
        if place < 0:
            self._rewind()

    def _lands_before(self, key: int, target: int) -> bool:
        """Seek; true if the first packet there does not lie behind the target."""
        self._container.seek(key, stream=self._stream, backward=True)
        self._pictures = self._decoded()
        self._position = None
        for packet in self._container.demux(self._stream):
            lands = packet.pts is not None and packet.pts <= target
            self._container.seek(key, stream=self._stream, backward=True)
            return lands
        return False

    def _advance(self, reached: Any) -> Any | None:
        if self._pictures is None:
            self._pictures = self._decoded()
        for picture in self._pictures:
            if picture.pts is not None:
                self._position = picture.pts
            if reached(picture):
                return picture
        return None

    def _decoded(self) -> Iterator[Any]:
        """Pictures in presentation order. What is no target and no reference is skipped."""
        context = self._stream.codec_context
        try:
            for packet in self._container.demux(self._stream):
                exact = self._opened.linear or packet.pts is None or packet.pts in self._targets
                # Read by the decoder per packet: a picture that nothing refers to changes no other.
                context.skip_frame = "DEFAULT" if exact else "NONREF"
                yield from packet.decode()
        except (av.FFmpegError, MemoryError) as error:
            self.stopped = getattr(error, "strerror", None) or str(error)

    def close(self) -> None:
        """Close the container."""
        self._container.close()
