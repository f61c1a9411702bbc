"""Opening of containers with FFmpeg: local files only, real containers only, capped pixels. Decodes nothing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av

from vidqa.errors import VideoUnreadable
from vidqa.video.size_limits import MAX_PIXELS, check_picture_size, out_of_memory_error

# What PyAV raises on damaged files; IndexError if a stream appears after opening.
UNREADABLE = (av.FFmpegError, UnicodeDecodeError, MemoryError, ValueError, IndexError)
REMEDY_FETCH = "Fetch or copy it again."
REMEDY_CONVERT = "Check that it plays, or convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,live_flv,ogg,asf,asf_o,gif,"
    "mxf,nut,ivf,obu,av1,rm,dv,vob,yuv4mpegpipe,wtv"
)
_INDEPENDENT = ("mov,", "matroska,")  # formats that find each stream's packets by themselves


@contextmanager
def as_video_errors(path: str) -> Iterator[None]:
    """Turn what PyAV raises into VideoUnreadable."""
    try:
        yield
    except MemoryError as error:
        raise out_of_memory_error(path) from error
    except UNREADABLE as error:
        message = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoUnreadable(f"{Path(path).name} cannot be read as a video: {message}.", REMEDY_CONVERT) from error


def open_container(absolute: str, read_seconds: float | None = None) -> Any:
    """Open a file with the allowed protocol and formats and capped pixels; raise VideoUnreadable.

    Reading a packet fails where it takes longer than `read_seconds`.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "max_pixels": str(MAX_PIXELS)}
    with as_video_errors(absolute):
        return av.open(absolute, options=options, metadata_errors="replace", timeout=(None, read_seconds))


def pixel_aspect(stream: Any) -> float:
    """Return width over height of a stream's pixels; 1 if the file gives none above 0, as players do."""
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio is not None and ratio > 0 else 1.0


def check_header_size(stream: Any, path: str) -> None:
    """Raise PictureTooLarge if a stream's header says that its pictures are too large."""
    context = stream.codec_context
    check_picture_size(Path(path).name, context.width, context.height, pixel_aspect(stream))


def size_checked(pictures: Iterable[Any], stream: Any, path: str) -> Iterator[Any]:
    """Yield decoded pictures; raise PictureTooLarge at the first that is too large."""
    name, aspect = Path(path).name, pixel_aspect(stream)
    for picture in pictures:
        check_picture_size(name, picture.width, picture.height, aspect)
        yield picture


def discard_other_streams(container: Any, stream: Any) -> None:
    """Let the demuxer skip sound and other streams, in formats where that does not change this one."""
    if container.format.name.startswith(_INDEPENDENT):
        for other in container.streams:
            other.discard = other.discard if other.index == stream.index else av.stream.Discard.all


def rewind(container: Any, stream: Any, *, by_bytes: bool = False) -> None:
    """Seek to the first packet, which may lie before time zero; `by_bytes` if times cannot be sought."""
    if by_bytes:
        container.seek(0, unsupported_byte_offset=True)
        return
    if (stream.start_time or 0) < 0:
        with suppress(av.FFmpegError):
            container.seek(stream.start_time, stream=stream, backward=True)
            return
    try:
        container.seek(0)
    except av.FFmpegError:
        container.seek(0, unsupported_byte_offset=True)  # a raw stream has no times to look up
