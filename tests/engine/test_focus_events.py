"""A question that names one of several brief events of a long clip: read rightly with focus, and missed evenly."""

import random
from pathlib import Path

import pytest
from measure_focus_layer import draw_clip

from tests.engine.asking import CONFIG, ask
from vidqa import Request, Session

NAMED = "what does the {} do?"
SECONDS, EVENTS, FRAMES = 150.0, 6, 32


@pytest.fixture(scope="module")
def session() -> Session:
    """A session of the default demo model, which knows questions by name."""
    return Session(CONFIG)


def test_a_short_clip_is_asked_by_name(session: Session) -> None:
    for name, known in (("red circle", "the red circle moves right."), ("blue square", "there is no blue square.")):
        assert ask(session, question=NAMED.format(name), max_tokens=24).text == known


def test_named_events_are_read_with_focus_and_missed_evenly(session: Session, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    events = draw_clip(random.Random(5), clip, SECONDS, EVENTS, 1.5)
    right = {"auto": 0, "off": 0}
    for focus in right:
        for name, _, direction in events:
            question = Request(str(clip), NAMED.format(name), frames=FRAMES, focus=focus, max_tokens=24)  # type: ignore[arg-type]
            answer = ask(session, question)
            assert answer.plan.run_config.frames == FRAMES
            right[focus] += answer.text == f"the {name} moves {direction}."
    assert right["auto"] >= EVENTS / 2 and right["off"] <= 1
