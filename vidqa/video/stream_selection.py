"""Selection of a file's video stream: as FFmpeg and players choose, or by index. Decodes nothing."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av

from vidqa.errors import VideoUnreadable
from vidqa.video.container import REMEDY_CONVERT, UNREADABLE, open_container

_MAX_PACKETS = 1000  # to find streams of more than one picture if their headers do not say
_Disposition = av.stream.Disposition
_COVERS = _Disposition.attached_pic | _Disposition.timed_thumbnails


def select_stream(container: Any, path: str, index: int | None = None) -> Any:
    """Return the best video stream, or the one of an index; raise VideoUnreadable if there is none.

    The best has more than one frame, is marked as default, and is the largest. Covers and thumbnails do not count.
    """
    name = Path(path).name
    if index is not None:
        return _stream_at(container, name, index)
    streams = [stream for stream in container.streams.video if not stream.disposition & _COVERS]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        what = f"only {', '.join(kinds)}" if kinds else "no stream at all"
        raise VideoUnreadable(f"{name} has no video: it contains {what}.", "Give a file with a picture.")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoUnreadable(f"{name} uses a codec that FFmpeg does not know.", REMEDY_CONVERT)
    if all(stream.disposition & _Disposition.dependent for stream in decodable):
        raise VideoUnreadable(
            f"{name} is one picture in {len(decodable)} tiles, which are joined in AVIF and HEIC stills only.",
            "Convert it to PNG or JPEG with another tool.",
        )
    moving = _moving(decodable, path)
    return max(decodable, key=lambda stream: _rank(stream, moving))


def choice_note(container: Any, selected: Any, path: str, index: int | None) -> Iterator[str]:
    """Yield a note of the other streams with moving pictures if no index was given."""
    others = [other for other in container.streams.video if not other.disposition & _COVERS and other != selected]
    if index is not None or not others:
        return
    moving = _moving([selected, *others], path)
    candidates = [other for other in others if other.index in moving or selected.index not in moving]
    if candidates:
        listed = ", ".join(f"--stream {other.index} ({_size(other)})" for other in candidates)
        count, size = len(candidates) + 1, _size(selected)
        yield f"The file has {count} videos: stream {selected.index} ({size}) is taken; others: {listed}."


def _stream_at(container: Any, name: str, index: int) -> Any:
    pictures = {stream.index: stream for stream in container.streams.video if stream.codec_context is not None}
    if index in pictures:
        return pictures[index]
    available = ", ".join(f"{number} ({_size(stream)})" for number, stream in pictures.items())
    remedy = f"Choose one of: {available}." if available else "Give a file with a picture."
    raise VideoUnreadable(f"--stream {index} of {name} is no video that can be decoded.", remedy)


def _rank(stream: Any, moving: set[int]) -> tuple[bool, bool, int, int]:
    area = stream.codec_context.width * stream.codec_context.height
    return stream.index in moving, bool(stream.disposition & _Disposition.default), area, -stream.index


def _size(stream: Any) -> str:
    return f"{stream.codec_context.width}×{stream.codec_context.height}"


def _moving(streams: Sequence[Any], path: str) -> set[int]:
    """Return the indices of streams with more than one frame, by their headers or else their first packets."""
    if len(streams) == 1 or all(stream.frames for stream in streams):
        return {stream.index for stream in streams if len(streams) == 1 or stream.frames > 1}
    wanted, seen = {stream.index for stream in streams}, Counter[int]()
    with open_container(path) as container:
        try:
            for place, packet in enumerate(container.demux(*(container.streams[index] for index in wanted))):
                seen[packet.stream.index] += packet.size > 0
                if place >= _MAX_PACKETS or all(seen[index] > 1 for index in wanted):
                    break
        except UNREADABLE:
            pass  # reported when the packets are read
    return {index for index in wanted if seen[index] > 1}
