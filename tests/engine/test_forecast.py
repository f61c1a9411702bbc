"""Forecasts: the plan of a probed video without its file, or why none fits and which one is nearest."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.asking import DEMO_WEIGHTS
from tests.engine.test_demo_parity import CLIP, QUESTION
from tests.planner.plan_builders import GIB, SPEC_2B, SPEC_7B, made_problem, made_video
from vidqa import EngineConfig, Request, Session
from vidqa.errors import UsageError
from vidqa.events import Answered, Planned
from vidqa.planner.budget import RuntimeOverhead
from vidqa.planner.memory_model import with_runtime
from vidqa.planner.model_choice import forecast
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import PlanningProblem
from vidqa.types import Plan

NOWHERE = Request("no such file.mp4", "")
EVERYTHING: dict[str, Any] = {
    "frames": 64, "size": (1008, 560), "weights": "bf16", "kv": "native", "prefill_chunk": 1024, "vision_chunk": 8,
}  # fmt: skip


def refused(gib: float, **how: Any) -> tuple[PlanningProblem, Forecast]:
    problem = made_problem(gib, 60, SPEC_7B, **how)
    found = forecast([problem])
    assert found.plan is None and found.refusal is not None and found.wanted is not None
    return problem, found


def test_it_is_the_plan_of_the_question_that_follows() -> None:
    config = EngineConfig(isolate_decoder=False, remember=False, vram_bytes=3 * GIB)
    request = Request(CLIP, QUESTION, max_tokens=4)
    with Session(config) as session:
        (found, *_) = (event for event in session.ask(request) if isinstance(event, Planned))
        expected = session.forecast(found.video, request).plan
        assert expected is not None
        around = RuntimeOverhead(GIB, "", 0, 0)  # the process holds a little more by now
        expected, ran = (with_runtime(replace(plan, prompt_tokens=0), around) for plan in (expected, found.plan))
        assert expected == ran


def test_no_file_is_opened_and_no_question_needed() -> None:
    found = Session(EngineConfig(model="2b", device="cpu", vram_bytes=40 * GIB)).forecast(made_video(60), NOWHERE)
    assert found.plan is not None and found.refusal is None and found.problem.request == NOWHERE
    with pytest.raises(UsageError, match="max-tokens"):
        Session(EngineConfig()).forecast(made_video(60), replace(NOWHERE, max_tokens=0))


def test_other_settings_are_tried_without_becoming_the_sessions() -> None:
    session = Session(EngineConfig(model="2b", device="cpu"))
    other = replace(session.config, model="7b", weights="nf4")
    found = session.forecast(made_video(60), NOWHERE, other)
    assert found.problem.spec == SPEC_7B and session.config.model == "2b"
    least = session.forecast(made_video(60), NOWHERE, replace(other, vram_bytes=GIB))
    assert least.refusal is not None and least.wanted is not None and least.wanted.run_config.weights == "nf4"


def test_a_refusal_shows_where_the_memory_would_go_and_what_fits() -> None:
    problem, found = refused(7.6, weights="bf16", frames=64)
    assert found.refusal is not None and found.wanted is not None and found.nearest is not None
    assert found.wanted.required_bytes == found.refusal.smallest_budget_bytes > problem.budget_bytes
    assert found.wanted.budget_bytes == problem.budget_bytes
    assert sum(line.bytes for line in found.wanted.lines) == found.wanted.required_bytes
    assert (found.wanted.run_config.weights, found.wanted.run_config.frames) == ("bf16", 64)
    run_config = found.nearest.run_config
    assert (
        f"--weights {run_config.weights} --frames {run_config.frames} --size {run_config.width}x{run_config.height}"
        in str(found.refusal)
    )


@pytest.mark.parametrize(
    ("gib", "how", "expected"),
    [
        (7.6, EVERYTHING, {"frames": 64}),  # the precision is what does not fit; large frames still do
        (15.4, EVERYTHING, {"weights": "bf16", "frames": 64, "width": 1008, "kv": "bf16"}),
        (24, {"frames": 200, "size": (1960, 1960), "weights": "bf16"}, {"weights": "bf16", "frames": 200}),
        (24, {"frames": 64, "weights": "bf16", "max_wait_seconds": 1.0}, {"weights": "bf16", "frames": 64}),
        (80, {"frames": 768, "size": (1008, 560)}, {"width": 1008, "height": 560}),
    ],
)
def test_the_nearest_plan_changes_as_little_as_possible(
    gib: float, how: dict[str, Any], expected: dict[str, Any]
) -> None:
    problem, found = refused(gib, **how)
    assert found.nearest is not None
    assert found.nearest.required_bytes <= problem.budget_bytes
    assert {name: getattr(found.nearest.run_config, name) for name in expected} == expected


def test_a_wait_grows_to_what_is_needed() -> None:
    _, found = refused(24, max_wait_seconds=0.1)
    assert found.nearest is not None
    assert found.refusal is not None and (needed := re.search(r"--max-wait (\d+),", found.refusal.remedy))
    assert found.nearest.seconds.first_token_seconds <= int(needed[1]) < 20


def test_nothing_is_near_where_nothing_was_set() -> None:
    _, found = refused(2.0)
    assert found.nearest is None


@settings(max_examples=60, deadline=None)
@given(
    st.floats(2.0, 30.0),
    st.sampled_from([SPEC_2B, SPEC_7B]),
    st.fixed_dictionaries(
        {},
        optional={
            "frames": st.integers(1, 400).map(lambda half: 2 * half),
            "size": st.sampled_from([(448, 252), (1960, 1960)]),
            "weights": st.sampled_from(["bf16", "int8", "nf4"]), "kv": st.sampled_from(["native", "int8"]),
            "max_wait_seconds": st.floats(0.1, 60), "prefill_chunk": st.sampled_from([64, 4096]),
        },
    ),
)  # fmt: skip
def test_there_is_a_plan_or_a_reason(gib: float, spec: Any, how: dict[str, Any]) -> None:
    problem = made_problem(gib, 60, spec, **how)
    found = forecast([problem])
    assert (found.plan is None) == (found.refusal is not None) == (found.wanted is not None)
    if found.nearest is not None:
        assert found.plan is None and found.nearest.required_bytes <= problem.budget_bytes
        within = spec.context_tokens - problem.text_tokens - problem.request.max_tokens
        assert found.nearest.visual_tokens <= within
        assert found.nearest.run_config.frames <= how.get("frames", 800)


def test_loaded_weights_stay_unless_others_are_set() -> None:
    config = EngineConfig(isolate_decoder=False, remember=False, weights="fp32")
    with Session(config) as session:
        *_, last = session.ask(Request(CLIP, QUESTION, max_tokens=2))
        assert isinstance(last, Answered)
        video = last.answer.video

        def weights(config: EngineConfig) -> tuple[str | None, str]:
            found = session.forecast(video, NOWHERE, config)
            assert found.plan is not None
            return found.problem.pinned_weights, found.plan.run_config.weights

        assert weights(replace(config, quality="fast")) == ("fp32", "fp32")
        assert weights(replace(config, weights="nf4")) == (None, "nf4")
        assert weights(replace(config, weights=None)) == (None, DEMO_WEIGHTS[0])


def test_a_planned_forecast_is_quick() -> None:
    """Far above what it takes (benchmarks say how long): a guard against a search that explodes."""
    session, plans = Session(EngineConfig(model="7b", device="cpu", vram_bytes=8 * GIB, max_wait_seconds=2.0)), []
    began = time.process_time()
    for frames in (16, 64, 256):
        plans.append(session.forecast(made_video(7200), replace(NOWHERE, frames=frames, size=(1008, 560))))
    assert time.process_time() - began < 1.5
    assert all(isinstance(found.plan or found.wanted, Plan) for found in plans)


def test_a_forecast_needs_no_torch() -> None:
    code = """
import sys
from tests.planner.plan_builders import made_video
from vidqa import EngineConfig, Request, Session
found = Session(EngineConfig(model="2b", device="cpu")).forecast(made_video(60), Request("none.mp4", "?"))
assert found.plan or found.refusal
print(sorted({"torch", "transformers", "av", "numpy"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.stdout.strip(), ran.returncode) == ("[]", 0), ran.stderr
