"""What the tests of the session share: the demo clip, its answer, and how to ask."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from vidqa import EngineConfig, Request, Session
from vidqa.devices.device import find_device
from vidqa.events import Answered, Event, StageStarted
from vidqa.models.registry import find_checkpoints
from vidqa.planner.placement import weight_choices
from vidqa.types import Answer

ASSETS = Path(__file__).parents[2] / "assets"
CLIP, TWO_EVENTS, COLOR, EMPTY = (
    str(ASSETS / name) for name in ("demo.mp4", "demo-two.mp4", "demo-color.mp4", "demo-empty.mp4")
)
QUESTION, ANSWER = "what happens?", "a red circle moves right."
CONFIG = EngineConfig(isolate_decoder=False, remember=False)
DEMO_WEIGHTS = weight_choices(find_device("cpu"), find_checkpoints("demo", local=True)[0].spec)  # of this processor
Kind = TypeVar("Kind")


def answer_in(events: list[Event]) -> Answer:
    assert isinstance(events[-1], Answered)
    return events[-1].answer


def ask(session: Session, request: Request | None = None, **how: Any) -> Answer:
    """Ask, by default the question about the demo clip; `how` is added to the default request."""
    return answer_in(list(session.ask(request or Request(**{"video": CLIP, "question": QUESTION} | how))))


def of_kind(events: Iterable[Any], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def stages_of(events: Iterable[Any]) -> list[str]:
    return [event.stage for event in of_kind(events, StageStarted)]
