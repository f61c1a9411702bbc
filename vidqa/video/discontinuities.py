"""Streams whose clock jumps, as where transport streams were joined: their parts, laid one after the other.

Knows packets' times in ticks and places in the file; decodes nothing.
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT of libavformat/avformat.h: the format allows clocks that jump
_MOST_AHEAD_SECONDS = 10  # as ffmpeg's -dts_delta_threshold
_LEAST_BACK_SECONDS = 0.1  # as in ffmpeg's ts_discontinuity_process


@dataclass(slots=True)
class StreamPart:
    """Packets of one clock: times of shown ones, keyframes as (pts, dts, position), and where the last one ends."""

    position: int
    shown: list[int] = field(default_factory=list)
    keys: list[tuple[int, int, int | None]] = field(default_factory=list)
    end: int = 0


@dataclass(frozen=True, slots=True)
class JoinedStream:
    """Where parts begin, in bytes ascending; the ticks to add to their times; the bytes where keyframes begin."""

    positions: Sequence[int]
    shifts: Sequence[int]
    key_positions: Mapping[int, int]

    def laid(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Packets with the times of the parts laid one after the other; a packet without a place follows its part's."""
        place = 0
        for packet in packets:
            if packet.pos is not None:
                place = max(bisect.bisect_right(self.positions, packet.pos) - 1, 0)
            if shift := self.shifts[place]:
                packet.pts = None if packet.pts is None else packet.pts + shift
                packet.dts = None if packet.dts is None else packet.dts + shift
            yield packet


class JumpWatch:
    """Tells where the decoding times of a stream go back, or ahead by more than a clock would."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.possible = bool(container.format.flags & _TS_DISCONT)
        self._back = round(_LEAST_BACK_SECONDS / float(stream.time_base))
        self._ahead = round(_MOST_AHEAD_SECONDS / float(stream.time_base))
        self._last: int | None = None

    def jumps(self, packet: Any) -> bool:
        """Whether a part begins with this packet, which then has a place in the file."""
        dts, last = packet.dts, self._last
        if dts is None:
            return False
        jumped = last is not None and not last - self._back <= dts <= last + self._ahead
        if jumped and packet.pos is None:
            return False
        self._last = dts
        return jumped


def lay_out(parts: Iterable[StreamPart]) -> tuple[StreamPart, JoinedStream]:
    """All parts as one, each beginning where the one before it ends; how they were joined."""
    whole, positions, shifts, key_positions = StreamPart(0), list[int](), list[int](), dict[int, int]()
    for part in parts:
        if not part.shown:
            continue
        first, last = min(part.shown), max(part.shown)
        step = max((last - first) // max(len(part.shown) - 1, 1), 1)
        shift = whole.end - first if whole.shown else 0
        whole.shown += [pts + shift for pts in part.shown]
        whole.keys += [(pts + shift, dts + shift, place) for pts, dts, place in part.keys]
        whole.end = shift + (part.end if part.end > last else last + step)
        positions.append(part.position)
        shifts.append(shift)
    key_positions |= {pts: place for pts, _, place in whole.keys if place is not None}
    return whole, JoinedStream(positions, shifts, key_positions)
