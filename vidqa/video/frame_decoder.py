"""Chosen frames out of an opened video, exactly those of a linear decode and no others converted.

Goes forward through the stream and seeks only where a keyframe saves work. Between
targets, pictures that nothing refers to are not decoded at all. Knows packets and
pictures; knows no process and no model.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from vidqa.errors import PictureTooLarge
from vidqa.types import Frame
from vidqa.video.alpha import alpha_decoder
from vidqa.video.container import UNREADABLE, rewind, size_checked
from vidqa.video.memory_limit import too_much_memory
from vidqa.video.pixel_aspect import changing_aspects
from vidqa.video.probe import Opened
from vidqa.video.rgb_conversion import as_shown, differs
from vidqa.video.size_limits import MAX_PIXELS

_SEEK_SAVES_FRAMES = 12  # a seek refills the decoder's pipeline: worth it from about here
_SHAPE_NOTE = (
    "The picture changes its size or pixel aspect in the video; it is shown whole in the shape of the first one."
)
_STAND_IN_NOTE = "Some pictures cannot be decoded; the next one, at its own time, stands for each."
_MOST_STEPS_BACK = 7  # keyframes: beyond that it is the file that is damaged


class FrameSource:
    """Decodes chosen frames of one opened video; `stopped` says why it ended early, if it did."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._container, self._stream = opened.container, opened.stream
        self._alpha = alpha_decoder(opened.stream, {"max_pixels": str(MAX_PIXELS)})  # else the stream's own decoder
        self._aspects = changing_aspects(opened.container)
        self._position: int | None = None  # ticks of the last picture that came out
        self._pictures: Iterator[Any] | None = None
        self._latest: Any | None = None
        self._order = -1  # counts pictures in linear mode
        self._from_start = True  # no seek since the first packet: what does not come is not there
        self._steps_back = 0  # keyframes that this file needs before a target, learned from failed seeks
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
                last = None  # a frame may be large: it goes before the next one comes
                last = self._frame_at(index)
                if last is None:
                    return
            yield last

    def _frame_at(self, index: int) -> Frame | None:
        """The frame at an index, or None when the stream ends or breaks before it."""
        picture = self._picture_at(index)
        if picture is None:
            return None
        try:
            return self._frame(index, picture)
        except MemoryError as error:
            raise too_much_memory(self._opened.info.path) from error
        except UNREADABLE as error:  # FFmpeg cannot convert every picture that it can decode
            self.stopped = _reason(error)
            return None

    def _frame(self, index: int, picture: Any) -> Frame:
        info, shape = self._opened.info, self._opened.shape
        aspect = None if self._aspects is None else self._aspects.of(picture)
        note = _SHAPE_NOTE if differs(picture, shape, aspect) else ""
        shown = self._index_of(index, picture)
        note = _STAND_IN_NOTE if shown != index else note
        return Frame(index, info.shown_seconds(shown), as_shown(picture, shape, aspect), note)

    def _index_of(self, index: int, picture: Any) -> int:
        """Of the picture that is shown for an index: a later one where that cannot be decoded."""
        ticks = self._opened.pts
        if self._opened.linear or picture.pts is None or picture.pts <= ticks[index]:
            return index
        return min(bisect.bisect_left(ticks, picture.pts), len(ticks) - 1)

    def _picture_at(self, index: int) -> Any | None:
        """The picture shown at an index, or None when the stream ends or breaks before it."""
        if self._opened.linear:
            return self._advance(lambda picture: self._count() >= index)
        target = self._opened.pts[index]
        if self._latest is not None and self._latest.pts >= target:
            return self._latest  # it stands in for pictures that cannot be decoded
        self._latest = None
        self._seek_if_cheaper(target)
        picture = self._advance_to(target)
        return picture if self._is_exact(picture, target) else self._from_further_back(target, picture)

    def _is_exact(self, picture: Any | None, target: int) -> bool:
        """Whether a linear decode would give this picture too; from the start, it just did."""
        return self._from_start or (picture is not None and picture.pts == target and not picture.is_corrupt)

    def _from_further_back(self, target: int, picture: Any | None) -> Any | None:
        """Try earlier keyframes where the decoder dropped or spoiled the target; keep what there is if none helps."""
        helped = self._steps_back
        while not self._is_exact(picture, target):
            if self._steps_back >= _MOST_STEPS_BACK:
                self._steps_back = helped
                break
            self._steps_back = self._steps_back * 2 + 1
            self.stopped = ""
            self._seek_before(target)
            picture = self._advance_to(target)
        return picture

    def _advance_to(self, target: int) -> Any | None:
        self._latest = self._advance(lambda picture: picture.pts is not None and picture.pts >= target)
        return self._latest

    def _count(self) -> int:
        self._order += 1
        return self._order

    def _rewind(self) -> None:
        """Begin again at the first packet."""
        rewind(self._container, self._stream, by_place=self._opened.joined is not None)
        self._forget_pictures()
        self._pictures, self._position, self._order, self._from_start = None, None, -1, True
        self._latest = None

    def _seek_if_cheaper(self, target: int) -> None:
        """Move to a keyframe before the target if that saves decoding."""
        keys, ticks = self._opened.keys, self._opened.pts
        place = self._key_before(target)
        at = self._position if self._position is not None else ticks[0] - 1
        saved = bisect.bisect_left(ticks, keys[place][0]) - bisect.bisect_right(ticks, at) if place >= 0 else 0
        if saved >= _SEEK_SAVES_FRAMES:
            self._seek_before(target)

    def _key_before(self, target: int) -> int:
        """The place of the keyframe to start from; below 0 for the start of the file."""
        return bisect.bisect_right(self._opened.keys, target, key=itemgetter(0)) - 1 - self._steps_back

    def _seek_before(self, target: int) -> None:
        """Go to the nearest keyframe at or before the target that the container can find."""
        keys, joined = self._opened.keys[: max(self._key_before(target) + 1, 0)], self._opened.joined
        if joined is not None:
            places = [joined.key_positions[pts] for pts, _ in keys[-1:] if pts in joined.key_positions]
            if not (places and self._lands_before(places[0], target, by_place=True)):
                self._rewind()
            return
        for pts, dts in reversed(keys):
            # Some containers look up presentation times, some decoding times: the landing decides.
            if self._lands_before(pts, target) or (dts < pts and self._lands_before(dts, target)):
                return
        self._rewind()

    def _lands_before(self, where: int, target: int, *, by_place: bool = False) -> bool:
        """Seek to ticks, or to a byte `by_place`; true if the first keyframe there does not lie behind the target."""
        try:
            if by_place:
                self._container.seek(where, unsupported_byte_offset=True)
            else:
                self._container.seek(where, stream=self._stream, backward=True)
            self._forget_pictures()
            packets = self._packets()
            key = next((packet for packet in packets if packet.is_keyframe and packet.pts is not None), None)
        except UNREADABLE:
            return False
        if key is None or key.pts > target:
            return False
        self._pictures, self._position, self._from_start = self._decoded(chain((key,), packets)), None, False
        return True

    def _forget_pictures(self) -> None:
        """Empty the decoder after a seek; the container does so with its own ones."""
        if self._alpha is not None:
            self._alpha.flush_buffers()

    def _advance(self, reached: Any) -> Any | None:
        if self._pictures is None:
            self._pictures = self._decoded(self._packets())
        for picture in self._pictures:
            if picture.pts is not None:
                self._position = picture.pts
            if reached(picture):
                return picture
        return None

    def _packets(self) -> Iterator[Any]:
        """Packets from here on, with the times that frames are looked up by."""
        packets = self._container.demux(self._stream)
        return packets if self._opened.joined is None else self._opened.joined.laid(packets)

    def _decoded(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Pictures in presentation order. What is no target and no reference is skipped."""
        context = self._stream.codec_context
        try:
            for packet in packets:
                exact = self._opened.linear or packet.pts is None or packet.pts in self._targets
                # Read by the decoder per packet: a picture that nothing refers to changes no other.
                context.skip_frame = "DEFAULT" if exact else "NONREF"
                pictures = packet.decode() if self._alpha is None else self._alpha.decode(packet)
                yield from size_checked(pictures, self._stream, self._opened.info.path)
        except PictureTooLarge as error:
            self.stopped = error.what.removesuffix(".")
        except MemoryError as error:
            raise too_much_memory(self._opened.info.path) from error
        except UNREADABLE as error:
            self.stopped = _reason(error)

    def abandon(self) -> None:
        """Nothing can be stopped within a process: the reading ends with the frame that it is at."""

    def close(self) -> None:
        """Close the container."""
        self._pictures = self._latest = None  # they refer to the container's threads
        self._container.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
