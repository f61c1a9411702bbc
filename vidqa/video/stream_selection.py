"""Which of a file's streams is the picture: as FFmpeg and players choose, or as asked.

Knows streams; decodes nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av

from vidqa.errors import VideoUnreadable
from vidqa.video.container import REMEDY_CONVERT, UNREADABLE, open_container

_MOST_PACKETS = 1000  # read to see which streams have more than one picture, where no header says so
_Disposition = av.stream.Disposition
_BESIDE = _Disposition.attached_pic | _Disposition.timed_thumbnails


def chosen_stream(container: Any, path: str, asked: int | None = None) -> Any:
    """The video stream that is shown, or the one of the asked index; raises VideoUnreadable if there is none.

    The best has more than one frame, is marked as default, and is the largest; covers and thumbnails are none.
    """
    name = Path(path).name
    if asked is not None:
        return _asked_stream(container, name, asked)
    streams = [stream for stream in container.streams.video if not stream.disposition & _BESIDE]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        what = f"only {', '.join(kinds)}" if kinds else "no stream at all"
        raise VideoUnreadable(f"{name} has no video: it contains {what}.", "Give a file with a picture.")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoUnreadable(f"{name} uses a codec that FFmpeg does not know.", REMEDY_CONVERT)
    if all(stream.disposition & _Disposition.dependent for stream in decodable):
        raise VideoUnreadable(
            f"{name} is one picture in {len(decodable)} tiles, which are put together in AVIF and HEIC stills only.",
            "Convert it to PNG or JPEG with another tool.",
        )
    moving = _moving(decodable, path)
    return max(decodable, key=lambda each: (each.index in moving, _is_default(each), _area(each), -each.index))


def choice_note(container: Any, chosen: Any, path: str, asked: int | None) -> Iterator[str]:
    """Say what else could be meant where nothing was asked for: every other stream with moving pictures."""
    others = [other for other in container.streams.video if not other.disposition & _BESIDE and other != chosen]
    if asked is not None or not others:
        return
    moving = _moving([chosen, *others], path)
    meant = [other for other in others if other.index in moving or chosen.index not in moving]
    if meant:
        told = ", ".join(f"--stream {other.index} ({_size(other)})" for other in meant)
        yield f"The file has {len(meant) + 1} videos: stream {chosen.index} ({_size(chosen)}) is taken; others: {told}."


def _asked_stream(container: Any, name: str, asked: int) -> Any:
    pictures = {stream.index: stream for stream in container.streams.video if stream.codec_context is not None}
    if asked in pictures:
        return pictures[asked]
    there = ", ".join(f"{index} ({_size(stream)})" for index, stream in pictures.items())
    remedy = f"Choose of: {there}." if there else "Give a file with a picture."
    raise VideoUnreadable(f"--stream {asked} of {name} is no video that can be decoded.", remedy)


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & _Disposition.default)


def _area(stream: Any) -> int:
    area: int = stream.codec_context.width * stream.codec_context.height
    return area


def _size(stream: Any) -> str:
    return f"{stream.codec_context.width}×{stream.codec_context.height}"


def _moving(streams: Sequence[Any], path: str) -> set[int]:
    """The indices of streams with more than one frame, as their headers say or else their first packets."""
    if len(streams) == 1 or all(stream.frames for stream in streams):
        return {stream.index for stream in streams if len(streams) == 1 or stream.frames > 1}
    wanted, seen = {stream.index for stream in streams}, Counter[int]()
    with open_container(path) as container:
        try:
            for place, packet in enumerate(container.demux(*(container.streams[index] for index in wanted))):
                seen[packet.stream.index] += packet.size > 0
                if place >= _MOST_PACKETS or all(seen[index] > 1 for index in wanted):
                    break
        except UNREADABLE:
            pass  # met again, and reported, when the packets are read
    return {index for index in wanted if seen[index] > 1}
