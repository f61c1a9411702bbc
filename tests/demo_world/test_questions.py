"""Questions, their one right answer, and what counts as the same answer."""

import random
from dataclasses import replace

import pytest

from demo_world.questions import QUESTIONS, ask, draw_turns, is_right, normalise, tell
from demo_world.world import Actor, Scene

RED = Actor(
    kind="moves", shape="circle", color="red", end_color="red", direction="right", across=0.4,
    x=0.2, y=0.5, end_x=0.8, end_y=0.5, appear=0.0, leave=2.0, start=0.0, stop=1.0, change=0.5, turn_degrees=0,
)  # fmt: skip
BLUE = replace(RED, kind="appears", shape="square", color="blue", end_color="blue", appear=0.55)
GREEN = replace(RED, kind="changes", shape="triangle", color="green", end_color="yellow")
ONE, TWO, CHANGING = (
    Scene((RED,), "plain", 1),
    Scene((replace(RED, leave=0.5), BLUE), "plain", 1),
    Scene((GREEN,), "", 1),
)
EMPTY, STILL = Scene((), "plain", 1), Scene((replace(RED, kind="still"),), "plain", 1)


@pytest.mark.parametrize(
    ("scene", "kind", "answer"),
    [
        (ONE, "happens", "a red circle moves right."),
        (TWO, "happens", "first a red circle moves right, then a blue square appears."),
        (CHANGING, "happens", "a green triangle turns yellow."),
        (STILL, "happens", "a red circle stays still."),
        (EMPTY, "happens", "nothing visible."),
        (ONE, "color", "red."),
        (TWO, "color", "red, then blue."),
        (CHANGING, "color", "green, then yellow."),
        (CHANGING, "end_color", "yellow."),
        (TWO, "end_color", "blue."),
        (TWO, "shape", "a circle, then a square."),
        (ONE, "motion", "right."),
        (STILL, "motion", "it stays still."),
        (TWO, "count", "two."),
        (EMPTY, "count", "none."),
        (TWO, "first", "a red circle moves right."),
        (TWO, "last", "a blue square appears."),
        (EMPTY, "last", "nothing visible."),
        (TWO, "detailed", "the video shows two shapes: first a red circle moves right, then a blue square appears."),
    ],
)
def test_answers(scene: Scene, kind: str, answer: str) -> None:
    assert ask(scene, kind, QUESTIONS[kind][0]).answer == answer


def test_a_conversation_asks_different_things_of_one_scene() -> None:
    turns = draw_turns(random.Random(1), TWO, 4)
    assert len({turn.kind for turn in turns}) == 4
    assert turns == draw_turns(random.Random(1), TWO, 4)
    assert all(turn.answer == ask(TWO, turn.kind, turn.question).answer for turn in turns)


@pytest.mark.parametrize(
    "text", ["A red circle moves right", " a RED circle  moves right! ", "a red circle moves right.\n"]
)
def test_the_normaliser_forgives_case_marks_and_spaces(text: str) -> None:
    assert is_right(text, tell(ONE))


@pytest.mark.parametrize(
    "text", ["a red circle moves left.", "a red square moves right.", "", "red circle moves right."]
)
def test_the_normaliser_forgives_no_other_words(text: str) -> None:
    assert not is_right(text, tell(ONE))


def test_spelling_is_folded() -> None:
    assert normalise("What COLOUR is it?") == "what color is it"


def test_no_wording_belongs_to_two_kinds() -> None:
    wordings = [normalise(text) for texts in QUESTIONS.values() for text in texts]
    assert len(wordings) - len(set(wordings)) <= 1  # "what color" with and without the mark
