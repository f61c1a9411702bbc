"""A question that names one of several brief events of a long clip: read rightly with focus, and missed evenly."""

import random
from pathlib import Path

import pytest
from measure_focus_layer import draw_clip

from tests.engine.asking import CLIP, CONFIG, answer_in
from vidqa import EngineConfig, Request, Session

NAMED = "what does the {} do?"
SECONDS, EVENTS, FRAMES = 150.0, 6, 32


@pytest.fixture(scope="module")
def session() -> Session:
    """A session of the default demo model, if it knows questions by name: an older one does not."""
    session = Session(EngineConfig(**{name: getattr(CONFIG, name) for name in ("isolate_decoder", "remember")}))
    known = answer_in(list(session.ask(Request(CLIP, NAMED.format("red circle"), max_tokens=24)))).text
    if known != "the red circle moves right.":
        pytest.skip(f"the demo model knows no questions by name: it says {known!r}")
    return session


def test_named_events_are_read_with_focus_and_missed_evenly(session: Session, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    events = draw_clip(random.Random(5), clip, SECONDS, EVENTS, 1.5)
    right = {"auto": 0, "off": 0}
    for focus in right:
        for name, _, direction in events:
            question = Request(str(clip), NAMED.format(name), frames=FRAMES, focus=focus, max_tokens=24)  # type: ignore[arg-type]
            answer = answer_in(list(session.ask(question)))
            assert answer.plan.run_config.frames == FRAMES
            right[focus] += answer.text == f"the {name} moves {direction}."
    assert right["auto"] >= EVENTS / 2 and right["off"] <= 1
