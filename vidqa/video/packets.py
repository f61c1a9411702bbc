"""The packets of one video stream in ticks: every presentation time, the keyframes, and where the last one ends.

A long file's times are looked up in the container's own table where that is shown to be the same
(lookup.py); otherwise every packet is demuxed. Decodes nothing; knows no seconds.
"""

from dataclasses import dataclass
from typing import Any

import av

from vidqa.video.container import (
    UNREADABLE,
    check_header_size,
    leave_out_others,
    open_container,
    reading,
)
from vidqa.video.container_index import look_up
from vidqa.video.discontinuities import JoinedStream, JumpWatch, StreamPart, lay_out
from vidqa.video.packet_index import ascending
from vidqa.video.stream_selection import chosen_stream

_MANY_FRAMES = 10_000  # below that, reading every packet takes less than 50 ms


@dataclass(frozen=True, slots=True)
class PacketTable:
    """The packets of a stream in ticks: shown ones ascending, keyframes (pts, dts), and where the last one ends.

    `usable`: every shown packet has its own time. `in_order`: they ascend as stored. `joined`: how the times
    were made to ascend where the stream's clock jumps.
    """

    pts: list[int]
    keys: list[tuple[int, int]]
    end: int
    usable: bool
    in_order: bool
    joined: JoinedStream | None = None


def open_with_packets(path: str, asked_stream: int | None = None) -> tuple[Any, Any, PacketTable]:
    """An open container, its best or the asked stream and that stream's packets; raises VideoError children.

    The packets are looked up in a long file that allows it, else read: the times are the same either way.
    """
    container, stream = _open(path, asked_stream)
    try:
        if _expected_frames(container, stream) >= _MANY_FRAMES:
            if table := looked_up(path, container, stream):
                return container, stream, table
            asked_stream = stream.index
            container.close()  # a new one, for a seek back need not find the very first packet
            container, stream = _open(path, asked_stream)
        with reading(path):
            return container, stream, read(container, stream)
    except BaseException:
        container.close()
        raise


def _open(path: str, asked_stream: int | None) -> tuple[Any, Any]:
    container = open_container(path)
    try:
        stream = chosen_stream(container, path, asked_stream)
        check_header_size(stream, path)
        leave_out_others(container, stream)
    except BaseException:
        container.close()
        raise
    return container, stream


def _expected_frames(container: Any, stream: Any) -> float:
    by_duration = float(stream.average_rate or 0) * (container.duration or 0) / av.time_base
    return max(float(stream.frames), by_duration)


def looked_up(path: str, container: Any, stream: Any) -> PacketTable | None:
    """The table without reading the packets, or None where it might not be the same; the container is left anywhere."""
    found = look_up(path, container, stream)
    return None if found is None else _table(found.shown, found.keys, found.end, timeless=0)


def read(container: Any, stream: Any) -> PacketTable:
    """Read all packets without decoding any."""
    part = StreamPart(0)
    parts, timeless, watch = [part], 0, JumpWatch(container, stream)
    may_jump = watch.possible
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if may_jump and watch.jumps(packet):
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
                part.keys.append((pts, pts if dts is None else dts, packet.pos))
    except UNREADABLE:
        if not any(part.shown for part in parts):
            raise  # a damaged tail is met again, and told, while decoding
    whole, joined = (part, None) if len(parts) == 1 else lay_out(parts)
    keys = [(pts, dts) for pts, dts, _ in whole.keys]
    return _table(whole.shown, keys, whole.end, timeless, joined)


def _table(
    shown: list[int], keys: list[tuple[int, int]], end: int, timeless: int, joined: JoinedStream | None = None
) -> PacketTable:
    in_order = ascending(shown)
    pts = shown if in_order else sorted(shown)
    usable = bool(shown) and not timeless and (in_order or ascending(pts))
    return PacketTable(pts, sorted(keys), end, usable, in_order, joined)
