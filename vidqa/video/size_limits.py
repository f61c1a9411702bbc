"""Limits on the size of pictures and on the memory that decoding a file may take.

Sizes are checked as the header says them, before anything is decoded, and again for every decoded picture, since a
stream can change its size. The memory limit is set in the decoding process alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidqa.errors import PictureTooLarge, VideoError, VideoUnreadable
from vidqa.utils.units import format_bytes
from vidqa.video.picture_folder import largest_picture_bytes

MAX_PIXELS = 8192 * 4352
MAX_SIDE = 32_767  # the longest side that Chromium plays (media/base/limits.h) and that browsers draw
MAX_ASPECT = 200  # qwen-vl-utils 0.0.14, smart_resize

REMEDY_SMALLER = "Make them smaller or crop them: ffmpeg -i IN -vf scale=1920:-2 OUT, ffmpeg -i IN -vf crop=W:H OUT"

# A decoder may take this much for any file, and more for a larger one: a few kilobytes must not take gigabytes. 12
# frames of 8K HEVC took 0.75 GiB with one thread and 1.1 GiB with eight; such a video has megabytes for every second.
_BASE_BYTES = 560 * 2**20
_BYTES_PER_FILE_BYTE = 64
_MAX_BYTES = 12 * 2**30
_BYTES_PER_THREAD_PIXEL = 9  # 8-bit 4:2:0 at twice the pictures that a thread was seen to hold; 10 bits take double


def check_picture_size(name: str, width: int, height: int, pixel_aspect: float = 1.0) -> None:
    """Raise PictureTooLarge if a picture is too large or too long, as stored or as shown.

    `width` and `height` are in pixels as stored; 0 is unknown and passes. `pixel_aspect` is the width of a pixel over
    its height. An absurd one is not ignored: FFmpeg's players stretch the picture by it, and Chromium refuses the file.
    """
    if width < 1 or height < 1:
        return
    stored = f"{width}×{height}"
    if width * height > MAX_PIXELS:
        found = f"{stored} = {width * height:,} pixels; at most {MAX_PIXELS:,} are decoded."
        raise PictureTooLarge(f"{name} has pictures of {found}", REMEDY_SMALLER)
    if fault := _shape_fault(width, height):
        raise PictureTooLarge(f"{name} has pictures of {stored}{fault}", REMEDY_SMALLER)
    if fault := _shape_fault(width * pixel_aspect, height):
        raise PictureTooLarge(
            f"{name} has pixels {pixel_aspect:,.6g} times as wide as high: its pictures of {stored} are shown at "
            f"{width * pixel_aspect:,.1f}×{height:,}{fault}",
            "Give it another aspect: ffmpeg -i IN -c copy -aspect 16:9 OUT",
        )


def _shape_fault(width: float, height: float) -> str:
    """Return the rule that a shape breaks, as the end of a sentence; empty if it breaks none."""
    short, long = sorted((width, height))
    if long > MAX_SIDE:
        return f"; a side of at most {MAX_SIDE:,} pixels is decoded."
    if long > short * MAX_ASPECT:
        return f", longer than {MAX_ASPECT}:1, which the models do not take."
    return ""


def decoding_limit_bytes(file_bytes: int) -> int:
    """Return how many bytes of memory a process may take to decode a file of this size."""
    return min(_BASE_BYTES + _BYTES_PER_FILE_BYTE * file_bytes, _MAX_BYTES)


def decoding_threads(file_bytes: int, width: int, height: int, most: int, *, hdr: bool = False) -> int:
    """Return how many threads may decode pictures of a size at once, 1 to `most`; each thread holds pictures.

    HDR has 10 bits or more, and leaves room for a picture of 16 bits that is mapped.
    """
    each = _BYTES_PER_THREAD_PIXEL * (2 if hdr else 1) * max(width * height, 1)
    return min(max(decoding_limit_bytes(file_bytes) // each, 1), most)


@contextmanager
def limited_allocation(path: str) -> Iterator[None]:
    """Limit this process's memory to what the file's size justifies; allocations above it raise MemoryError.

    Linux counts all allocated data (RLIMIT_DATA); other systems count a part of it, or none.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError, VideoError):  # the file is gone, or the limit is lower already
        size = largest_picture_bytes(path) if os.path.isdir(path) else os.path.getsize(path)
        resource.setrlimit(resource.RLIMIT_DATA, (decoding_limit_bytes(size), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def out_of_memory_error(path: str) -> VideoUnreadable:
    """Return the error for a file whose decoding ran out of memory."""
    limit = _data_limit_bytes()
    most = "there is" if limit is None else f"the {format_bytes(limit)} that a file of its size may take"
    return VideoUnreadable(
        f"{Path(path).name} takes more memory to decode than {most}.",
        "Convert it to smaller pictures: ffmpeg -i IN -vf scale=1920:-2 OUT",
    )


def _data_limit_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return None if soft == resource.RLIM_INFINITY else soft
