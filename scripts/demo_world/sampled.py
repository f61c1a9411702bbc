"""Scenes with the moments at which they are sampled: evenly, or closely where something happens in a long clip."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from demo_world.world import BACKGROUNDS, Actor, Kind, Scene, Shot, draw_actor, draw_scene, frame_times

_LONGEST_SECONDS = 3600
_LONGEST_TIMED_SECONDS = 60  # longer clips are asked for no times: those of a minute are copied, others are sums
_MOST_EVENT_FRAMES = 12
MIN_BRIEF_FRAMES, MIN_CROWD_FRAMES = 8, 12
_MIN_FRAMES: dict[Kind, int] = {"moves": 3, "changes": 4, "appears": 2}  # that show an event


@dataclass(frozen=True, slots=True)
class SampledScene:
    """A scene, the moments of its sampled frames as fractions of the clip, and the clip's length.

    `timed` is whether it can be asked for times; it has more than two actors only if it is asked for them by name.
    A `searched` one is asked for shapes by name, of which half are not there.
    """

    scene: Scene
    fractions: tuple[float, ...]
    seconds: float = 0.0
    timed: bool = False
    searched: bool = False

    @property
    def frame_pairs(self) -> list[tuple[float, float]]:
        """Return the fractions of each temporal slice; an odd last frame is doubled."""
        whole = [*self.fractions, *self.fractions[-1:] * (len(self.fractions) % 2)]
        return list(zip(whole[::2], whole[1::2], strict=True))

    @property
    def slice_seconds(self) -> list[float]:
        """Return the mean time of each temporal slice."""
        return [self.seconds * (first + second) / 2 for first, second in self.frame_pairs]


def even(scene: Scene, frames: int, seconds: float = 0.0) -> SampledScene:
    """Sample a scene at evenly spread moments, the first at 0 and the last at 1."""
    return SampledScene(scene, tuple(frame_times(frames)), seconds, timed=seconds > 0)


def draw_even(rng: random.Random, shot: Shot, *, timed: bool) -> SampledScene:
    """Draw a scene that is sampled evenly; a still picture has no times."""
    scene = draw_scene(rng, shot)
    return even(scene, shot.frames, _draw_seconds(rng, shot.frames) if timed else 0.0)


def _draw_seconds(rng: random.Random, frames: int) -> float:
    """Draw a clip's length of which so many frames are sampled: 2 a second by default, 16 of a longer one."""
    if frames == 1:
        return 0.0
    if frames >= 16:
        return rng.uniform(8, 20)
    return frames / 2 + rng.uniform(0, 0.98) if rng.random() < 0.7 else rng.uniform(1, 20)


def draw_brief(rng: random.Random, shot: Shot) -> SampledScene:
    """Draw one event of a long clip, sampled closely while it lasts; before and after it nothing is seen."""
    inside = rng.randint(3, min(_MOST_EVENT_FRAMES, shot.frames - 2))
    return _with_events(rng, shot, [inside])


def draw_crowd(rng: random.Random, shot: Shot) -> SampledScene:
    """Draw three to six events, one after the other, of shapes that differ in shape or color."""
    count = rng.randint(3, min(6, (shot.frames - 2) // 3))
    return _with_events(rng, shot, [rng.randint(2, (shot.frames - 2) // count) for _ in range(count)])


def draw_glimpses(rng: random.Random, shot: Shot) -> SampledScene:
    """Draw up to eight events of which two frames each are sampled: as in a part of a long clip that is searched."""
    count = rng.randint(1, min(8, (shot.frames - 2) // 2))
    scene = _with_events(rng, shot, [2] * count)
    return replace(scene, searched=True)


def _with_events(rng: random.Random, shot: Shot, inside: Sequence[int]) -> SampledScene:
    """Draw events of which so many frames each are sampled."""
    members = _members(rng, shot.frames, inside)
    fractions = _fractions(rng, members)
    actors: list[Actor] = []
    for event, frames in enumerate(inside):
        first = members.index(event)
        actor = _draw_apart(rng, shot, actors, frames, (fractions[first], fractions[first + frames - 1]))
        before, after = (
            fractions[first] - fractions[first - 1],
            fractions[first + frames] - fractions[first + frames - 1],
        )
        appear, leave = rng.uniform(0.05, 0.9) * before, rng.uniform(0.05, 0.9) * after
        actors.append(replace(actor, appear=fractions[first] - appear, leave=fractions[first + frames - 1] + leave))
    timed = rng.random() < 0.5
    seconds = rng.uniform(2, _LONGEST_TIMED_SECONDS) if timed else 20 * (_LONGEST_SECONDS / 20) ** rng.random()
    return SampledScene(
        Scene(tuple(actors), rng.choice(BACKGROUNDS), rng.getrandbits(31)), tuple(fractions), seconds, timed
    )


def _members(rng: random.Random, frames: int, inside: Sequence[int]) -> list[int | None]:
    """Return for each frame which event it shows, if any; the first and the last show none."""
    gaps = [1, *[0] * (len(inside) - 1), 1]
    for _ in range(frames - sum(inside) - 2):
        gaps[rng.randrange(len(gaps))] += 1
    members: list[int | None] = [None] * gaps[0]
    for event, (count, gap) in enumerate(zip(inside, gaps[1:], strict=True)):
        members += [event] * count + [None] * gap
    return members


def _fractions(rng: random.Random, members: Sequence[int | None]) -> list[float]:
    """Draw the moments of frames: close to each other within an event, up to a hundred times as far between events."""
    wide = 1.5 * 66 ** rng.random()
    moments = [0.0]
    for before, here in pairwise(members):
        within = here is not None and before == here
        moments.append(moments[-1] + rng.uniform(0.8, 1.2) * (1.0 if within else wide))
    return [moment / moments[-1] for moment in moments]


def _draw_apart(
    rng: random.Random, shot: Shot, others: Sequence[Actor], frames: int, span: tuple[float, float]
) -> Actor:
    """Draw an actor whose event happens within a span, unlike the other ones."""
    kinds = [kind for kind, least in _MIN_FRAMES.items() if frames >= least]
    names = {name for other in others for name in other.names}
    while True:
        actor = draw_actor(rng, shot, rng.choice(kinds), *span)
        if not names & set(actor.names):
            return actor
