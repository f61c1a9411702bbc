"""Any file to its facts and its frames, in this process: images by Pillow, all else by FFmpeg.

What a file is, its content tells, not its name.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vidqa.errors import VideoUnreadable
from vidqa.types import NO_TIMES, PictureTimes, VideoInfo
from vidqa.video.container import REMEDY_FETCH
from vidqa.video.frame_decoder import FrameSource
from vidqa.video.probe import check_file, probe

if TYPE_CHECKING:
    from vidqa.video.reader import Source

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_STILLS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftypmif1")  # sequences are FFmpeg's


def open_here(path: str, stream: int | None = None, pictures: PictureTimes = NO_TIMES) -> "tuple[VideoInfo, Source]":
    """A file's facts and where its frames come from, of the best or the asked stream; raises VideoError children.

    A folder is opened as a video of numbered pictures, whose times follow from `pictures`.
    """
    absolute = check_file(path)
    if os.path.isdir(absolute):
        from vidqa.video.image_sequence import ImageSequence  # late: most videos are files

        sequence = ImageSequence(path, absolute, pictures)
        return sequence.info, sequence
    if _is_image(absolute):
        from vidqa.video.image_source import ImageSource  # late: most files need no Pillow

        image = ImageSource(path, absolute)
        return image.info, image
    opened = probe(path, stream)
    return opened.info, FrameSource(opened)


def probe_facts(path: str, stream: int | None = None, pictures: PictureTimes = NO_TIMES) -> VideoInfo:
    """What opening a file tells, with the file closed again; raises VideoError children."""
    info, source = open_here(path, stream, pictures)
    source.close()
    return info


def _is_image(absolute: str) -> bool:
    """Whether a file begins as PNG, JPEG, BMP, TIFF, WebP or a still AVIF or HEIC does."""
    try:
        with open(absolute, "rb") as file:
            start = file.read(12)
    except OSError as error:
        raise VideoUnreadable(f"{Path(absolute).name} cannot be read: {error.strerror}.", REMEDY_FETCH) from error
    return start.startswith(_IMAGES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP") or start[4:] in _STILLS
