"""Questions about a scene, each with one right answer.

`normalise` accepts the generator's own phrasings in any case and punctuation. Knows
scenes and words; knows no pixels.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from demo_world.world import COLORS, SHAPES, Actor, Scene

NOTHING = "nothing visible."
_NUMBERS = ("none", "one", "two")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of a kind, and its answer; `seconds` is the true time that the answer names, where it names one.

    `span` is what the question asks about, as fractions of the clip: a shape's presence, or one moment twice.
    """

    kind: str
    question: str
    answer: str
    seconds: float | None = None
    span: tuple[float, float] | None = None


def describe(actor: Actor, *, article: str = "a") -> str:
    """An actor's event as a sentence without a stop: `a red circle moves right`."""
    what = f"{article} {actor.color} {actor.shape}"
    match actor.kind:
        case "moves":
            return f"{what} moves {actor.direction}"
        case "still":
            return f"{what} stays still"
        case "appears":
            return f"{what} appears"
        case "changes":
            return f"{what} turns {actor.end_color}"


def tell(scene: Scene) -> str:
    """Return all events in one sentence."""
    if not scene.actors:
        return NOTHING
    if len(scene.actors) == 1:
        return f"{describe(scene.actors[0])}."
    first, last = scene.actors
    return f"first {describe(first)}, then {describe(last)}."


def _each(scene: Scene, word: Callable[[Actor], str]) -> str:
    """One word per actor: `red.` or `red, then blue.`"""
    return f"{', then '.join(word(actor) for actor in scene.actors)}." if scene.actors else NOTHING


def _color(actor: Actor) -> str:
    return actor.color if actor.kind != "changes" else f"{actor.color}, then {actor.end_color}"


def _motion(actor: Actor) -> str:
    return actor.direction if actor.kind == "moves" else "it stays still"


def _count(scene: Scene) -> str:
    return f"{_NUMBERS[len(scene.actors)]}."


def _detailed(scene: Scene) -> str:
    if not scene.actors:
        return NOTHING
    noun = "shape" if len(scene.actors) == 1 else "shapes"
    return f"the video shows {_NUMBERS[len(scene.actors)]} {noun}: {tell(scene)}"


_ANSWERS: dict[str, Callable[[Scene], str]] = {
    "happens": tell,
    "color": lambda scene: _each(scene, _color),
    "shape": lambda scene: _each(scene, lambda actor: f"a {actor.shape}"),
    "motion": lambda scene: _each(scene, _motion),
    "count": _count,
    "first": lambda scene: f"{describe(scene.actors[0])}." if scene.actors else NOTHING,
    "last": lambda scene: f"{describe(scene.actors[-1])}." if scene.actors else NOTHING,
    "end_color": lambda scene: f"{scene.actors[-1].end_color}." if scene.actors else NOTHING,
    "caption": tell,
    "detailed": _detailed,
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "happens": (
        "what happens?", "what happens in this video?", "what happens in the video?", "what is happening?",
        "what's happening?", "what happens here?", "what is going on?", "what do you see?", "what happened?",
        "tell me what happens.", "what can you see in this video?", "what goes on in this clip?",
        "what happens in this clip?", "what does the video show?",
    ),
    "color": (
        "what color is it?", "what color?", "what color is the shape?", "which color is it?", "what is the color?",
        "what colour is it?", "what color is the object?", "which colors are there?", "what color do you see?",
    ),
    "shape": (
        "what shape is it?", "what shape?", "which shape is it?", "what is the shape?", "what object is it?",
        "what kind of shape is it?", "which shapes are there?", "what shape do you see?", "what is it?",
    ),
    "motion": (
        "which way does it move?", "where does it move?", "in which direction does it move?", "which way?",
        "what direction does it move?", "which direction does it go?", "how does it move?", "where does it go?",
    ),
    "count": (
        "how many shapes?", "how many shapes are there?", "how many objects are there?", "how many?",
        "how many shapes do you see?", "count the shapes.",
    ),
    "first": (
        "what happens first?", "what happens at first?", "what is the first thing that happens?",
        "what happens at the beginning?", "what happens at the start?", "how does it begin?",
    ),
    "last": (
        "what happens last?", "what happens at the end?", "what is the last thing that happens?",
        "what happens in the end?", "how does it end?", "what happens finally?",
    ),
    "end_color": (
        "what color is it at the end?", "what color is it in the end?", "which color is it at the end?",
        "what is the color at the end?", "what color is the shape at the end?", "what is its final color?",
    ),
    "caption": (
        "Describe this video.", "Describe the video.", "Describe this video briefly.",
        "Describe this video in one sentence.",
        "Caption this video.", "Write a short caption.", "Summarize this video.", "Describe this clip.",
    ),
    "detailed": (
        "Describe this video in detail.", "Describe the video in detail.", "Write a detailed caption.",
        "Give a detailed description.", "Describe everything you see in detail.",
    ),
}  # fmt: skip

NAMED = (
    "what does the {what} do?", "what happens to the {what}?", "what about the {what}?", "what is the {what} doing?",
    "what does the {what} do in this video?", "and the {what}?",
)  # fmt: skip

STILL_PICTURE_QUESTIONS = (
    "what is in this picture?",
    "what is in this image?",
    "Describe this image.",
    "what do you see?",
)

SYSTEM_PROMPTS = (
    "You answer questions about videos.", "Be brief.", "You are a careful observer.", "Answer in one sentence.",
    "You describe what happens in short videos.", "You are vidqa.",
)  # fmt: skip


def ask(scene: Scene, kind: str, wording: str) -> Turn:
    """One question with the right answer."""
    return Turn(kind, wording, _ANSWERS[kind](scene))


def draw_named(rng: random.Random, scene: Scene, absent_share: float = 1 / 6) -> Turn:
    """Draw a question about a shape by its name, of which a share is not in the scene."""
    absent = absent_name(rng, scene)
    if not scene.actors or rng.random() < absent_share:
        return Turn("named", rng.choice(NAMED).format(what=absent), f"there is no {absent}.")
    actor = rng.choice(scene.actors)
    question = rng.choice(NAMED).format(what=actor.names[0])
    return Turn("named", question, f"{describe(actor, article='the')}.", span=(actor.appear, actor.leave))


def absent_name(rng: random.Random, scene: Scene) -> str:
    """Draw the name of a shape that is not in a scene."""
    there = {name for actor in scene.actors for name in actor.names}
    return rng.choice(
        [name for name in (f"{color} {shape}" for color in COLORS for shape in SHAPES) if name not in there]
    )


def draw_turns(rng: random.Random, scene: Scene, count: int) -> tuple[Turn, ...]:
    """A conversation of `count` different questions about one scene."""
    kinds = list(QUESTIONS)
    weights = [_weight(kind, scene) for kind in kinds]
    chosen: list[str] = []
    while len(chosen) < count:
        kind = rng.choices(kinds, weights)[0]
        if kind not in chosen:
            chosen.append(kind)
    return tuple(ask(scene, kind, _wording(rng, kind)) for kind in chosen)


def _weight(kind: str, scene: Scene) -> float:
    """Return how often a kind is drawn, against other ones.

    Colors of two shapes are the longest lists, longer where one turns another color, and would be the rarest questions.
    """
    if kind == "color" and len(scene.actors) == 2:
        return 6.0 if any(actor.kind == "changes" for actor in scene.actors) else 4.0
    return 3.0 if kind == "happens" else 1.0


def _wording(rng: random.Random, kind: str) -> str:
    text = rng.choice(QUESTIONS[kind])
    chance = rng.random()
    if chance < 0.3:
        text = text[0].upper() + text[1:]
    elif chance < 0.4:
        text = text.lower()
    elif chance < 0.48:
        text = text.upper()
    return text.rstrip("?.") if rng.random() < 0.15 else text


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation, British spelling folded in."""
    words = re.sub(r"[^a-z0-9 ]+", " ", text.lower().replace("colour", "color"))
    return " ".join(words.split())


def is_right(answer: str, wanted: str) -> bool:
    """Exact match after `normalise`."""
    return normalise(answer) == normalise(wanted)
