"""Joining of streams whose clock jumps, for example concatenated transport streams. Decodes nothing."""

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT of libavformat/avformat.h: the format allows clocks that jump
_MAX_AHEAD_SECONDS = 10  # as ffmpeg's -dts_delta_threshold
_MIN_BACK_SECONDS = 0.1  # as in ffmpeg's ts_discontinuity_process


@dataclass(slots=True)
class StreamPart:
    """Packets of one clock: times of shown ones, keyframes as (pts, dts, position), and where the last one ends."""

    position: int
    shown: list[int] = field(default_factory=list)
    keyframes: list[tuple[int, int, int | None]] = field(default_factory=list)
    end: int = 0


@dataclass(frozen=True, slots=True)
class JoinedStream:
    """How parts were joined: their positions in bytes, ticks added to their times, positions of keyframes by time."""

    positions: Sequence[int]
    shifts: Sequence[int]
    key_positions: Mapping[int, int]

    def shifted(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Yield packets with the joined times; a packet without a position belongs to the part of the one before."""
        number = 0
        for packet in packets:
            if packet.pos is not None:
                number = max(bisect.bisect_right(self.positions, packet.pos) - 1, 0)
            if shift := self.shifts[number]:
                packet.pts = None if packet.pts is None else packet.pts + shift
                packet.dts = None if packet.dts is None else packet.dts + shift
            yield packet


class ClockJumpDetector:
    """Detects where the decoding times of a stream go back, or ahead by more than a clock would."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.enabled = bool(container.format.flags & _TS_DISCONT)
        self._back = round(_MIN_BACK_SECONDS / float(stream.time_base))
        self._ahead = round(_MAX_AHEAD_SECONDS / float(stream.time_base))
        self._last: int | None = None

    def jumps_at(self, packet: Any) -> bool:
        """Return whether a new part begins with this packet; one without a position in the file begins none."""
        dts, last = packet.dts, self._last
        if dts is None:
            return False
        jumped = last is not None and not last - self._back <= dts <= last + self._ahead
        if jumped and packet.pos is None:
            return False
        self._last = dts
        return jumped


def join_parts(parts: Iterable[StreamPart]) -> tuple[StreamPart, JoinedStream]:
    """Return all parts as one, each beginning where the one before it ends, and how they were joined."""
    whole, positions, shifts, key_positions = StreamPart(0), list[int](), list[int](), dict[int, int]()
    for part in parts:
        if not part.shown:
            continue
        first, last = min(part.shown), max(part.shown)
        step = max((last - first) // max(len(part.shown) - 1, 1), 1)
        shift = whole.end - first if whole.shown else 0
        whole.shown += [pts + shift for pts in part.shown]
        whole.keyframes += [(pts + shift, dts + shift, position) for pts, dts, position in part.keyframes]
        whole.end = shift + (part.end if part.end > last else last + step)
        positions.append(part.position)
        shifts.append(shift)
    key_positions |= {pts: position for pts, _, position in whole.keyframes if position is not None}
    return whole, JoinedStream(positions, shifts, key_positions)
