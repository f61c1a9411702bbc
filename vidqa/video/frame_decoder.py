"""Decoding of chosen frames of an opened video: exactly those of a linear decode, and no others converted.

Goes forward through the stream and seeks only where a keyframe saves work. Between targets, pictures that no other
picture refers to are not decoded at all. In an interlaced stream the pictures beside each target are decoded too.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from operator import itemgetter
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from vidqa.errors import PictureTooLarge
from vidqa.types import Frame
from vidqa.video.change_signal import Scan
from vidqa.video.container import UNREADABLE, rewind, size_checked
from vidqa.video.deinterlacing import deinterlaced, is_interlaced
from vidqa.video.probe import Opened
from vidqa.video.rgb_conversion import as_shown, conversion_notes, differs
from vidqa.video.size_limits import MAX_PIXELS, out_of_memory_error
from vidqa.video.tone_mapping import ToneMapper

_MIN_SAVED_FRAMES = 12  # a seek refills the decoder's pipeline: it saves time from about here
_SHAPE_NOTE = (
    "The picture changes its size or pixel aspect in the video; it is shown whole in the shape of the first one."
)
_SUBSTITUTE_NOTE = "Some pictures cannot be decoded; the next one, at its own time, stands for each."
_MAX_STEPS_BACK = 7  # keyframes: beyond that the file is damaged

# FFmpeg's own decoders ignore the transparency of VP8 and VP9 in WebM; libvpx decodes it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# Formats without a pixel aspect in the container: it can change in mid-stream. Elsewhere one holds for all pictures.
_FORMATS_WITHOUT_ASPECT = {"mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "obu"}
_TICK = Fraction(1, 1000)  # a filter graph needs one; it has no effect here
_SIDE, _UNIT, _WIDEST = 16, 2048, 32_000  # pixels; an aspect of 1 is a width of _UNIT
_NARROWEST = 100  # below that rounding shows
_WIDTH = rf"clip(round({_UNIT}*sar)\,1\,{_WIDEST})"


class FrameSource:
    """Decoder of chosen frames of one opened video; `stopped` says why it ended early, if it did."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._container, self._stream = opened.container, opened.stream
        self._alpha_decoder = _alpha_decoder(opened.stream)  # None: the stream's own decoder
        self._aspects = PixelAspects() if opened.container.format.name in _FORMATS_WITHOUT_ASPECT else None
        self._position: int | None = None  # ticks of the last picture that came out
        self._pictures: Iterator[Any] | None = None
        self._latest: Any | None = None
        self._order = -1  # counts pictures in linear mode
        self._from_start = True  # no seek since the first packet: a missing picture is not in the file
        self._steps_back = 0  # additional keyframes to begin from, learned from failed seeks
        self._indices: Sequence[int] = ()
        self._targets: set[int] = set()
        self._interlaced = opened.interlaced  # or seen to be so since: pictures come with the ones beside them
        self._beside: tuple[Any | None, Any | None] = (None, None)  # before and after the last one that came out
        self._tone_mapper = ToneMapper()
        self.stopped = ""

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield a Frame per index (ascending, repeats allowed) until the end or the damage."""
        self._indices, self.stopped = indices, ""
        self._begin()
        last: Frame | None = None
        for index in indices:
            if last is None or last.index != index:
                last = None  # a frame may be large: free it before the next one is decoded
                last = self._frame_at(index)
                if last is None:
                    return
            yield last

    def _begin(self) -> None:
        """Restart at the first packet, with the pictures that the indices need as targets."""
        ticks, beside = self._opened.pts, 1 if self._interlaced else 0
        self._targets = {tick for index in self._indices for tick in ticks[max(index - beside, 0) : index + beside + 1]}
        self._rewind()

    def _frame_at(self, index: int) -> Frame | None:
        """Return the frame at an index, or None if the stream ends or breaks before it."""
        picture = self._picture_at(index)
        if picture is not None and is_interlaced(picture) and not self._interlaced:
            self._interlaced = True
            self._begin()
            picture = self._picture_at(index)
        if picture is None:
            return None
        try:
            return self._frame(index, picture)
        except MemoryError as error:
            raise out_of_memory_error(self._opened.info.path) from error
        except UNREADABLE as error:  # FFmpeg cannot convert every picture that it can decode
            self.stopped = _reason(error)
            return None

    def _frame(self, index: int, picture: Any) -> Frame:
        info, shape = self._opened.info, self._opened.shape
        aspect = None if self._aspects is None else self._aspects.of(picture)
        shown = self._index_of(index, picture)
        note = _SUBSTITUTE_NOTE if shown != index else self._note(picture, aspect)
        if is_interlaced(picture):
            picture = deinterlaced(picture, *((None, None) if shown != index else self._neighbours(picture)))
        return Frame(index, info.shown_seconds(shown), as_shown(picture, shape, self._tone_mapper, aspect), note)

    def _note(self, picture: Any, aspect: float | None) -> str:
        """Return what is unusual in a picture and was not said when the file was opened."""
        notes = [note for note in conversion_notes(picture) if note not in self._opened.info.notes]
        return " ".join([_SHAPE_NOTE, *notes] if differs(picture, self._opened.shape, aspect) else notes)

    def _neighbours(self, picture: Any) -> tuple[Any | None, Any | None]:
        """Return the intact pictures right before and after the last one that came out; None where there is none."""
        before, after = self._beside
        if self._opened.linear:
            return before, after
        ticks = self._opened.pts
        place = bisect.bisect_left(ticks, picture.pts)
        return _intact(before, ticks[max(place - 1, 0) : place]), _intact(after, ticks[place + 1 : place + 2])

    def _index_of(self, index: int, picture: Any) -> int:
        """Return the index of the picture shown for an index: a later one if that cannot be decoded."""
        ticks = self._opened.pts
        if self._opened.linear or picture.pts is None or picture.pts <= ticks[index]:
            return index
        return min(bisect.bisect_left(ticks, picture.pts), len(ticks) - 1)

    def _picture_at(self, index: int) -> Any | None:
        """Return the picture shown at an index, or None if the stream ends or breaks before it."""
        if self._opened.linear:
            return self._advance(lambda _: self._count() >= index)
        target = self._opened.pts[index]
        if self._latest is not None and self._latest.pts >= target:
            return self._latest  # the substitute for pictures that cannot be decoded
        self._latest = None
        self._seek_if_cheaper(self._first_needed(target))
        picture = self._advance_to(target)
        return picture if self._is_exact(picture, target) else self._from_further_back(target, picture)

    def _is_exact(self, picture: Any | None, target: int) -> bool:
        """Return whether a linear decode would give this picture too; decoding from the start is one."""
        if self._from_start:
            return True
        if picture is None or picture.pts != target or picture.is_corrupt:
            return False
        if not (self._interlaced and is_interlaced(picture)):
            return True
        damaged = self._beside[1] is not None and self._beside[1].is_corrupt
        return self._neighbours(picture)[0] is not None and not damaged

    def _first_needed(self, target: int) -> int:
        """Return the ticks of the first picture that a target needs: in an interlaced stream the one before it."""
        ticks = self._opened.pts
        return ticks[max(bisect.bisect_left(ticks, target) - 1, 0)] if self._interlaced else target

    def _from_further_back(self, target: int, picture: Any | None) -> Any | None:
        """Try earlier keyframes if the decoder dropped or damaged the target; return what it gives if none helps."""
        steps_before = self._steps_back
        while not self._is_exact(picture, target):
            if self._steps_back >= _MAX_STEPS_BACK:
                self._steps_back = steps_before
                break
            self._steps_back = self._steps_back * 2 + 1
            self.stopped = ""
            self._seek_before(self._first_needed(target))
            picture = self._advance_to(target)
        return picture

    def _advance_to(self, target: int) -> Any | None:
        self._latest = self._advance(lambda picture: picture.pts is not None and picture.pts >= target)
        return self._latest

    def _count(self) -> int:
        self._order += 1
        return self._order

    def _rewind(self) -> None:
        """Restart at the first packet."""
        rewind(self._container, self._stream, by_bytes=self._opened.joined is not None)
        self._flush_decoder()
        self._pictures, self._position, self._order, self._from_start = None, None, -1, True
        self._latest, self._beside = None, (None, None)

    def _seek_if_cheaper(self, target: int) -> None:
        """Seek to a keyframe before the target if that saves decoding."""
        keyframes, ticks = self._opened.keyframes, self._opened.pts
        at = self._position if self._position is not None else ticks[0] - 1
        saved = 0
        if (key := self._keyframe_before(target)) >= 0:
            saved = bisect.bisect_left(ticks, keyframes[key][0]) - bisect.bisect_right(ticks, at)
        if saved >= _MIN_SAVED_FRAMES:
            self._seek_before(target)

    def _keyframe_before(self, target: int) -> int:
        """Return the position of the keyframe to start from; below 0 for the start of the file."""
        return bisect.bisect_right(self._opened.keyframes, target, key=itemgetter(0)) - 1 - self._steps_back

    def _seek_before(self, target: int) -> None:
        """Seek to the nearest keyframe at or before the target that the container can find."""
        keyframes, joined = self._opened.keyframes[: max(self._keyframe_before(target) + 1, 0)], self._opened.joined
        if joined is not None:
            positions = [joined.key_positions[pts] for pts, _ in keyframes[-1:] if pts in joined.key_positions]
            if not (positions and self._lands_before(positions[0], target, by_bytes=True)):
                self._rewind()
            return
        for pts, dts in reversed(keyframes):
            # Some containers seek by presentation times, some by decoding times: try both.
            if self._lands_before(pts, target) or (dts < pts and self._lands_before(dts, target)):
                return
        self._rewind()

    def _lands_before(self, where: int, target: int, *, by_bytes: bool = False) -> bool:
        """Seek to ticks, or to a byte; return whether the first keyframe there does not lie behind the target."""
        try:
            if by_bytes:
                self._container.seek(where, unsupported_byte_offset=True)
            else:
                self._container.seek(where, stream=self._stream, backward=True)
            self._flush_decoder()
            packets = self._packets()
            key = next((packet for packet in packets if packet.is_keyframe and packet.pts is not None), None)
        except UNREADABLE:
            return False
        if key is None or key.pts > target:
            return False
        self._pictures, self._position, self._from_start = self._decode(chain((key,), packets)), None, False
        return True

    def _flush_decoder(self) -> None:
        """Empty the alpha decoder after a seek; the container flushes its own decoders."""
        if self._alpha_decoder is not None:
            self._alpha_decoder.flush_buffers()

    def _advance(self, reached: Any) -> Any | None:
        if self._pictures is None:
            self._pictures = self._decode(self._packets())
        for picture in self._pictures:
            if picture.pts is not None:
                self._position = picture.pts
            if reached(picture):
                return picture
        return None

    def _packets(self) -> Iterator[Any]:
        """Return the packets from here on, with the times of the packet table."""
        packets = self._container.demux(self._stream)
        return packets if self._opened.joined is None else self._opened.joined.shifted(packets)

    def _decode(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Return the pictures of packets; in an interlaced stream `_beside` holds the ones beside each."""
        pictures = self._decoded(packets)
        return self._with_neighbours(pictures) if self._interlaced else pictures

    def _with_neighbours(self, pictures: Iterator[Any]) -> Iterator[Any]:
        """Yield each picture when the one after it is decoded."""
        before, picture = None, next(pictures, None)
        while picture is not None:
            after = next(pictures, None)
            self._beside = (before, after)
            yield picture
            before, picture = picture, after

    def _decoded(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Yield pictures in presentation order without those that are neither target nor reference."""
        context = self._stream.codec_context
        try:
            for packet in packets:
                exact = self._opened.linear or packet.pts is None or packet.pts in self._targets
                # The decoder reads this for every packet. A picture that nothing refers to changes no other.
                context.skip_frame = "DEFAULT" if exact else "NONREF"
                pictures = packet.decode() if self._alpha_decoder is None else self._alpha_decoder.decode(packet)
                yield from size_checked(pictures, self._stream, self._opened.info.path)
        except PictureTooLarge as error:
            self.stopped = error.what.removesuffix(".")
        except MemoryError as error:
            raise out_of_memory_error(self._opened.info.path) from error
        except UNREADABLE as error:
            self.stopped = _reason(error)

    def scan(self, limit_seconds: float) -> Scan:
        """Scan the whole video for change for about `limit_seconds` at most; moves the file."""
        from vidqa.video.change_scan import scan_video  # imported late: few questions need it

        return scan_video(self._opened, limit_seconds)

    def abandon(self) -> None:
        """Do nothing: decoding in this process cannot be stopped before the current frame ends."""

    def close(self) -> None:
        """Close the container."""
        self._pictures = self._latest = None  # these refer to the container's threads
        self._beside = (None, None)
        self._container.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _intact(picture: Any | None, ticks: Sequence[int]) -> Any | None:
    """Return a picture that has one of these times and was decoded whole; None for another."""
    return picture if picture is not None and picture.pts in ticks and not picture.is_corrupt else None


def _alpha_decoder(stream: Any) -> Any | None:
    """Return a decoder for a stream whose header says that it has alpha; None for others, or without libvpx."""
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return None
    try:
        context = av.CodecContext.create(name, "r")
    except av.codec.codec.UnknownCodecError:
        return None
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_count = stream.codec_context.thread_count
    return context


class PixelAspects:
    """Reader of decoded pictures' pixel aspect (width over height), which PyAV does not give; 40 µs a picture.

    FFmpeg's scale filter knows it and makes a tiny copy of the picture that is as wide as it says.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(width=_SIDE, height=_SIDE, format=av.VideoFormat("gray"), time_base=_TICK)
        scale = self._graph.add("scale", f"w={_WIDTH}:h={_SIDE}:flags=neighbor:eval=frame")
        sink = self._graph.add("buffersink")
        self._graph.link_nodes(source, scale, sink).configure()

    def of(self, picture: Any) -> float | None:
        """Return a picture's own pixel aspect; None if it is too narrow or too wide to measure."""
        tiny = self._reformatter.reformat(
            picture, width=_SIDE, height=_SIDE, format="gray", interpolation="POINT", threads=1
        )
        self._graph.vpush(tiny)
        width = self._graph.vpull().width
        return width / _UNIT if _NARROWEST <= width < _WIDEST else None
