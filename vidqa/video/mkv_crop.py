"""PixelCrop of a Matroska track (RFC 9559, 5.1.4.1.28): FFmpeg reads it and leaves it to players to apply."""

from collections.abc import Iterator

from vidqa.video.geometry import Crop

_SEGMENT, _TRACKS, _TRACK, _TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0
_PICTURES = b"\x01"
_LEFT, _TOP, _RIGHT, _BOTTOM = 0x54CC, 0x54BB, 0x54DD, 0x54AA
_MOST_BYTES = 2**20  # of the tracks: they describe, and hold no picture
_MOST_ELEMENTS = 100_000  # before the tracks, which an editor may have moved to the end
_HEAD_BYTES = 12


def matroska_crop(path: str, place: int) -> Crop:
    """What the header crops of the track at a place, from 0, among those of pictures; nothing where none is found."""
    with open(path, "rb") as file:
        at = 0
        for _ in range(_MOST_ELEMENTS):
            file.seek(at)
            head = _head(file.read(_HEAD_BYTES))
            if head is None:
                break
            kind, start, size = head
            if kind == _TRACKS:
                file.seek(at + start)
                return _crop(file.read(_MOST_BYTES if size is None else min(size, _MOST_BYTES)), place)
            if kind != _SEGMENT and size is None:
                break
            at += start if kind == _SEGMENT else start + (size or 0)
    return Crop()


def _crop(tracks: bytes, place: int) -> Crop:
    entries = [dict(_elements(entry)) for kind, entry in _elements(tracks) if kind == _TRACK]
    pictures = [entry for entry in entries if entry.get(_TYPE) == _PICTURES]
    if place >= len(pictures) or _VIDEO not in pictures[place]:
        return Crop()
    values = {name: int.from_bytes(value, "big") for name, value in _elements(pictures[place][_VIDEO])}
    return Crop(*(values.get(side, 0) for side in (_LEFT, _TOP, _RIGHT, _BOTTOM)))


def _head(data: bytes, at: int = 0) -> tuple[int, int, int | None] | None:
    """(id, where its content begins, length of that or None for unknown) of an element; None where there is none."""
    name = 9 - data[at].bit_length() if at < len(data) else 9
    length = 9 - data[at + name].bit_length() if at + name < len(data) else 9
    if name > 4 or length > 8:
        return None
    start = at + name + length
    mask = (1 << 7 * length) - 1
    size = int.from_bytes(data[at + name : start], "big") & mask
    return int.from_bytes(data[at : at + name], "big"), start, None if size == mask else size


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(id, content) of elements side by side; what is cut off or of unknown size goes to the end."""
    at = 0
    while (head := _head(data, at)) is not None:
        kind, start, size = head
        end = len(data) if size is None else start + size
        yield kind, data[start:end]
        at = end
