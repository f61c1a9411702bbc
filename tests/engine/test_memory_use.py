"""The demo model's living tensors against its plan, and what is left after every question."""

import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import pytest

from tests.engine.asking import CLIP, CONFIG, QUESTION, answer_in, ask
from vidqa import EngineConfig, Request, Session
from vidqa.devices.device import find_device
from vidqa.devices.memory_tracker import TensorMeter, Tracker
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.events import MemorySampled
from vidqa.models.checkpoint import read_spec
from vidqa.models.hub import demo_folder
from vidqa.planner import calibration, memory_model
from vidqa.planner.memory_model import tensor_bytes
from vidqa.types import Answer, RunConfig

MIB = 2**20
PIXELS = 320 * 240
SPEC = read_spec(demo_folder())


@pytest.fixture
def counted() -> Iterator[tuple[TensorCounter, Session]]:
    """A session whose living tensors are counted, the weights among them."""
    live = TensorCounter("cpu")
    with Session(CONFIG, meter=TensorMeter(live)) as session:
        ask(session, frames=2, max_tokens=1)
        assert session.loaded is not None
        live.count_model(session.loaded.model.model)
        with live:
            yield live, session


def peaks_of(answer: Answer) -> dict[str, int]:
    return {use.name: use.peak_bytes for use in answer.memory.phases}


def with_chunks(session: Session, run_config: dict[str, Any]) -> dict[str, Any]:
    """Set the chunks on the session's config; returns what is left for the request."""
    rest = dict(run_config)
    session.reconfigure(replace(CONFIG, vision_chunk=rest.pop("vision"), prefill_chunk=rest.pop("prefill")))
    return rest


def counted_bytes(run_config: RunConfig) -> dict[str, int]:
    """What the plan says of the tensors that are counted: those of the thread that reads frames are not."""
    planned = tensor_bytes(SPEC, run_config, host_pixels=PIXELS)
    ahead = memory_model.frames_ahead_bytes(SPEC, run_config, PIXELS)
    return planned | {phase: planned[phase] - ahead for phase in ("vision", "prefill")}


DRAFTS = [
    {"frames": frames, "size": size, "vision": vision, "prefill": prefill, "max_tokens": 4}
    for frames in (8, 24)
    for size in ((160, 128), (320, 320), (480, 480))
    for vision, prefill in ((2, 256), (8, 1024))
]


def test_tensor_bytes_are_those_of_the_plan(counted: tuple[TensorCounter, Session]) -> None:
    _, session = counted
    for how in DRAFTS:
        answer = ask(session, **with_chunks(session, how))
        planned = counted_bytes(answer.plan.run_config)
        for phase, peak in peaks_of(answer).items():
            assert peak <= planned[phase] <= peak * 1.02 + 2 * MIB, (phase, how)


def test_a_long_question_takes_no_more_than_its_chunks(counted: tuple[TensorCounter, Session]) -> None:
    """Its embeddings are made as they are read: all of them at once would be a tenth of this model's memory."""
    _, session = counted
    how = {"frames": 8, "size": (160, 128), "vision": 1, "prefill": 16, "max_tokens": 2}
    rest = with_chunks(session, how)
    answer = ask(session, question="x" * 3000, **rest)
    assert peaks_of(answer)["prefill"] <= counted_bytes(answer.plan.run_config)["prefill"]


def test_slopes_of_the_plan_are_those_of_the_tensors(counted: tuple[TensorCounter, Session]) -> None:
    _, session = counted
    base = {"frames": 16, "size": (480, 480), "vision": 4, "prefill": 512, "max_tokens": 2}

    def measure(**how: Any) -> tuple[dict[str, int], RunConfig]:
        answer = ask(session, **with_chunks(session, base | how))
        return peaks_of(answer), answer.plan.run_config

    for phase, low, high in (
        ("vision", {"vision": 2}, {"vision": 8}),
        ("prefill", {"prefill": 256}, {"prefill": 1024}),
        ("prefill", {"frames": 16}, {"frames": 40}),  # one group alone is read without a copy
        ("decode", {"frames": 8}, {"frames": 32}),
    ):
        (small, less), (large, more) = measure(**low), measure(**high)
        planned = counted_bytes(more)[phase] - counted_bytes(less)[phase]
        assert planned / (large[phase] - small[phase]) == pytest.approx(1, abs=0.02), (phase, low)


def test_200_questions_leave_nothing_behind(counted: tuple[TensorCounter, Session]) -> None:
    live, session = counted
    session.forget()
    ask(session, frames=2, max_tokens=2)
    kept = live.now
    session.forget()
    baseline = live.now
    for number in range(200):
        ask(session, frames=2 + 2 * (number % 3), max_tokens=1 + number % 3)
        if number % 3 == 0:  # the same pictures as at first: what is kept of them is as much
            assert baseline < live.now <= kept, number
            session.forget()
            assert live.now == baseline, number


def test_phases_and_samples_are_reported() -> None:
    with Session(EngineConfig(vision_chunk=1, prefill_chunk=16)) as session:
        events = list(session.ask(Request(CLIP, QUESTION)))
    answer = answer_in(events)
    assert [use.name for use in answer.memory.phases] == ["load", "vision", "prefill", "decode"]
    for use in answer.memory.phases:
        assert 0 <= use.start_bytes <= use.peak_bytes <= answer.plan.tensor_bytes and use.seconds > 0
    samples = [event for event in events if isinstance(event, MemorySampled)]
    assert samples and all(sample.current_bytes > 100 * MIB for sample in samples)
    seconds = sum(use.seconds for use in answer.memory.phases)
    assert len(samples) <= 10 * seconds + 2
    assert answer.memory.measured_peak_bytes == answer.memory.host_peak_bytes
    assert answer.memory.weights_bytes < (answer.memory.tensor_peak_bytes or 0) <= answer.plan.tensor_bytes
    assert calibration.summary() is not None  # what was planned and measured is remembered


def test_a_sample_costs_less_than_a_hundredth() -> None:
    """Ten samples a second may take a hundredth of it, so one of them a millisecond; here it is a tenth of that."""
    tracker, seconds = Tracker(find_device("cpu")), []
    with tracker.phase("vision"):
        for _ in range(8):
            time.sleep(0.11)
            began = time.process_time()
            assert tracker.sample() is not None
            seconds.append(time.process_time() - began)
    assert median(seconds) < 0.001
