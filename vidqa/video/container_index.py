"""Packet times out of a container's own table, and the check that the demuxer gives the same.

Only well-formed MP4, QuickTime and Matroska, with a codec whose packets FFmpeg passes on as they are stored. What was
looked up is compared with demuxed packets at the start, in the middle and at the end; anything unusual anywhere
gives None, and then every packet is read. Decodes nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vidqa.video.container import UNREADABLE
from vidqa.video.mkv_index import matroska_table
from vidqa.video.mp4_index import mp4_table
from vidqa.video.packet_index import PacketIndex, UnsupportedIndex

_TABLES = {"mov": mp4_table, "matroska": matroska_table}
# FFmpeg cuts the packets of others anew, for example MPEG-2 anywhere and VP9 in MP4.
_PASSED_ON = {
    "mov": {"h264", "hevc", "av1", "mpeg4", "prores", "mjpeg"},
    "matroska": {"h264", "hevc", "av1", "vp8", "vp9"},
}
_COMPARED = 64  # packets at the start and in the middle
_LONGEST_TAIL = 4096  # packets after the last keyframe: beyond that, reading them all is as good


@dataclass(frozen=True, slots=True)
class IndexedPackets:
    """Shown packets' times as stored, keyframes' (pts, dts) and where the last packet ends, in ticks."""

    shown: list[int]
    keys: list[tuple[int, int]]
    end: int


def look_up(path: str, container: Any, stream: Any) -> IndexedPackets | None:
    """Times without reading the packets; None where that might not be what the demuxer gives.

    The container is left anywhere.
    """
    kind = container.format.name.split(",")[0]
    if stream.codec_context.codec.canonical_name not in _PASSED_ON.get(kind, ()):
        return None
    try:
        stored = _TABLES[kind](path, stream)
        end = _confirmed_end(stored, container, stream)
    except (UnsupportedIndex, OSError, OverflowError, *UNREADABLE):
        return None
    return IndexedPackets(_shown(stored), _keys(stored), end)


def _shown(stored: PacketIndex) -> list[int]:
    hidden = stored.hidden
    return [pts for place, pts in enumerate(stored.pts) if place not in hidden] if hidden else stored.pts


def _keys(stored: PacketIndex) -> list[tuple[int, int]]:
    dts = stored.dts or stored.pts
    return [(stored.pts[place], dts[place]) for place in stored.keys if place not in stored.hidden]


def _confirmed_end(stored: PacketIndex, container: Any, stream: Any) -> int:
    """Where the last packet ends; raises Unusual unless the demuxed packets are the stored ones.

    The table readers vouch for the form; what a well-formed table leaves open (a shift, the place of a packet in the
    table, which pictures count as keyframes, where the file ends) is off everywhere, or from some packet to the end.
    """
    keys = frozenset(stored.keys)
    if _agreement(stored, keys, islice(_packets(container, stream), _COMPARED))[0] != 0:
        raise UnsupportedIndex("the demuxer begins elsewhere")
    container.seek(stored.pts[stored.keys[len(stored.keys) // 2]], stream=stream, backward=True)
    _agreement(stored, keys, islice(_packets(container, stream), _COMPARED))
    container.seek(stored.pts[stored.keys[-1]], stream=stream, backward=True)
    first, past, end = _agreement(stored, keys, islice(_packets(container, stream), _LONGEST_TAIL))
    if past != len(stored.pts) or max(stored.end, max(stored.pts[:first], default=0)) > end:
        raise UnsupportedIndex("the last packets are not the last to be shown")
    return end


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(stream) if packet.size)


def _agreement(stored: PacketIndex, keys: frozenset[int], packets: Iterable[Any]) -> tuple[int, int, int]:
    """Places of the first packet and after the last, and where they end; raises Unusual where one differs."""
    first, place, end = -1, 0, 0
    for packet in packets:
        if first < 0:
            first = place = stored.pts.index(packet.pts)
        if place >= len(stored.pts) or _facts(packet, stored) != _stored_facts(stored, place, keys):
            raise UnsupportedIndex(f"packet {place} differs")
        if not packet.is_discard:
            end = max(end, packet.pts + (packet.duration or 0))
        place += 1
    return first, place, end


def _facts(packet: Any, stored: PacketIndex) -> tuple[int | None, int | None, bool, bool]:
    return packet.pts, packet.dts if stored.dts else None, packet.is_keyframe, packet.is_discard


def _stored_facts(stored: PacketIndex, place: int, keys: frozenset[int]) -> tuple[int | None, int | None, bool, bool]:
    dts = stored.dts[place] if stored.dts else None
    return stored.pts[place], dts, place in keys, place in stored.hidden
