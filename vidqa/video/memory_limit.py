"""How much memory this process may allocate while it decodes a file, and the error for a file that needs more.

Set in the decoding process alone; knows neither FFmpeg nor Pillow.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidqa.errors import VideoError, VideoUnreadable
from vidqa.utils.units import format_bytes
from vidqa.video.picture_folder import largest_picture_bytes
from vidqa.video.size_limits import decoding_limit_bytes


@contextmanager
def limited_allocation(path: str) -> Iterator[None]:
    """Let this process take no more memory than the file's size justifies: what is above raises MemoryError.

    Linux counts all that is allocated as data (RLIMIT_DATA); elsewhere the limit holds for a part of it, or not at all.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(OSError, ValueError, VideoError):  # the file is gone, or the limit is lower already
        resource.setrlimit(resource.RLIMIT_DATA, (decoding_limit_bytes(_file_bytes(path)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def too_much_memory(path: str) -> VideoUnreadable:
    """The error for a file whose decoding ran out of the memory that this process may take."""
    limit = _limit_bytes()
    most = "there is" if limit is None else f"the {format_bytes(limit)} that a file of its size may take"
    return VideoUnreadable(
        f"{Path(path).name} takes more memory to decode than {most}.",
        "Convert it to smaller pictures: ffmpeg -i IN -vf scale=1920:-2 OUT",
    )


def _file_bytes(path: str) -> int:
    """The size of a file, or of the largest picture in a folder of them."""
    return largest_picture_bytes(path) if os.path.isdir(path) else os.path.getsize(path)


def _limit_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return None if soft == resource.RLIM_INFINITY else soft
