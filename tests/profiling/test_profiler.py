"""The profiler's count of living tensors against an independent one, and what it cannot see."""

from pathlib import Path

import pytest

from tests.planner.plan_builders import SPEC_2B
from vidqa import EngineConfig, Request, Session
from vidqa.devices.live_bytes import LiveBytes
from vidqa.devices.memory_tracker import TensorMeter
from vidqa.events import Answered
from vidqa.profiling.allocation_classifier import facts_of
from vidqa.profiling.memory_trace import Trace
from vidqa.profiling.profiler import ProfiledQuestion, assemble, profile_vidqa

REQUEST = Request(
    str(Path(__file__).parents[2] / "assets" / "demo.mp4"), "what happens?", frames=16, size=(280, 280), max_tokens=8
)
ASKED = ProfiledQuestion("vidqa", "cpu", 4, 112, 84, 24, 40, 1000, "red.", 2, 0.5, {"load": 1.0, "vision": 0.2})


@pytest.mark.long
def test_phases_peak_where_every_operators_results_are_counted(tmp_path: Path) -> None:
    config = EngineConfig(isolate_decoder=False, remember=False, vision_chunk=4)
    profile = profile_vidqa(config, REQUEST, tmp_path / "trace.json")
    live = LiveBytes("cpu")
    with Session(config, meter=TensorMeter(live)) as session:
        list(session.ask(Request(REQUEST.video, "what?", frames=2, size=(56, 56), max_tokens=1)))
        assert session.loaded is not None
        live.count_model(session.loaded.model.model)
        with live:
            *_, last = session.ask(REQUEST)
    assert isinstance(last, Answered)
    peaks = {phase.name: phase.peak_bytes for phase in profile.phases}
    for use in last.answer.memory.phases:
        assert peaks[use.name] == pytest.approx(use.peak_bytes, rel=0.002), use.name  # that one rounds to 512 bytes


def test_a_stage_that_was_not_seen_is_told() -> None:
    profile = assemble(Trace(phase_seconds={"video": 0.1, "vision": 0.2, "prefill": 0.1}), ASKED, facts_of(SPEC_2B))
    assert profile.notes == ("nothing of the decode phase was seen: the profiler does not follow other threads",)
    assert profile.peak_bytes == ASKED.weights_bytes
    assert [phase.name for phase in profile.phases] == ["load", "vision"]
