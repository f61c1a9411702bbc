"""How much memory this process may allocate while it decodes a file, and the error for a file that needs more.

Set in the decoding process alone; knows neither FFmpeg nor Pillow.
"""

import os
from contextlib import suppress
from pathlib import Path

from vidqa.errors import VideoUnreadable
from vidqa.units import format_bytes
from vidqa.video.bounds import decoding_limit_bytes


def limit_allocation(path: str) -> None:
    """Let decoding this file take no more memory than its size justifies: what is above raises MemoryError.

    Linux counts all that is allocated as data (RLIMIT_DATA); elsewhere the limit holds for a part of it, or not at all.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (decoding_limit_bytes(os.path.getsize(path)), hard))


def too_much_memory(path: str) -> VideoUnreadable:
    """The error for a file whose decoding ran out of the memory that this process may take."""
    limit = _limit_bytes()
    most = "there is" if limit is None else f"the {format_bytes(limit)} that a file of its size may take"
    return VideoUnreadable(
        f"{Path(path).name} takes more memory to decode than {most}.",
        "Convert it to smaller pictures: ffmpeg -i IN -vf scale=1920:-2 OUT",
    )


def _limit_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return None if soft == resource.RLIM_INFINITY else soft
