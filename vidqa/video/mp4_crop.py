"""Clean aperture of an MP4 or QuickTime track (`clap`, ISO 14496-12, 12.1.4): FFmpeg leaves it to players to apply."""

import os
from struct import unpack
from typing import BinaryIO

from vidqa.video.geometry import Crop
from vidqa.video.mp4_boxes import boxes_in, bytes_at, first, track_id
from vidqa.video.packet_index import UnsupportedIndex

_FIELDS_BYTES = 78  # of a visual sample entry, before the boxes in it
_CONTENT_BYTES = 32  # of the clean aperture
_HEAD_BYTES = 8  # of the list of sample entries


def mp4_crop(path: str, track: int, width: int, height: int) -> Crop:
    """What the clean aperture of a track leaves out of pictures of a size in pixels; nothing where it has none."""
    with open(path, "rb") as file:
        try:
            return _crop(_aperture(file, os.fstat(file.fileno()).st_size, track), width, height)
        except UnsupportedIndex:
            return Crop()


def _aperture(file: BinaryIO, size: int, track: int) -> bytes:
    """The content of the box; raises UnsupportedIndex where the track has none, or boxes do not add up before it."""
    for kind, begin, end in boxes_in(file, *first(file, 0, size, b"moov")):
        if kind == b"trak" and track_id(file, *first(file, begin, end, b"tkhd")) == track:
            for inner in (b"mdia", b"minf", b"stbl", b"stsd"):
                begin, end = first(file, begin, end, inner)
            begin, end = first(file, begin + _HEAD_BYTES, end)
            begin, end = first(file, begin + _FIELDS_BYTES, end, b"clap")
            return bytes_at(file, begin, min(end - begin, _CONTENT_BYTES))
    raise UnsupportedIndex("no such track")


def _crop(aperture: bytes, width: int, height: int) -> Crop:
    """Fractions are those of the aperture's width and height, and of how far its middle is off the picture's.

    Half pixels at its sides stay. One that reaches beyond the picture is none, as for FFmpeg.
    """
    if len(aperture) < _CONTENT_BYTES:
        return Crop()
    wide, tall, right, down = (over / under if under else 0.0 for over, under in _fractions(aperture))
    x, y = (width - wide) / 2, (height - tall) / 2
    sides = (x + right, y + down, x - right, y - down)
    return Crop(*map(int, sides)) if min(sides) >= 0 < min(wide, tall) else Crop()


def _fractions(aperture: bytes) -> list[tuple[int, int]]:
    """(numerator, denominator) of each; only numerators of offsets may be negative."""
    numbers = unpack(">IIIIiIiI", aperture)
    return list(zip(numbers[::2], numbers[1::2], strict=True))
