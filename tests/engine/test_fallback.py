"""When memory runs out, a smaller plan continues the answer, and nothing leaks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.asking import ANSWER, CLIP, DEMO_WEIGHTS, QUESTION, TWO_EVENTS, answer_in, of_kind
from tests.planner.plan_builders import SPEC_2B, SPEC_7B, made_problem
from vidqa import EngineConfig, Request, Session
from vidqa.devices.memory_tracker import TensorMeter
from vidqa.devices.tensor_counter import TensorCounter
from vidqa.engine.prefix_cache import VisionEmbeddings
from vidqa.errors import DoesNotFit
from vidqa.events import Degraded, Event, Noted, TextDelta
from vidqa.models.vlm import VisionLanguageModel
from vidqa.planner.fallback import lower
from vidqa.planner.planner import plan_video
from vidqa.types import Placement

PHASES = ("load", "vision", "prefill", "decode")


def failing(phase: str, *, times: int, after: int = 0) -> Callable[[str], None]:
    """A fault that raises MemoryError in one phase: `times` times, after `after` quiet units of it."""
    left, quiet = times, after

    def fault(entered: str) -> None:
        nonlocal left, quiet
        if entered != phase:
            return
        quiet -= 1
        if quiet < 0 < left:
            left -= 1
            raise MemoryError(f"planted in {phase}")

    return fault


def ask(fault: Callable[[str], None], **how: Any) -> list[Event]:
    with Session(EngineConfig(isolate_decoder=False), fault=fault) as session:
        return list(session.ask(Request(**{"video": CLIP, "question": QUESTION} | how)))


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_that_fails_once_is_answered(phase: str) -> None:
    events = ask(failing(phase, times=1))
    steps, answer = of_kind(events, Degraded), answer_in(events)
    assert [step.phase for step in steps] == [phase]
    assert answer.text == ANSWER
    assert answer.degraded == (f"{phase} ran out of memory: {steps[0].step}",)
    assert steps[0].plan.predicted_peak_bytes <= answer.plan.budget_bytes
    lowered = {"load": f"{DEMO_WEIGHTS[1]} weights", "decode": "int8 KV cache"}.get(phase, "smallest chunks")
    assert steps[0].step == lowered


def test_an_allocation_before_the_first_phase_does_not_blame_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve, failures = VisionEmbeddings.reserve, [MemoryError("planted")]

    def reserved(tokens: int, model: VisionLanguageModel) -> VisionEmbeddings:
        if failures:
            raise failures.pop()
        return reserve(tokens, model)

    monkeypatch.setattr(VisionEmbeddings, "reserve", reserved)
    config = EngineConfig(isolate_decoder=False, placement=Placement(vision_offloaded=True))
    with Session(config) as session:
        events = list(session.ask(Request(CLIP, QUESTION)))
    assert [step.phase for step in of_kind(events, Degraded)] == ["vision"]
    assert answer_in(events).plan.run_config.weights == DEMO_WEIGHTS[0]  # those that are loaded


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_that_always_fails_ends_with_the_numbers(phase: str) -> None:
    degraded = []
    session = Session(EngineConfig(isolate_decoder=False), fault=failing(phase, times=1000))
    message = f"The {phase} phase ran out of memory: .* were planned for"
    with session, pytest.raises(DoesNotFit, match=message) as refused:
        for event in session.ask(Request(CLIP, QUESTION)):
            if isinstance(event, Degraded):
                degraded.append(event.step)
    assert (
        degraded
        == {
            "load": [f"{DEMO_WEIGHTS[1]} weights"],  # nf4 would take more here while it is loaded
            "vision": ["smallest chunks", "int8 KV cache", "half of the visual tokens"],  # the cache fills meanwhile
            "prefill": ["smallest chunks", "int8 KV cache", "half of the visual tokens"],
            "decode": ["int8 KV cache", "half of the visual tokens"],
        }[phase]
    )
    assert "smaller model" in refused.value.remedy


def test_a_retry_continues_the_text_and_the_clock() -> None:
    events = ask(failing("decode", times=1, after=3))
    place = next(number for number, event in enumerate(events) if isinstance(event, Degraded))
    answer, timing = answer_in(events), answer_in(events).timing
    assert of_kind(events[:place], TextDelta)
    assert "".join(event.text for event in of_kind(events, TextDelta)).strip() == answer.text == ANSWER
    assert timing.tokens == 6 and 0 < timing.first_token_seconds < 60 and timing.decode_seconds > 0
    assert timing.tokens_per_second < 50_000


def test_three_steps_one_after_the_other() -> None:
    events = ask(failing("prefill", times=3), video=TWO_EVENTS)  # 12 frames: more than one small chunk
    assert [event.step for event in of_kind(events, Degraded)] == [
        "smallest chunks", "int8 KV cache", "half of the visual tokens",
    ]  # fmt: skip
    answer = answer_in(events)
    run_config = answer.plan.run_config
    assert (run_config.vision_chunk, run_config.prefill_chunk, run_config.kv, run_config.frames) == (1, 128, "int8", 6)
    assert answer.text.startswith("first a red circle moves right")


def test_a_failed_attempt_leaks_nothing() -> None:
    live = TensorCounter("cpu")
    config = EngineConfig(isolate_decoder=False, remember=False)
    schedule = {"fault": failing("vision", times=0)}
    with Session(config, fault=lambda phase: schedule["fault"](phase), meter=TensorMeter(live)) as session:
        list(session.ask(Request(CLIP, QUESTION)))
        session.forget()
        with live:
            list(session.ask(Request(CLIP, QUESTION)))
            session.forget()
            baseline = live.now
            for phase in PHASES[1:]:
                schedule["fault"] = failing(phase, times=2, after=2 if phase == "decode" else 1)
                list(session.ask(Request(CLIP, QUESTION)))
                session.forget()
                assert live.now == baseline, phase


def test_what_the_user_set_is_not_lowered() -> None:
    config = EngineConfig(isolate_decoder=False, kv="native", prefill_chunk=64, vision_chunk=2)
    with Session(config, fault=failing("prefill", times=1000)) as session, pytest.raises(DoesNotFit):
        list(session.ask(Request(CLIP, QUESTION, frames=8, size=(140, 112))))
    weights = EngineConfig(isolate_decoder=False, weights="fp32")
    with Session(weights, fault=failing("load", times=1)) as session, pytest.raises(DoesNotFit, match="The load phase"):
        list(session.ask(Request(CLIP, QUESTION)))


def test_other_errors_are_not_taken_for_memory() -> None:
    def fault(phase: str) -> None:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        ask(fault)


def test_on_a_gpu_the_first_step_moves_what_costs_no_quality() -> None:
    problem = made_problem(24, 60, SPEC_7B)
    plan = plan_video(problem)
    first = lower(problem, plan, "prefill")
    assert first.step == "smallest chunks, vision tower off the device"
    place = first.plan.run_config.placement
    assert place.vision_offloaded and not place.kv_on_host
    assert (
        first.plan.run_config.frames == plan.run_config.frames
        and first.plan.run_config.weights == plan.run_config.weights
    )
    second = lower(first.problem, first.plan, "prefill")
    third = lower(second.problem, second.plan, "prefill")
    assert second.plan.run_config.kv == "int8"
    assert third.plan.visual_tokens <= plan.visual_tokens // 2
    peaks = [step.phase_bytes["prefill"] for step in (plan, first.plan, second.plan, third.plan)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4


def test_less_free_memory_than_planned_is_taken_into_account() -> None:
    problem = made_problem(8, 60, SPEC_2B)
    plan = plan_video(problem)
    squeezed = replace(problem, budget_bytes=plan.required_bytes - 200 * 2**20)
    lowered = lower(squeezed, plan, "vision")
    assert lowered.plan.required_bytes <= squeezed.budget_bytes


def test_every_step_lowers_the_phase_that_failed() -> None:
    for phase in ("vision", "prefill", "decode", "load"):
        problem = made_problem(24, 60, SPEC_7B)
        plan = plan_video(problem)
        for _ in range(3):
            try:
                lowered = lower(problem, plan, phase)
            except DoesNotFit:
                break
            assert lowered.plan.phase_bytes[phase] < plan.phase_bytes[phase], (phase, lowered.step)
            problem, plan = lowered.problem, lowered.plan
        assert plan.phase_bytes[phase] < plan_video(made_problem(24, 60, SPEC_7B)).phase_bytes[phase]


def test_the_vision_phase_gives_up_pixels_first() -> None:
    problem = made_problem(24, 60, SPEC_2B, frames=8)
    plan = plan_video(problem)
    first = lower(problem, plan, "vision")
    second = lower(first.problem, first.plan, "vision")
    assert second.step == "half of the pixels"
    assert second.plan.run_config.frames == 8 and second.plan.run_config.height < plan.run_config.height


def test_stopping_a_retry_returns_the_text_so_far() -> None:
    with Session(EngineConfig(isolate_decoder=False), fault=failing("decode", times=1, after=3)) as session:
        events = []
        for event in session.ask(Request(CLIP, QUESTION)):
            events.append(event)
            if isinstance(event, Degraded):
                session.cancel()
    answer = answer_in(events)
    assert answer.finish_reason == "cancelled"
    assert ANSWER.startswith(answer.text) and answer.text


def test_a_note_is_yielded_once() -> None:
    events = ask(failing("prefill", times=1), frames=4)  # of four seconds: more than a second apart
    notes = [event.text for event in of_kind(events, Noted)]
    assert len(notes) >= 1 and len(set(notes)) == len(notes)
    assert tuple(notes) == answer_in(events).notes
