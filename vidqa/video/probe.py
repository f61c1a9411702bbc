"""The facts of a video file: an open container with a VideoInfo that says where each value came from.

Opening is in container.py, the packets' times in packets.py. Converts no picture.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise, repeat
from operator import mul
from pathlib import Path
from typing import Any

import av

from vidqa.errors import PictureTooLarge, VideoTooDamaged, VideoUnreadable
from vidqa.types import VideoInfo
from vidqa.video.container import (
    REMEDY_CONVERT,
    REMEDY_FETCH,
    UNREADABLE,
    as_video_errors,
    pixel_aspect,
    rewind,
    size_checked,
)
from vidqa.video.deinterlacing import is_interlaced
from vidqa.video.discontinuities import JoinedStream
from vidqa.video.frame_times import spread_repeats, timing
from vidqa.video.geometry import Crop, Orientation, Shape, usable_crop
from vidqa.video.mkv_index import mkv_crop
from vidqa.video.mp4_index import mp4_crop
from vidqa.video.packets import PacketTable, open_with_packets
from vidqa.video.rgb_conversion import conversion_notes, is_untagged_hd, orientation_of
from vidqa.video.size_limits import MAX_PIXELS, check_picture_size, decoding_threads
from vidqa.video.stream_selection import choice_note
from vidqa.video.tone_mapping import is_hdr

# Frame threads wait for each other's references: on 2 cores 8 of them took 0.62 of the time of FFmpeg's 3.
_MIN_THREADS, _MAX_THREADS = 8, 16
_MIN_LEAD_SECONDS = 0.5
_ORDER_SAMPLE = 48  # pictures that show whether times follow the order of showing


@dataclass(slots=True)
class Opened:
    """An open container with its best stream and the packet table.

    `pts` are the shown frames' presentation times in ticks, ascending; `keyframes` their (presentation, decoding)
    times. `linear`: times were unusable, and frames count by order instead. `joined`: how `pts` follow from a stream
    whose clock jumps. `shape` is how the first picture is shown, `interlaced` whether it is flagged so.
    """

    container: Any
    stream: Any
    info: VideoInfo
    pts: list[int]
    keyframes: list[tuple[int, int]]
    linear: bool
    joined: JoinedStream | None
    shape: Shape
    interlaced: bool


def probe(path: str, stream_index: int | None = None) -> Opened:
    """Open a file and find the facts of its best or given video stream; raise VideoError children."""
    absolute = os.path.abspath(path)
    container, stream, packets = open_with_packets(absolute, stream_index)
    try:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _threads(absolute, stream.codec_context)
        with as_video_errors(absolute):
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            first = _first_frame(container, stream, absolute)
            pts = packets.pts if packets.usable else _decoded_times(container, stream, absolute)
            linear = not packets.usable or not _times_are_shown_times(container, stream, packets, absolute)
        notes = tuple(choice_note(container, stream, absolute, stream_index))
        shape = _shape(container, stream, first, absolute)
        info = _info(path, container, stream, first, pts, packets, shape, notes)
        interlaced = is_interlaced(first)
        return Opened(container, stream, info, pts, packets.keyframes, linear, packets.joined, shape, interlaced)
    except BaseException:
        container.close()
        raise


def _threads(path: str, context: Any) -> int:
    threads = min(max(_MIN_THREADS, (os.cpu_count() or 1) + 2), _MAX_THREADS)
    return decoding_threads(os.path.getsize(path), context.width, context.height, threads, hdr=is_hdr(context))


def _times_are_shown_times(container: Any, stream: Any, packets: PacketTable, path: str) -> bool:
    """Return False if pictures are reordered but packet times are not, as for H.264 in AVI."""
    if packets.joined or not (packets.in_order and stream.codec_context.has_b_frames):
        return True
    rewind(container, stream)
    times: list[int] = []
    with suppress(PictureTooLarge, *UNREADABLE):
        pictures = islice(size_checked(container.decode(stream), stream, path), _ORDER_SAMPLE)
        times = [picture.pts for picture in pictures if picture.pts is not None]
    return all(before < after for before, after in pairwise(times))


def _shape(container: Any, stream: Any, first: Any, path: str) -> Shape:
    """Return how the first picture is shown; raise PictureTooLarge if it is too large after its crop."""
    crop = usable_crop(_header_crop(container, stream, first, path), first.width, first.height)
    shape = Shape(
        first.width, first.height, crop, pixel_aspect(stream), orientation_of(first), stream.codec_context.name == "gif"
    )
    check_picture_size(Path(path).name, *shape.cropped_size, shape.pixel_aspect)
    return shape


def _header_crop(container: Any, stream: Any, first: Any, path: str) -> Crop:
    """Return what the container cuts off the sides of its pictures."""
    if container.format.name.startswith("matroska"):
        return mkv_crop(path, list(container.streams.video).index(stream))
    if container.format.name.startswith("mov,"):
        return mp4_crop(path, stream.id, first.width, first.height)
    return Crop()


def _first_frame(container: Any, stream: Any, path: str) -> Any:
    rewind(container, stream)
    for frame in size_checked(container.decode(stream), stream, path):
        return frame
    raise VideoUnreadable(f"{Path(path).name} contains no picture that can be decoded.", REMEDY_CONVERT)


def _decoded_times(container: Any, stream: Any, path: str) -> list[int]:
    """Return a time in ticks per decoded frame: its own one, or a step later if that is missing or goes back."""
    rewind(container, stream)
    rate = float(stream.guessed_rate or stream.average_rate or 25)
    step = max(round(1 / rate / float(stream.time_base)), 1)
    ticks: list[int] = []
    try:
        for frame in size_checked(container.decode(stream), stream, path):
            after = ticks[-1] + step if ticks else 0
            ticks.append(frame.pts if frame.pts is not None and (not ticks or frame.pts >= ticks[-1]) else after)
    except (PictureTooLarge, *UNREADABLE):
        if not ticks:
            raise
    return ticks


def _info(
    path: str,
    container: Any,
    stream: Any,
    first: Any,
    pts: list[int],
    packets: PacketTable,
    shape: Shape,
    notes: tuple[str, ...],
) -> VideoInfo:
    tick = float(stream.time_base)
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    times = pts if packets.usable else spread_repeats(pts, packets.end, (1 / (rate * tick) for rate in rates))
    seconds = tuple(map(mul, times, repeat(tick)))
    header_end = None if packets.joined else _header_end(container, stream)
    found = timing(seconds, rates, packets.end * tick, header_end, tick)
    width, height = shape.shown_size
    lead = 0.0 if packets.joined else _lead_seconds(container, seconds[0])
    counted = "packets" if packets.usable else "decoding"
    notes += tuple(_picture_notes(first, shape)) + tuple(conversion_notes(first))
    notes += (*_truncation_note(path, container, stream, packets), *_joined_note(packets))
    return VideoInfo(
        path=path,
        container=container.format.name,
        codec=stream.codec_context.name,
        width=width,
        height=height,
        coded_width=first.width,
        coded_height=first.height,
        rotation_degrees=shape.orientation.degrees,
        pixel_aspect=shape.pixel_aspect,
        fps=found.fps,
        frame_count=len(pts),
        duration_seconds=lead + found.duration_seconds,
        start_seconds=seconds[0],
        constant_rate=found.constant,
        pts_seconds=seconds,
        sources={
            "duration": found.duration_source,
            "fps": found.fps_source,
            "frames": counted,
            "rotation": "frame" if shape.orientation != Orientation() else "default",
            "pixel_aspect": "header" if stream.sample_aspect_ratio else "default",
            "size": "frame",
        },
        notes=notes,
        lead_seconds=lead,
    )


def _lead_seconds(container: Any, first: float) -> float:
    """Return how long after the file's begin, from which players count, its first picture comes.

    If sound is a little ahead, as in most files, times count from the first picture instead, as qwen-vl-utils counts.
    """
    if container.start_time is None:
        return 0.0
    lead = first - float(container.start_time) / av.time_base
    return lead if lead >= _MIN_LEAD_SECONDS else 0.0


def _picture_notes(first: Any, shape: Shape) -> Iterator[str]:
    if shape.orientation.mirrored:
        yield "The file says that its pictures are shown mirrored, and so they are."
    if is_untagged_hd(first) and not is_hdr(first):
        yield "The file does not say how its colours are coded: read as BT.709, as players do from 720 lines on."
    if (first.rotation or 0) % 90:
        yield f"The picture is rotated by {first.rotation}°; it is shown turned to the nearest right angle."


def _truncation_note(path: str, container: Any, stream: Any, packets: PacketTable) -> Iterator[str]:
    """Yield what is missing; raise VideoTooDamaged if less than half of the header's duration is there."""
    expected = _header_seconds(container, stream)
    found = packets.end * float(stream.time_base)
    if expected is None or not packets.usable or packets.joined or found > expected * 0.95 - 0.5:
        return
    message = f"{Path(path).name} looks truncated: {found:.1f} s of {expected:.1f} s are there."
    if found < expected / 2:
        raise VideoTooDamaged(message, REMEDY_FETCH)
    yield message


def _joined_note(packets: PacketTable) -> Iterator[str]:
    if packets.joined:
        times = len(packets.joined.shifts) - 1
        yield f"The clock of the video jumps {'once' if times == 1 else f'{times} times'}: its parts are joined there."


def _header_end(container: Any, stream: Any) -> float | None:
    """Return until when the header lets this stream last at most."""
    if stream.duration is not None or container.duration is None:
        return _header_seconds(container, stream)
    return float(container.duration + (container.start_time or 0)) / av.time_base


def _header_seconds(container: Any, stream: Any) -> float | None:
    """Return where the header says that this stream ends; None if that covers other streams too."""
    if stream.duration is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration + (container.start_time or 0)) / av.time_base
    return None
