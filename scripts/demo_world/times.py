"""Questions about times: when an event is seen, and what happens between two moments.

A frame is a moment. What is first seen in one frame happened between it and the frame before, so the right answer is
the middle of the two: no better one can be known. Times are in seconds from the first frame.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence

from demo_world.questions import NOTHING, Turn, absent_name, describe, is_right, tell
from demo_world.world import Actor, Scene
from vidqa.utils.units import format_timestamp

NEVER = "never."
WHEN = (
    "when does the {what} appear?", "when does a {what} appear?", "at what time does the {what} appear?",
    "when is the {what} first seen?", "when do you see the {what}?", "when does the {what} come?",
)  # fmt: skip
CHANGES = (
    "when does the {what} turn {color}?", "when does the {what} change color?", "when does it change color?",
    "when does it turn {color}?", "at what time does the {what} turn {color}?",
)  # fmt: skip
BETWEEN = (
    "what happens between {begin} and {end}?", "what happens from {begin} to {end}?",
    "what do you see between {begin} and {end}?", "what is going on between {begin} and {end}?",
)  # fmt: skip
_LEAST_RANGE_FRAMES = 2


def seen_at(fraction: float, fractions: Sequence[float], seconds: float) -> float | None:
    """Return when what happens at a fraction of the clip is seen: between two frames; None if no frame shows it.

    0 if the first frame shows it already.
    """
    first = next((index for index, each in enumerate(fractions) if each >= fraction), None)
    if first is None:
        return None
    return seconds * (fractions[first - 1] + fractions[first]) / 2 if first else 0.0


def timed_turn(rng: random.Random, scene: Scene, fractions: Sequence[float], seconds: float) -> Turn | None:
    """Draw a question about a time of a scene that is sampled at these fractions of a clip; None if none is fair."""
    kinds: list[Callable[..., Iterator[Turn]]] = [_appearing, _appearing]
    if len(scene.actors) <= 2:
        kinds += [_changing, _between, _between]
    return next(rng.choice(kinds)(rng, scene, fractions, seconds), None)


def _answer(moment: float) -> str:
    return f"at {format_timestamp(moment)}."


def _appearing(rng: random.Random, scene: Scene, fractions: Sequence[float], seconds: float) -> Iterator[Turn]:
    if not scene.actors or rng.random() < 0.12:
        yield Turn("when", rng.choice(WHEN).format(what=absent_name(rng, scene)), NEVER)
        return
    late = [actor for actor in scene.actors if actor.appear > fractions[0]]
    actor = rng.choice(late if late and rng.random() < 0.9 else scene.actors)
    moment = seen_at(actor.appear, fractions, seconds)
    what, _ = actor.names
    if moment is None or any(what in other.names for other in scene.actors if other is not actor):
        return
    span = (actor.appear, actor.appear)
    yield Turn("when", rng.choice(WHEN).format(what=what), _answer(moment), actor.appear * seconds, span)


def _changing(rng: random.Random, scene: Scene, fractions: Sequence[float], seconds: float) -> Iterator[Turn]:
    changing = [actor for actor in scene.actors if actor.kind == "changes"]
    if len(changing) != 1:
        return
    (actor,) = changing
    moment = seen_at(actor.change, fractions, seconds)
    if moment is None:
        return
    question = rng.choice(CHANGES).format(what=f"{actor.color} {actor.shape}", color=actor.end_color)
    yield Turn("when", question, _answer(moment), actor.change * seconds, (actor.change, actor.change))


def _between(rng: random.Random, scene: Scene, fractions: Sequence[float], seconds: float) -> Iterator[Turn]:
    """Yield a question about a range of whole seconds that shows whole events, or nothing at all."""
    begin = rng.randint(0, max(math.floor(seconds) - 1, 0))
    end = rng.randint(begin + 1, max(math.ceil(seconds), begin + 1))
    inside = [each for each in fractions if begin <= each * seconds <= end]
    if len(inside) < _LEAST_RANGE_FRAMES:
        return
    answer = _seen_between(scene, inside, fractions)
    if answer is not None:
        shown = {"begin": _whole(begin), "end": _whole(end)}
        yield Turn("between", rng.choice(BETWEEN).format(**shown), answer)


def _seen_between(scene: Scene, inside: Sequence[float], fractions: Sequence[float]) -> str | None:
    """Return what frames at `inside` show, None if they cut an event in two."""
    whole = []
    for actor in scene.actors:
        frames = [each for each in fractions if actor.appear <= each < actor.leave]
        shown = [each for each in inside if each in frames]
        if not shown:
            continue
        if not _is_whole(actor, inside, frames):
            return None
        whole.append(actor)
    if not whole:
        return NOTHING
    return tell(scene) if len(whole) > 1 else f"{describe(whole[0])}."


def _is_whole(actor: Actor, inside: Sequence[float], frames: Sequence[float]) -> bool:
    """Return whether the frames `inside` a range show all of an actor's event, which `frames` of the clip show."""
    first, last = inside[0], inside[-1]
    match actor.kind:
        case "moves":
            moving = [each for each in frames if actor.start <= each <= actor.stop] or frames
            return first <= moving[0] and moving[-1] <= last
        case "changes":
            return first < actor.change <= last and any(first <= each < actor.change for each in frames)
        case "appears":
            return first < frames[0] or (actor.appear == 0.0 and first <= frames[0])
        case "still":
            return first <= frames[0] and frames[-1] <= last


def _whole(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}:{rest:02}"


def time_in(answer: str) -> float | None:
    """Return the seconds that an answer names, None if it names none."""
    found = re.search(r"(\d+):(\d\d(?:\.\d)?)", answer)
    return 60 * int(found.group(1)) + float(found.group(2)) if found else None


def is_near(answer: str, seconds: float, frame_distance: float) -> bool:
    """Return whether the time in an answer is within half a second, or half of the frames' distance, of the truth."""
    given = time_in(answer)
    return given is not None and abs(given - seconds) <= max(0.5, frame_distance / 2)


def is_right_or_near(answer: str, turn: Turn, frame_distance: float) -> bool:
    """Return whether an answer matches exactly after normalisation, or names a time that is near the true one."""
    if turn.seconds is None:
        return is_right(answer, turn.answer)
    return is_near(answer, turn.seconds, frame_distance)
