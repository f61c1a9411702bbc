"""On a CPU, tensors and the process are planned and measured apart, and neither exceeds its plan."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engine.asking import ASSETS, CONFIG, answer_in, ask
from vidqa import Request, Session
from vidqa.events import MemorySampled, Planned
from vidqa.types import Answer, Turn

CLIPS = ("demo.mp4", "demo-two.mp4", "demo-color.mp4", "demo-empty.mp4")
SIZES: tuple[tuple[int, int] | None, ...] = (None, (84, 84), (280, 280), (140, 112), (56, 168))
FRAMES = (4, 8, 16)
MIB = 2**20


def answered(session: Session, clip: str, question: str, **how: Any) -> Answer:
    return ask(session, video=str(ASSETS / clip), question=question, **how)


def check(answer: Answer, number: int) -> None:
    plan, memory = answer.plan, answer.memory
    assert memory.tensor_peak_bytes is not None
    assert memory.weights_bytes < memory.tensor_peak_bytes <= plan.tensor_bytes, number
    assert plan.predicted_peak_bytes == plan.tensor_bytes + plan.runtime_bytes
    assert memory.measured_peak_bytes <= plan.predicted_peak_bytes, number


def test_50_questions_in_a_row_stay_below_their_plans() -> None:
    """Every second one follows up on the one before it; clips, sizes and numbers of frames change."""
    threads, text = torch.get_num_threads(), ""
    torch.set_num_threads(1)
    with Session(replace(CONFIG, conversation_tokens=128)) as session:
        for number in range(50):
            clip_number = number // 2
            size = SIZES[clip_number % len(SIZES)]
            how: dict[str, Any] = {"size": size, "frames": FRAMES[clip_number % len(FRAMES)]} if size else {}
            if number % 2:
                how["history"] = (Turn("what happens?", text),)
            question = "what color is it?" if number % 2 else "what happens?"
            answer = answered(session, CLIPS[clip_number % len(CLIPS)], question, **how)
            assert (answer.timing.video_seconds == 0) == bool(number % 2)  # a follow-up reads no video
            check(answer, number)
            text = answer.text
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("weights", "kv"), [("nf4", "native"), ("int8", "int8")])
def test_quantized_weights_stay_below_their_plans_too(weights: str, kv: str) -> None:
    config = replace(CONFIG, weights=weights, kv=kv)
    with Session(config) as session:
        check(answered(session, "demo.mp4", "what happens?"), 0)


def test_what_was_counted_is_close_to_what_was_planned() -> None:
    """Frames on their way are planned for a reader that is ahead, which it need not be."""
    with Session(CONFIG) as session:
        answer = answered(session, "demo.mp4", "what happens?", frames=8, size=(280, 280))
    ahead = sum(line.bytes for line in answer.plan.lines if line.name == "frames on their way")
    assert 0 < answer.plan.tensor_bytes - (answer.memory.tensor_peak_bytes or 0) <= ahead + 2 * MIB


def test_the_runtime_is_what_this_process_holds_and_not_what_others_held() -> None:
    ballast = torch.ones(200 * MIB // 4)
    with Session(CONFIG) as session:
        before = answered(session, "demo.mp4", "what happens?")
        del ballast
        after = answered(session, "demo-two.mp4", "what happens?")
    runtime = {line.name: line for line in before.plan.lines}["runtime"]
    assert runtime.kind == "process" and runtime.formula.startswith("measured in this process")
    assert before.memory.runtime_bytes - after.memory.runtime_bytes == pytest.approx(200 * MIB, abs=48 * MIB)
    assert before.plan.runtime_bytes - after.plan.runtime_bytes == pytest.approx(200 * MIB, abs=48 * MIB)
    assert after.plan.budget_bytes > after.plan.required_bytes


def test_tensors_are_counted_while_they_are_made_and_the_last_plan_has_the_measured_runtime() -> None:
    with Session(CONFIG) as session:
        events = list(session.ask(Request(str(ASSETS / "demo.mp4"), "what happens?")))
        answer = answer_in(events)
        samples = [event.tensor_peak_bytes or 0 for event in events if isinstance(event, MemorySampled)]
        assert samples == sorted(samples) and 0 < samples[-1] <= answer.plan.tensor_bytes
        *_, plan = (event.plan for event in events if isinstance(event, Planned))
        assert plan.lines == answer.plan.lines


def test_where_tensors_are_not_counted_only_the_process_is_reported() -> None:
    config = replace(CONFIG, count_tensors=False)
    with Session(config) as session:
        first, second = (answered(session, clip, "what happens?") for clip in CLIPS[:2])
    memory = first.memory
    assert memory.tensor_peak_bytes is None and memory.measured_peak_bytes == memory.host_peak_bytes > 100 * MIB
    assert second.plan.runtime_bytes == first.plan.runtime_bytes  # loaded weights are no part of it


def test_loaded_weights_are_not_planned_twice() -> None:
    with Session(CONFIG) as session:
        answer = answered(session, "demo.mp4", "what happens?")
        weights = torch.ones(200 * MIB // 4)
        assert session._models._live is not None
        session._models._live.count(weights)  # as if the weights were 200 MiB larger
        plan = session.forecast(answer.video, Request("", "")).plan
    assert plan is not None and plan.runtime_bytes - answer.plan.runtime_bytes < 100 * MIB
