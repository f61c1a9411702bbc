"""Peaks of the profiler against an independent count of tensors, phases of both sides, and missing phases."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.planner.plan_builders import SPEC_2B
from vidqa import EngineConfig, Request, Session
from vidqa.devices.memory_tracker import TensorMeter
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.events import Answered
from vidqa.profiling.allocation_classifier import model_shapes
from vidqa.profiling.memory_trace import Trace
from vidqa.profiling.profiler import Profile, ProfiledQuestion, make_profile, profile_transformers, profile_vidqa

REQUEST = Request(
    str(Path(__file__).parents[2] / "assets" / "demo.mp4"), "what happens?", frames=16, size=(280, 280), max_tokens=8
)
ASKED = ProfiledQuestion("vidqa", "cpu", 4, 112, 84, 24, 40, 1000, "red.", 2, 0.5, {"load": 1.0, "vision": 0.2})


@pytest.mark.long
def test_peaks_of_phases_equal_a_count_of_tensors(tmp_path: Path) -> None:
    config = EngineConfig(isolate_decoder=False, remember=False, vision_chunk=4)
    profile = profile_vidqa(config, REQUEST, tmp_path / "trace.json")
    live = TensorCounter("cpu")
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


def test_a_phase_without_operators_gives_a_note() -> None:
    profile = make_profile(
        Trace(phase_seconds={"video": 0.1, "vision": 0.2, "prefill": 0.1}), ASKED, model_shapes(SPEC_2B)
    )
    assert profile.notes == (
        "the trace has no operators of the decode phase: the profiler follows only the thread it runs in",
    )
    assert profile.peak_bytes == ASKED.weights_bytes
    assert [phase.name for phase in profile.phases] == ["load", "vision"]


@pytest.mark.parametrize("profile_side", [profile_vidqa, profile_transformers])
def test_every_phase_has_memory_and_time(profile_side: Callable[..., Profile], tmp_path: Path) -> None:
    request = replace(REQUEST, frames=4, size=(112, 112), max_tokens=2)
    profile = profile_side(EngineConfig(model="demo", device="cpu", remember=False), request, tmp_path / "trace.json")
    bytes_by_phase = {phase.name: phase.cumulative_bytes for phase in profile.phases}
    assert profile.notes == ()
    assert min(bytes_by_phase[name] for name in ("vision", "prefill", "decode")) > 0
    total = sum(bytes_by_phase.values())
    assert bytes_by_phase.get("elsewhere", 0) < total / 20
    other = sum(kind.cumulative_bytes for kind in profile.kinds if kind.name == "other")
    assert other < total / 20
