"""Clips that are ready, in groups of one kind: nobody waits in a batch for a clip ten times as long.

Knows kinds and numbers, not what is done with a group.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def groups(
    items: Iterable[Item], kind: Callable[[Item], tuple[Hashable, int]], most_waiting: int
) -> Iterator[list[Item]]:
    """Items in the order of their coming, grouped by kind; `kind` gives (what is alike, how many make a group).

    A group goes when it is complete. When more than `most_waiting` items wait for others of their kind, the largest
    group goes as it is, the oldest among equals; at the end all do.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        alike, size = kind(item)
        group = waiting.setdefault(alike, [])
        group.append(item)
        if len(group) >= size:
            yield waiting.pop(alike)
        elif sum(map(len, waiting.values())) > most_waiting:
            yield waiting.pop(max(waiting, key=lambda one: len(waiting[one])))
    yield from waiting.values()
