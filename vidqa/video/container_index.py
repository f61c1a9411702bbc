"""Packet times from a container's own index, and the check that the demuxer gives the same ones.

Supports well-formed MP4, QuickTime and Matroska with a codec whose packets FFmpeg passes on as stored. The index is
compared with demuxed packets at the start, in the middle and at the end of the file; any difference means that every
packet must be demuxed instead. Decodes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import lt
from typing import Any

# FFmpeg splits or joins the packets of other codecs, for example of MPEG-2 anywhere and VP9 in MP4.
SUPPORTED_CODECS = {
    "mov": {"h264", "hevc", "av1", "mpeg4", "prores", "mjpeg"},
    "matroska": {"h264", "hevc", "av1", "vp8", "vp9"},
}
_COMPARED_PACKETS = 64  # at the start and in the middle
_MAX_TAIL_PACKETS = 4096  # after the last keyframe: beyond that, demuxing all packets is as fast


class UnsupportedIndex(Exception):
    """The index is unusual or wrong. Does not leave the package: the packets are demuxed instead."""


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """Packets in the order of storage; times in ticks, keyframes and hidden packets as positions in that order.

    `dts` is empty if the container stores none. `keyframes` ascend; `hidden` packets are discarded by an edit list.
    `end` is the last moment that a packet with a stored duration reaches.
    """

    pts: list[int]
    dts: list[int]
    keyframes: list[int]
    hidden: frozenset[int]
    end: int

    def shown(self) -> list[int]:
        """Return the presentation times of packets that are not hidden."""
        hidden = self.hidden
        return [pts for position, pts in enumerate(self.pts) if position not in hidden] if hidden else self.pts

    def keyframe_times(self) -> list[tuple[int, int]]:
        """Return (pts, dts) of keyframes that are not hidden."""
        dts = self.dts or self.pts
        return [(self.pts[position], dts[position]) for position in self.keyframes if position not in self.hidden]


def ascending(values: Sequence[int]) -> bool:
    """Return whether each value is larger than the one before."""
    return all(map(lt, values, islice(values, 1, None)))


def verified_end(index: PacketIndex, container: Any, stream: Any) -> int:
    """Return where the last packet ends, in ticks; raise UnsupportedIndex if demuxed packets differ from the index.

    The index readers check the form of a table. What a well-formed table leaves open (a shift of all times, which
    pictures are keyframes, where the file ends) is wrong everywhere, or from some packet to the end.
    Moves the container.
    """
    keyframes = frozenset(index.keyframes)
    if _compare(index, keyframes, islice(_packets(container, stream), _COMPARED_PACKETS))[0] != 0:
        raise UnsupportedIndex("the demuxer begins elsewhere")
    container.seek(index.pts[index.keyframes[len(index.keyframes) // 2]], stream=stream, backward=True)
    _compare(index, keyframes, islice(_packets(container, stream), _COMPARED_PACKETS))
    container.seek(index.pts[index.keyframes[-1]], stream=stream, backward=True)
    first, after_last, end = _compare(index, keyframes, islice(_packets(container, stream), _MAX_TAIL_PACKETS))
    if after_last != len(index.pts) or max(index.end, max(index.pts[:first], default=0)) > end:
        raise UnsupportedIndex("the last packets are not the last to be shown")
    return end


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(stream) if packet.size)


def _compare(index: PacketIndex, keyframes: frozenset[int], packets: Iterable[Any]) -> tuple[int, int, int]:
    """Return positions of the first packet and after the last one, and where they end; raise if one differs."""
    first, position, end = -1, 0, 0
    for packet in packets:
        if first < 0:
            first = position = index.pts.index(packet.pts)
        if position >= len(index.pts) or not _is_same(packet, index, position, keyframes):
            raise UnsupportedIndex(f"packet {position} differs")
        if not packet.is_discard:
            end = max(end, packet.pts + (packet.duration or 0))
        position += 1
    return first, position, end


def _is_same(packet: Any, index: PacketIndex, position: int, keyframes: frozenset[int]) -> bool:
    same_dts = not index.dts or packet.dts == index.dts[position]
    same_flags = (packet.is_keyframe, packet.is_discard) == (position in keyframes, position in index.hidden)
    return packet.pts == index.pts[position] and same_dts and same_flags
