"""What is still to be handed out to several workers, and how much each of them gets at a time. Pure bookkeeping.

A clip that a worker held when it died is suspected: it is handed out alone from then on, so that the clip to blame is
found without the others' harm.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from vidqa.batch.clip_record import Pending

MOST_DEATHS = 3
_LEAST_HELD = 8  # at the end of a run: a batch at work and one that is read


@dataclass(slots=True)
class HeldClips:
    """A clip, and how many workers died while they held it."""

    pending: Pending
    deaths: int = 0


@dataclass(slots=True)
class WorkerSlot:
    """What one worker holds, by name, and how often it died since its last record."""

    held: dict[str, HeldClips] = field(default_factory=dict)
    strikes: int = 0

    @property
    def holds_a_suspect(self) -> bool:
        """Suspects are held alone, so a death is theirs."""
        return any(one.deaths for one in self.held.values())

    @property
    def is_out(self) -> bool:
        """Whether the worker, and no clip, is to blame for its deaths."""
        return self.strikes >= MOST_DEATHS and not self.holds_a_suspect


class WorkQueue:
    """The clips of a run that nobody holds. Looks at no more of them than the workers may hold together."""

    def __init__(self, pending: Iterable[Pending], workers: int, ahead: int) -> None:
        self._pending = iter(pending)
        self._most, self._ahead = workers * ahead, ahead
        self._fresh: deque[HeldClips] = deque()
        self._suspects: deque[HeldClips] = deque()

    def __len__(self) -> int:
        """How many are known to be left."""
        self._look_ahead()
        return len(self._fresh) + len(self._suspects)

    def share(self, workers: int, held: int) -> int:
        """How many clips a worker may hold: half of its equal part when few are left, so that all end together."""
        left = len(self) + held
        equal = -(-left // workers)
        return min(self._ahead, max(-(-equal // 2), min(_LEAST_HELD, equal)))

    def hand_out(self, hands: WorkerSlot, share: int) -> list[HeldClips]:
        """Give a worker what it may have now: new clips up to its share, or one suspect if it has nothing else.

        A worker that died twice without a record proves itself on one new clip first, if there is any.
        """
        self._look_ahead()
        doubted = hands.strikes >= MOST_DEATHS - 1
        given: list[HeldClips] = []
        if hands.holds_a_suspect:
            return given
        if not hands.held and self._suspects and not (doubted and self._fresh):
            given = [self._suspects.popleft()]
        else:
            room = max((1 if doubted else share) - len(hands.held), 0)
            given = [self._fresh.popleft() for _ in range(min(room, len(self._fresh)))]
        hands.held |= {one.pending.clip.name: one for one in given}
        return given

    def take_back(self, hands: WorkerSlot) -> list[Pending]:
        """The worker died: what it held is suspected, and what was held in too many deaths is returned."""
        given_up = []
        for one in hands.held.values():
            one.deaths += 1
            if one.deaths < MOST_DEATHS:
                self._suspects.append(one)
            else:
                given_up.append(one.pending)
        hands.held = {}
        return given_up

    def _look_ahead(self) -> None:
        self._fresh.extend(HeldClips(pending) for pending in islice(self._pending, self._most - len(self._fresh)))
