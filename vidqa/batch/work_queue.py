"""The queue of clips for several workers: how many each gets at a time, and what happens to a dead worker's clips.

A clip that a worker held when it died is a suspect: from then on it is assigned alone, so that the clip that kills
workers is found without harm to others.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from vidqa.batch.clip_record import PendingClip

MAX_DEATHS = 3
_MIN_HELD = 8  # at the end of a run: a batch in work and one that is read


@dataclass(slots=True)
class QueuedClip:
    """A clip, and how many workers died while they held it."""

    pending: PendingClip
    deaths: int = 0


@dataclass(slots=True)
class WorkerSlot:
    """The clips that a worker holds, by name, and its deaths since its last record."""

    held: dict[str, QueuedClip] = field(default_factory=dict)
    deaths: int = 0

    @property
    def holds_suspect(self) -> bool:
        """Whether the worker holds a suspect; suspects are held alone, so they cause its death."""
        return any(clip.deaths for clip in self.held.values())

    @property
    def is_exhausted(self) -> bool:
        """Whether the worker died too often, and not because of a suspect."""
        return self.deaths >= MAX_DEATHS and not self.holds_suspect


class WorkQueue:
    """The clips of a run that no worker holds; pulls no more of them than the workers may hold together."""

    def __init__(self, pending: Iterable[PendingClip], workers: int, max_held: int) -> None:
        """`max_held` is how many clips one worker may hold."""
        self._pending = iter(pending)
        self._max_known, self._max_held = workers * max_held, max_held
        self._new: deque[QueuedClip] = deque()
        self._suspects: deque[QueuedClip] = deque()

    def __len__(self) -> int:
        """Return how many clips are known to be left."""
        self._pull()
        return len(self._new) + len(self._suspects)

    def share(self, workers: int, held: int) -> int:
        """Return how many clips each worker may hold while all hold `held`.

        Near the end it is half of an equal share, so that all workers end together.
        """
        equal = -(-(len(self) + held) // workers)
        return min(self._max_held, max(-(-equal // 2), min(_MIN_HELD, equal)))

    def assign(self, slot: WorkerSlot, share: int) -> list[QueuedClip]:
        """Give a worker new clips up to its share, or a single suspect if it holds nothing.

        A worker with one death left gets one new clip first, if there is any, to show that it works.
        """
        self._pull()
        if slot.holds_suspect:
            return []
        is_doubtful = slot.deaths >= MAX_DEATHS - 1
        if not slot.held and self._suspects and not (is_doubtful and self._new):
            assigned = [self._suspects.popleft()]
        else:
            room = max((1 if is_doubtful else share) - len(slot.held), 0)
            assigned = [self._new.popleft() for _ in range(min(room, len(self._new)))]
        slot.held |= {clip.pending.clip.name: clip for clip in assigned}
        return assigned

    def requeue(self, slot: WorkerSlot) -> list[PendingClip]:
        """Take a dead worker's clips back as suspects; return those that saw MAX_DEATHS."""
        given_up = []
        for clip in slot.held.values():
            clip.deaths += 1
            if clip.deaths < MAX_DEATHS:
                self._suspects.append(clip)
            else:
                given_up.append(clip.pending)
        slot.held = {}
        return given_up

    def _pull(self) -> None:
        self._new.extend(map(QueuedClip, islice(self._pending, self._max_known - len(self._new))))
