"""Opening of any file in this process, by its content: images with Pillow, everything else with FFmpeg."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from vidqa.errors import VideoUnreadable
from vidqa.types import NO_TIMES, Frame, PictureTimes, VideoInfo
from vidqa.video.change_signal import Scan
from vidqa.video.subtitle_files import OFF

_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_STILLS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftypmif1")  # sequences are for FFmpeg


class Source(Protocol):
    """Frames of one open file, decoded in a process apart or in this one."""

    stopped: str  # why decoding ended early; empty if it did not

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield a Frame per index (ascending, repeats allowed) until the end or the damage."""

    def scan(self, limit_seconds: float) -> Scan:
        """Scan the whole video for change for about `limit_seconds` at most: yield progress, return the signal."""

    def abandon(self) -> None:
        """Make `frames` end soon, from another thread."""

    def close(self) -> None:
        """Release the file."""


def open_in_process(
    path: str, stream: int | None = None, pictures: PictureTimes = NO_TIMES, subs: str = OFF
) -> tuple[VideoInfo, Source]:
    """Return the facts and the frames of a file's best or given stream; raise VideoError children.

    A folder is a video of numbered pictures, whose times follow from `pictures`. `subs` chooses the subtitles
    (`Request.subs`).
    """
    if os.path.isdir(path):
        from vidqa.video.image_sequence import ImageSequence  # most videos are files

        sequence = ImageSequence(path, os.path.abspath(path), pictures)
        return _with_subtitles(sequence.info, path, subs), sequence
    if _is_image(path):
        from vidqa.video.image_source import ImageSource  # most files need no Pillow

        image = ImageSource(path)
        return _with_subtitles(image.info, path, subs), image
    from vidqa.video.frame_decoder import FrameSource
    from vidqa.video.probe import probe

    opened = probe(path, stream)
    source = FrameSource(opened)
    try:
        return _with_subtitles(opened.info, path, subs, opened.container), source
    except BaseException:
        source.close()
        raise


def _with_subtitles(info: VideoInfo, path: str, subs: str, container: Any = None) -> VideoInfo:
    if subs == OFF:
        return info
    from vidqa.video.subtitle_reader import with_subtitles  # imports FFmpeg

    return with_subtitles(info, path, subs, container)


def _is_image(path: str) -> bool:
    """Return whether a file begins as PNG, JPEG, BMP, TIFF, WebP or a still AVIF or HEIC does."""
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError as error:
        raise VideoUnreadable(f"{Path(path).name} cannot be read: {error.strerror}.", "Copy it again.") from error
    return start.startswith(_IMAGES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP") or start[4:] in _STILLS
