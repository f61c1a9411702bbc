"""What a container's own table says of one stream's packets. Knows no container and no codec."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from operator import lt


class UnsupportedIndex(Exception):
    """Something that the table readers do not vouch for; it never leaves the package: the packets are read instead."""


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """Packets in the order of storage; times in ticks, the rest as places in that order.

    `dts` is empty where the container stores none. `keys` ascend; `hidden` are discarded by an edit list.
    `end` is the last moment that a packet with a stored duration reaches.
    """

    pts: list[int]
    dts: list[int]
    keys: list[int]
    hidden: frozenset[int]
    end: int


def ascending(values: Sequence[int]) -> bool:
    """Whether each is larger than the one before."""
    return all(map(lt, values, islice(values, 1, None)))
