"""The synthetic world: shapes, their events, times and places, drawn from a seed.

Lengths are fractions of the frame, times are fractions of the clip, so that one scene can
be drawn at any size and sampled at any moments.
"""

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["moves", "still", "appears", "changes"]
COLORS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = ("left", "right", "up", "down")
BACKGROUNDS = ("plain", "graded", "noisy")
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MIN_ACROSS_PIXELS = 28
MIN_ACROSS_FRACTION = 0.15
MIN_TWO_EVENT_FRAMES = 6
MIN_TWO_EVENT_CHANGE_FRAMES = 10


@dataclass(frozen=True, slots=True)
class Actor:
    """One shape and its one event.

    `across` is a fraction of the frame's shorter side; x and y are fractions of width and
    height. The shape is there from `appear` to `leave`, moves from `start` to `stop`, and
    takes its second color at `change`.
    """

    kind: Kind
    shape: str
    color: str
    end_color: str
    direction: str
    across: float
    x: float
    y: float
    end_x: float
    end_y: float
    appear: float
    leave: float
    start: float
    stop: float
    change: float
    turn_degrees: float

    @property
    def names(self) -> tuple[str, str]:
        """What it is called at first and at last: `red circle`."""
        return f"{self.color} {self.shape}", f"{self.end_color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Actors, one after the other, before a background; `draw_scene` draws at most two."""

    actors: tuple[Actor, ...]
    background: str
    seed: int


@dataclass(frozen=True, slots=True)
class Shot:
    """How a scene is sampled: frames and their size in pixels, as the model will see them.

    `min_across` raises the smallest shape, as a fraction of the shorter side (training starts big). `grain` is noise
    that differs in every frame, in levels of 255; `pan` moves the background by so many frames' sides over the clip.
    """

    frames: int
    height: int
    width: int
    min_across: float = 0.0
    grain: float = 0.0
    pan: tuple[float, float] = (0.0, 0.0)


def draw_scene(rng: random.Random, shot: Shot) -> Scene:
    """Draw a scene whose events can be told apart in this shot."""
    actors: tuple[Actor, ...]
    chance = rng.random()
    if chance < 0.05:
        actors = ()
    elif shot.frames >= MIN_TWO_EVENT_FRAMES and chance < 0.5:
        actors = _two_actors(rng, shot)
    else:
        actors = (draw_actor(rng, shot, _single_kind(rng, shot.frames), 0.0, 1.0),)
    return Scene(actors, rng.choice(BACKGROUNDS), rng.getrandbits(31))


def _single_kind(rng: random.Random, frames: int) -> Kind:
    if frames == 1:
        return "still"
    kinds: tuple[Kind, ...] = ("moves", "still", "appears", "changes")
    return rng.choices(kinds, weights=(6, 1.5, 1.5, 2))[0]


def _two_actors(rng: random.Random, shot: Shot) -> tuple[Actor, Actor]:
    """The first one leaves, then the second comes; a second one that does not move `appears`."""
    first_ends = rng.uniform(0.42, 0.55)
    second_comes = first_ends + rng.uniform(0.01, 0.06)
    kinds: list[Kind] = ["moves", "moves", "moves", "still"]
    if shot.frames >= MIN_TWO_EVENT_CHANGE_FRAMES:
        kinds.append("changes")
    first = draw_actor(rng, shot, rng.choice(kinds), 0.0, first_ends)
    kind = rng.choice(kinds)
    while True:  # the same shape twice could be one that goes on
        second = draw_actor(rng, shot, "appears" if kind == "still" else kind, second_comes, 1.01)
        if (second.shape, second.color) != (first.shape, first.end_color):
            return first, second


def draw_actor(rng: random.Random, shot: Shot, kind: Kind, begin: float, end: float) -> Actor:
    """Draw an actor whose event happens between two fractions of the clip."""
    across = draw_across(rng, shot)
    x, y, end_x, end_y, direction = _path(rng, shot, across, kind == "moves")
    color = rng.choice(COLORS)
    end_color = rng.choice([other for other in COLORS if other != color]) if kind == "changes" else color
    span = min(end, 1.0) - begin
    whole_clip = begin == 0.0 and end >= 1.0
    appear = rng.uniform(0.3, 0.7) if kind == "appears" and whole_clip else begin
    rest = 0.3 if whole_clip else 0.1
    return Actor(
        kind=kind, shape=rng.choice(SHAPES), color=color, end_color=end_color, direction=direction, across=across,
        x=x, y=y, end_x=end_x, end_y=end_y,
        appear=appear, leave=2.0 if end >= 1.0 else end,
        start=begin + span * rng.uniform(0, rest), stop=begin + span * (1 - rng.uniform(0, rest)),
        change=begin + span * rng.uniform(0.4, 0.6), turn_degrees=rng.uniform(-8, 8),
    )  # fmt: skip


def draw_across(rng: random.Random, shot: Shot) -> float:
    """A size of at least 28 pixels and 15 % of the shorter side, and at most half of it."""
    shorter = min(shot.height, shot.width)
    smallest = max(MIN_ACROSS_PIXELS / shorter, MIN_ACROSS_FRACTION, shot.min_across)
    return rng.uniform(smallest, max(0.5, smallest))


def _path(rng: random.Random, shot: Shot, across: float, moving: bool) -> tuple[float, float, float, float, str]:
    """Start and end of the center, the whole shape inside the frame; at least 30 % of the side if it moves."""
    shorter = min(shot.height, shot.width)
    reach_x, reach_y = across * shorter / shot.width / 2, across * shorter / shot.height / 2
    x, y = rng.uniform(reach_x, 1 - reach_x), rng.uniform(reach_y, 1 - reach_y)
    direction = rng.choice(DIRECTIONS)
    if not moving:
        return x, y, x, y, direction
    step_x, step_y = _STEP[direction]
    if step_x:
        x, end_x = _leg(rng, reach_x, step_x)
        return x, y, end_x, y, direction
    y, end_y = _leg(rng, reach_y, step_y)
    return x, y, x, end_y, direction


def _leg(rng: random.Random, reach: float, step: int) -> tuple[float, float]:
    room = 1 - 2 * reach
    length = rng.uniform(min(0.3, room), room)
    low = reach + rng.uniform(0, room - length)
    return (low, low + length) if step > 0 else (low + length, low)


def frame_times(frames: int) -> list[float]:
    """Moments of uniformly sampled frames, the first at 0 and the last at 1."""
    return [index / max(frames - 1, 1) for index in range(frames)]
