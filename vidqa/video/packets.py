"""The packets of one video stream in ticks: every presentation time, the keyframes, and where the last one ends.

A long file's times are looked up in the container's own table where that is proven to be the same
(stored_packets.py); otherwise every packet is demuxed. Decodes nothing; knows no seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from operator import lt
from typing import Any

import av

from vidqa.video.stored_packets import look_up

# What PyAV raises on damaged files; IndexError where a stream turns up after opening.
UNREADABLE = (av.FFmpegError, UnicodeDecodeError, MemoryError, ValueError, IndexError)
_MANY_FRAMES = 10_000  # below that, reading every packet takes less than 50 ms


@dataclass(frozen=True, slots=True)
class PacketTable:
    """The packets of a stream in ticks: shown ones ascending, keyframes (pts, dts), and where the last one ends.

    `usable`: every shown packet has a time of its own. `in_order`: they ascend as stored.
    """

    pts: list[int]
    keys: list[tuple[int, int]]
    end: int
    usable: bool
    in_order: bool


def packet_table(path: str, container: Any, stream: Any) -> PacketTable:
    """Looked up in a long file that allows it, else read; the times are the same either way."""
    table = looked_up(path, container, stream) if _expected_frames(container, stream) >= _MANY_FRAMES else None
    return table or read(container, stream)


def _expected_frames(container: Any, stream: Any) -> float:
    return max(stream.frames, float(stream.average_rate or 0) * (container.duration or 0) / av.time_base)


def looked_up(path: str, container: Any, stream: Any) -> PacketTable | None:
    """The table without reading the packets, or None where it might not be the same."""
    stored = look_up(path, container, stream)
    if stored is None:
        return None
    return _table(stored.shown(), stored.key_times(), stored.end, timeless=0)


def read(container: Any, stream: Any) -> PacketTable:
    """Read all packets without decoding any."""
    shown: list[int] = []
    keys: list[tuple[int, int]] = []
    end, timeless = 0, 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            pts = packet.pts
            if pts is None:
                timeless += 1
                continue
            shown.append(pts)
            until = pts + (packet.duration or 0)
            if until > end:
                end = until
            if packet.is_keyframe:
                dts = packet.dts
                keys.append((pts, pts if dts is None else dts))
    except UNREADABLE:
        if not shown:
            raise  # a damaged tail is met again, and told, while decoding
    return _table(shown, keys, end, timeless)


def _table(shown: list[int], keys: list[tuple[int, int]], end: int, timeless: int) -> PacketTable:
    in_order = ascending(shown)
    pts = shown if in_order else sorted(shown)
    usable = bool(shown) and not timeless and (in_order or ascending(pts))
    return PacketTable(pts, sorted(keys), end, usable, in_order)


def ascending(values: Sequence[int]) -> bool:
    """Whether each is larger than the one before."""
    return all(map(lt, values, islice(values, 1, None)))
