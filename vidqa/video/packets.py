"""The packets of one video stream in ticks: every presentation time, the keyframes, and where the last one ends.

Times of long files come from the container's own index where it is shown to be right (container_index.py); otherwise
every packet is demuxed. Decodes nothing.
"""

from dataclasses import dataclass
from typing import Any

import av

from vidqa.video.container import UNREADABLE, as_video_errors, check_header_size, discard_other_streams, open_container
from vidqa.video.container_index import SUPPORTED_CODECS, UnsupportedIndex, ascending, verified_end
from vidqa.video.discontinuities import ClockJumpDetector, JoinedStream, StreamPart, join_parts
from vidqa.video.mkv_index import read_mkv_index
from vidqa.video.mp4_index import read_mp4_index
from vidqa.video.stream_selection import select_stream

_MIN_INDEXED_FRAMES = 10_000  # below that, demuxing every packet takes less than 50 ms
_INDEX_READERS = {"mov": read_mp4_index, "matroska": read_mkv_index}


@dataclass(frozen=True, slots=True)
class PacketTable:
    """The packets of a stream in ticks: shown ones ascending, keyframes (pts, dts), and where the last one ends.

    `usable`: every shown packet has its own time. `in_order`: they ascend as stored. `joined`: how the times
    were made to ascend if the stream's clock jumps.
    """

    pts: list[int]
    keyframes: list[tuple[int, int]]
    end: int
    usable: bool
    in_order: bool
    joined: JoinedStream | None = None


def open_with_packets(path: str, stream_index: int | None = None) -> tuple[Any, Any, PacketTable]:
    """Return an open container, its best or the given stream, and that stream's packets; raise VideoError children.

    A long file's packets come from its index if that is usable: the times are the same either way.
    """
    container, stream = _open(path, stream_index)
    try:
        if _expected_frames(container, stream) >= _MIN_INDEXED_FRAMES:
            if table := packets_from_index(path, container, stream):
                return container, stream, table
            stream_index = stream.index
            container.close()  # reopened, since seeking back need not find the very first packet
            container, stream = _open(path, stream_index)
        with as_video_errors(path):
            return container, stream, demux_packets(container, stream)
    except BaseException:
        container.close()
        raise


def _open(path: str, stream_index: int | None) -> tuple[Any, Any]:
    container = open_container(path)
    try:
        stream = select_stream(container, path, stream_index)
        check_header_size(stream, path)
        discard_other_streams(container, stream)
    except BaseException:
        container.close()
        raise
    return container, stream


def _expected_frames(container: Any, stream: Any) -> float:
    by_duration = float(stream.average_rate or 0) * (container.duration or 0) / av.time_base
    return max(float(stream.frames), by_duration)


def packets_from_index(path: str, container: Any, stream: Any) -> PacketTable | None:
    """Return the packets without demuxing them all, or None if that might give others; moves the container."""
    kind = container.format.name.split(",")[0]
    if stream.codec_context.codec.canonical_name not in SUPPORTED_CODECS.get(kind, ()):
        return None
    try:
        index = _INDEX_READERS[kind](path, stream)
        end = verified_end(index, container, stream)
    except (UnsupportedIndex, OSError, OverflowError, *UNREADABLE):
        return None
    return _table(index.shown(), index.keyframe_times(), end, timeless=0)


def demux_packets(container: Any, stream: Any) -> PacketTable:
    """Read all packets without decoding any."""
    part = StreamPart(0)
    parts, timeless, detector = [part], 0, ClockJumpDetector(container, stream)
    may_jump = detector.enabled
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if may_jump and detector.jumps_at(packet):
                part = StreamPart(packet.pos)
                parts.append(part)
            pts = packet.pts
            if pts is None:
                timeless += 1
                continue
            part.shown.append(pts)
            until = pts + (packet.duration or 0)
            if until > part.end:
                part.end = until
            if packet.is_keyframe:
                dts = packet.dts
                part.keyframes.append((pts, pts if dts is None else dts, packet.pos))
    except UNREADABLE:
        if not any(part.shown for part in parts):
            raise  # a damaged tail is reported while decoding
    whole, joined = (part, None) if len(parts) == 1 else join_parts(parts)
    keyframes = [(pts, dts) for pts, dts, _ in whole.keyframes]
    return _table(whole.shown, keyframes, whole.end, timeless, joined)


def _table(
    shown: list[int], keyframes: list[tuple[int, int]], end: int, timeless: int, joined: JoinedStream | None = None
) -> PacketTable:
    in_order = ascending(shown)
    pts = shown if in_order else sorted(shown)
    usable = bool(shown) and not timeless and (in_order or ascending(pts))
    return PacketTable(pts, sorted(keyframes), end, usable, in_order, joined)
