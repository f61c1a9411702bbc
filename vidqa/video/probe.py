"""A file to an open container and a VideoInfo: what is in it, and where each value came from.

Knows a stream's facts and how far to trust them; leaves opening to container.py and the
packets' times to packets.py. Converts no picture.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise, repeat
from operator import mul
from pathlib import Path
from typing import Any

import av

from vidqa.errors import PictureTooLarge, VideoNotFound, VideoTooDamaged, VideoUnreadable
from vidqa.types import VideoInfo
from vidqa.video.container import (
    REMEDY_CONVERT,
    REMEDY_FETCH,
    UNREADABLE,
    pixel_aspect,
    reading,
    rewind,
    size_checked,
)
from vidqa.video.discontinuities import JoinedStream
from vidqa.video.frame_times import spread_repeats, timing
from vidqa.video.geometry import Crop, Orientation, Shape, usable_crop
from vidqa.video.mkv_crop import matroska_crop
from vidqa.video.mp4_crop import mp4_crop
from vidqa.video.packets import PacketTable, open_with_packets
from vidqa.video.picture_folder import numbered_pictures
from vidqa.video.rgb_conversion import is_untagged_hd, orientation_of
from vidqa.video.size_limits import MAX_PIXELS, check_picture_size, decoding_threads
from vidqa.video.stream_selection import choice_note

# Frame threads wait for each other's references: on 2 cores 8 of them took 0.62 of the time of FFmpeg's 3.
_LEAST_THREADS, _MOST_THREADS = 8, 16
_LEAST_LEAD_SECONDS = 0.5
_ORDER_SAMPLE = 48  # pictures that show whether times follow the order of showing


@dataclass(slots=True)
class Opened:
    """An open container with its best stream and the packet table.

    `pts` are the shown frames' presentation times in ticks, ascending; `keys` the keyframes'
    (presentation, decoding) times. `linear` says that times were unusable and frames count by order instead.
    `joined` says how `pts` follow from a stream whose clock jumps. `shape` is how the first picture is shown.
    """

    container: Any
    stream: Any
    info: VideoInfo
    pts: list[int]
    keys: list[tuple[int, int]]
    linear: bool
    joined: JoinedStream | None
    shape: Shape


def check_file(path: str) -> str:
    """The absolute path of a readable, regular, non-empty file, or of a folder of numbered pictures.

    Raises VideoNotFound or VideoUnreadable.
    """
    if "://" in path:
        raise VideoNotFound(f"{path} is an address, not a file.", "Download it first and give the file.")
    absolute = os.path.abspath(path)
    name = Path(path).name or path
    try:
        status = os.stat(absolute)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoNotFound(f"There is no video {path}: {reason}.", "Check the path.") from error
    if stat.S_ISDIR(status.st_mode):
        numbered_pictures(absolute)
        return absolute
    if not stat.S_ISREG(status.st_mode):
        raise VideoNotFound(f"{path} is not a regular file.", "Copy the video to a file first.")
    if status.st_size == 0:
        raise VideoUnreadable(f"{name} is empty (0 bytes).", "Fetch or copy it again.")
    if not os.access(absolute, os.R_OK):
        raise VideoUnreadable(f"{name} may not be read by this user.", "Change its permissions.")
    return absolute


def probe(path: str, asked_stream: int | None = None) -> Opened:
    """Open a file and learn all about its best video stream, or the asked one; raises VideoError children."""
    absolute = check_file(path)
    container, stream, scan = open_with_packets(absolute, asked_stream)
    try:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _threads(absolute, stream.codec_context)
        with reading(absolute):
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            first = _first_frame(container, stream, absolute)
            pts = scan.pts if scan.usable else _decoded_times(container, stream, absolute)
            linear = not scan.usable or not _times_are_shown_times(container, stream, scan, absolute)
        notes = tuple(choice_note(container, stream, absolute, asked_stream))
        shape = _shape(container, stream, first, absolute)
        info = _info(path, container, stream, first, pts, scan, shape, notes)
        return Opened(container, stream, info, pts, scan.keys, linear, scan.joined, shape)
    except BaseException:
        container.close()
        raise


def _threads(path: str, context: Any) -> int:
    wanted = min(max(_LEAST_THREADS, (os.cpu_count() or 1) + 2), _MOST_THREADS)
    return decoding_threads(os.path.getsize(path), context.width, context.height, wanted)


def _times_are_shown_times(container: Any, stream: Any, scan: PacketTable, path: str) -> bool:
    """False where pictures are reordered but packet times are not, as for H.264 in AVI."""
    if scan.joined or not (scan.in_order and stream.codec_context.has_b_frames):
        return True
    rewind(container, stream)
    times: list[int] = []
    with suppress(PictureTooLarge, *UNREADABLE):
        pictures = islice(size_checked(container.decode(stream), stream, path), _ORDER_SAMPLE)
        times = [picture.pts for picture in pictures if picture.pts is not None]
    return all(before < after for before, after in pairwise(times))


def _shape(container: Any, stream: Any, first: Any, path: str) -> Shape:
    """How the first picture is shown; raises PictureTooLarge where it is so after its crop."""
    crop = usable_crop(_header_crop(container, stream, first, path), first.width, first.height)
    shape = Shape(
        first.width, first.height, crop, pixel_aspect(stream), orientation_of(first), stream.codec_context.name == "gif"
    )
    check_picture_size(Path(path).name, *shape.cropped_size, shape.pixel_aspect)
    return shape


def _header_crop(container: Any, stream: Any, first: Any, path: str) -> Crop:
    """What the container leaves out at the sides of its pictures."""
    if container.format.name.startswith("matroska"):
        return matroska_crop(path, list(container.streams.video).index(stream))
    if container.format.name.startswith("mov,"):
        return mp4_crop(path, stream.id, first.width, first.height)
    return Crop()


def _first_frame(container: Any, stream: Any, path: str) -> Any:
    rewind(container, stream)
    for frame in size_checked(container.decode(stream), stream, path):
        return frame
    raise VideoUnreadable(f"{Path(path).name} contains no picture that can be decoded.", REMEDY_CONVERT)


def _decoded_times(container: Any, stream: Any, path: str) -> list[int]:
    """One tick per decoded frame, from its own time unless that is missing or goes back, else by its order."""
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
    scan: PacketTable,
    shape: Shape,
    notes: tuple[str, ...],
) -> VideoInfo:
    tick = float(stream.time_base)
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    times = pts if scan.usable else spread_repeats(pts, scan.end, (1 / (rate * tick) for rate in rates))
    seconds = tuple(map(mul, times, repeat(tick)))
    promised_end = None if scan.joined else _promised_end(container, stream)
    found = timing(seconds, rates, scan.end * tick, promised_end, tick)
    width, height = shape.shown_size
    lead = 0.0 if scan.joined else _lead_seconds(container, seconds[0])
    counted = "packets" if scan.usable else "decoding"
    notes += (*_picture_notes(first, shape), *_truncation_note(path, container, stream, scan), *_joint_note(scan))
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
    """How long after the file's begin its first picture comes: players count from the former.

    Where sound is a little ahead, as it is in most files, times count from the first picture, as Qwen2-VL's do.
    """
    if container.start_time is None:
        return 0.0
    lead = first - float(container.start_time) / av.time_base
    return lead if lead >= _LEAST_LEAD_SECONDS else 0.0


def _picture_notes(first: Any, shape: Shape) -> Iterator[str]:
    if shape.orientation.mirrored:
        yield "The file says that its pictures are shown mirrored, and so they are."
    if is_untagged_hd(first):
        yield "The file does not say how its colours are coded: read as BT.709, as players do from 720 lines on."
    if (first.rotation or 0) % 90:
        yield f"The picture is rotated by {first.rotation}°; it is shown turned to the nearest right angle."


def _truncation_note(path: str, container: Any, stream: Any, scan: PacketTable) -> Iterator[str]:
    """Say what is missing; raises VideoTooDamaged where less than half of the promised time is there."""
    promised = _header_seconds(container, stream)
    there = scan.end * float(stream.time_base)
    if promised is None or not scan.usable or scan.joined or there > promised * 0.95 - 0.5:
        return
    told = f"{Path(path).name} looks truncated: {there:.1f} s of {promised:.1f} s are there."
    if there < promised / 2:
        raise VideoTooDamaged(told, REMEDY_FETCH)
    yield told


def _joint_note(scan: PacketTable) -> Iterator[str]:
    if scan.joined:
        times = len(scan.joined.shifts) - 1
        yield f"The clock of the video jumps {'once' if times == 1 else f'{times} times'}: its parts are joined there."


def _promised_end(container: Any, stream: Any) -> float | None:
    """Until when the header lets this stream last at most."""
    if stream.duration is not None or container.duration is None:
        return _header_seconds(container, stream)
    return float(container.duration + (container.start_time or 0)) / av.time_base


def _header_seconds(container: Any, stream: Any) -> float | None:
    """Where the header says that this stream ends; None where it speaks of other streams too."""
    if stream.duration is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration + (container.start_time or 0)) / av.time_base
    return None
