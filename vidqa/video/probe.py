"""A file to an open container and a VideoInfo: what is in it, and where each value came from.

All of FFmpeg's danger is met here: only local files, only real containers, capped
pixels. Knows containers and packets; converts no picture.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import av

from vidqa.errors import VideoNotFound, VideoUnreadable
from vidqa.types import VideoInfo

MAX_PIXELS = 8192 * 4352
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,live_flv,ogg,asf,asf_o,gif,"
    "mxf,nut,ivf,obu,av1,rm,dv,vob,yuv4mpegpipe,wtv,apng,webp_pipe,png_pipe,jpeg_pipe"
)
_REMEDY_CONVERT = "Check that it plays, or convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"


@dataclass(slots=True)
class Opened:
    """An open container with its best stream and the packet table.

    `pts` are the shown frames' presentation times in ticks, ascending; `keys` those of the
    keyframes. `linear` says that times were unusable and frames count by order instead.
    """

    container: Any
    stream: Any
    info: VideoInfo
    pts: list[int]
    keys: list[int]
    linear: bool


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what PyAV raises into VideoUnreadable."""
    try:
        yield
    except (av.FFmpegError, UnicodeDecodeError, MemoryError, ValueError) as error:
        message = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoUnreadable(f"{Path(path).name} cannot be read as a video: {message}.", _REMEDY_CONVERT) from error


def check_file(path: str) -> str:
    """The absolute path of a readable, regular, non-empty file; raises VideoNotFound or VideoUnreadable."""
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
        raise VideoNotFound(f"{path} is a folder.", "Give one video file.")
    if not stat.S_ISREG(status.st_mode):
        raise VideoNotFound(f"{path} is not a regular file.", "Copy the video to a file first.")
    if status.st_size == 0:
        raise VideoUnreadable(f"{name} is empty (0 bytes).", "Fetch or copy it again.")
    if not os.access(absolute, os.R_OK):
        raise VideoUnreadable(f"{name} may not be read by this user.", "Change its permissions.")
    return absolute


def open_container(absolute: str) -> Any:
    """Open with local files only, real containers only and capped pixels."""
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "max_pixels": str(MAX_PIXELS)}
    with reading(absolute):
        return av.open(absolute, options=options, metadata_errors="replace")


def best_stream(container: Any, path: str) -> Any:
    """The largest video stream that is not a cover picture; raises VideoUnreadable if there is none."""
    name = Path(path).name
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        what = f"only {', '.join(kinds)}" if kinds else "no stream at all"
        raise VideoUnreadable(f"{name} has no video: it contains {what}.", "Give a file with a picture.")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoUnreadable(f"{name} uses a codec that FFmpeg does not know.", _REMEDY_CONVERT)
    return max(decodable, key=lambda stream: (stream.codec_context.width * stream.codec_context.height, -stream.index))


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def probe(path: str) -> Opened:
    """Open a file and learn all about its best video stream; raises VideoError children."""
    absolute = check_file(path)
    container = open_container(absolute)
    try:
        stream = best_stream(container, absolute)
        stream.thread_type = "AUTO"
        with reading(absolute):
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            pts, keys, shown = _scan(container, stream)
            first = _first_frame(container, stream, absolute)
            linear = None in shown or len(set(pts)) != len(pts) or not pts
            if linear:
                pts, keys = _decoded_times(container, stream), []
            container.seek(0)
        return Opened(container, stream, _info(path, container, stream, first, pts, linear), pts, keys, linear)
    except BaseException:
        container.close()
        raise


def _scan(container: Any, stream: Any) -> tuple[list[int], list[int], list[int | None]]:
    """Presentation times of the shown packets and of the keyframes, without decoding."""
    shown: list[int | None] = []
    keys = []
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            shown.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
    except av.FFmpegError:
        if not shown:
            raise  # a damaged tail is met again, and told, while decoding
    return sorted(pts for pts in shown if pts is not None), sorted(keys), shown


def _first_frame(container: Any, stream: Any, path: str) -> Any:
    container.seek(0)
    for frame in container.decode(stream):
        return frame
    raise VideoUnreadable(f"{Path(path).name} contains no picture that can be decoded.", _REMEDY_CONVERT)


def _decoded_times(container: Any, stream: Any) -> list[int]:
    """One tick per decoded frame, from its own time where that ascends, else by its order."""
    container.seek(0)
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    step = max(round(1 / rate / float(stream.time_base)), 1)
    ticks: list[int] = []
    try:
        for frame in container.decode(stream):
            after = ticks[-1] + step if ticks else 0
            ticks.append(frame.pts if frame.pts is not None and (not ticks or frame.pts > ticks[-1]) else after)
    except av.FFmpegError:
        if not ticks:
            raise
    return ticks


def _info(path: str, container: Any, stream: Any, first: Any, pts: list[int], linear: bool) -> VideoInfo:
    tick = float(stream.time_base)
    seconds = tuple(value * tick for value in pts)
    fps, fps_source = _rate(stream, seconds)
    constant = _is_constant(seconds, tick)
    rotation = round((first.rotation or 0) / 90) * 90 % 360
    aspect = float(stream.sample_aspect_ratio or 1)
    width, height = _shown_size(first.width, first.height, rotation, aspect)
    duration = seconds[-1] - seconds[0] + 1 / fps
    header, source = _header_duration(container, stream)
    return VideoInfo(
        path=path,
        container=container.format.name,
        codec=stream.codec_context.name,
        width=width,
        height=height,
        coded_width=first.width,
        coded_height=first.height,
        rotation_degrees=rotation,
        pixel_aspect=aspect,
        fps=fps,
        frame_count=len(pts),
        duration_seconds=duration,
        start_seconds=seconds[0],
        constant_rate=constant,
        pts_seconds=seconds,
        sources={
            "duration": "decoding" if linear else "packets",
            "fps": fps_source,
            "frames": "decoding" if linear else "packets",
            "rotation": "frame" if first.rotation else "default",
            "pixel_aspect": "header" if stream.sample_aspect_ratio else "default",
            "size": "frame",
        },
        notes=tuple(_notes(first, duration, header, source)),
    )


def _rate(stream: Any, seconds: tuple[float, ...]) -> tuple[float, str]:
    """Mean frames per second: the header's where the frames bear it out within 1 %."""
    header = float(stream.average_rate or stream.guessed_rate or 0)
    if len(seconds) < 2:
        return header or 1.0, "header" if header else "default"
    derived = (len(seconds) - 1) / (seconds[-1] - seconds[0])
    if header and abs(header / derived - 1) < 0.01:
        return header, "header"
    return derived, "derived"


def _is_constant(seconds: tuple[float, ...], tick: float) -> bool:
    """Whether frames follow each other evenly, to the rounding of the time base."""
    if len(seconds) < 3:
        return True
    steps = [after - before for before, after in pairwise(seconds)]
    mean = fmean(steps)
    return all(abs(step - mean) <= tick * 1.01 + mean * 0.01 for step in steps)


def _shown_size(width: int, height: int, rotation: int, aspect: float) -> tuple[int, int]:
    wide = max(round(width * aspect), 1)
    return (height, wide) if rotation % 180 else (wide, height)


def _header_duration(container: Any, stream: Any) -> tuple[float | None, str]:
    """The length that the header promises, if it is this stream's own."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base), "stream"
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base, "container"
    return None, "none"


def _notes(first: Any, duration: float, header: float | None, source: str) -> Iterator[str]:
    if (first.rotation or 0) % 90:
        yield f"The picture is rotated by {first.rotation}°; it is shown turned to the nearest right angle."
    if header is not None and source == "container" and duration < header * 0.95 - 0.5:
        yield f"The file looks truncated: {duration:.1f} s of {header:.1f} s are there."
