"""Texts about memory: tensors and process apart on a CPU, and causes of an exceeded plan."""

from dataclasses import replace

import pytest

from tests.answer_builders import made_answer
from vidqa.history.export import describe_figures
from vidqa.history.records import plan_figures, usage_figures
from vidqa.messages import above_plan, duration_text, memory_text, usage_text
from vidqa.types import Answer, MemoryLine
from vidqa.utils.metrics import MemoryUse, PhaseMemory

MIB = 2**20


def answer_of(device: str, tensors: int | None, runtime: int, process: int) -> Answer:
    """An answer whose plan has 100 MiB of tensors and 700 MiB for the process; measured figures in MiB."""
    lines = (
        MemoryLine("weights", 100 * MIB, ""),
        MemoryLine("runtime", 700 * MIB, "", "process"),
        MemoryLine("margin", 64 * MIB, "", "margin"),
    )
    made = made_answer("yes")
    plan = replace(made.plan, device=device, lines=lines, margin_bytes=64 * MIB)
    phases = tuple(
        PhaseMemory(name, 0, peak * MIB, 0, None, None, None, 1.0)
        for name, peak in (("load", 50), ("vision", tensors or 60))
    )
    counted = None if tensors is None else tensors * MIB
    memory = MemoryUse(50 * MIB, 0, runtime * MIB, process * MIB, process * MIB, 0, phases, counted)
    return replace(made, plan=plan, memory=memory)


PLANNED = "of 800.0 MiB planned + 64.0 MiB margin"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (answer_of("cpu", 90, 660, 790), f"peak 790.0 MiB {PLANNED} · tensors 90.0 MiB of 100.0 MiB"),
        (
            answer_of("cpu", 90, 660, 812),
            f"peak 812.0 MiB {PLANNED} · tensors 90.0 MiB of 100.0 MiB",
        ),
        (
            answer_of("cpu", 103, 660, 790),
            f"peak 790.0 MiB {PLANNED} · tensors 103.0 MiB of 100.0 MiB",
        ),
        (answer_of("cpu", None, 660, 790), f"peak 790.0 MiB {PLANNED}"),
        (answer_of("cuda:0", 90, 700, 790), f"peak 790.0 MiB {PLANNED}"),
        (
            answer_of("cuda:0", 90, 720, 864),
            f"peak 864.0 MiB {PLANNED}",
        ),
        (
            answer_of("cpu", 170, 660, 870),
            f"peak 870.0 MiB {PLANNED} · tensors 170.0 MiB of 100.0 MiB (6.0 MiB above plan and margin: the vision "
            "phase's tensors took more than planned)",
        ),
        (
            answer_of("cuda:0", 90, 720, 876),
            f"peak 876.0 MiB {PLANNED} (12.0 MiB above plan and margin: CUDA's context took 20.0 MiB more than was "
            "planned for it)",
        ),
        (
            answer_of("cuda:0", 90, 700, 876),
            f"peak 876.0 MiB {PLANNED} (12.0 MiB above plan and margin: torch's allocator held more than the 90.0 MiB "
            "that were in tensors)",
        ),
    ],
)
def test_memory_in_words(answer: Answer, expected: str) -> None:
    assert usage_text(answer).endswith(f" · {expected}")
    assert memory_text(plan_figures(answer.plan), usage_figures(answer)) == expected


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (answer_of("cpu", 90, 660, 790), ""),
        (
            answer_of("cpu", 90, 660, 812),
            "12.0 MiB above plan, within the margin: the process itself grew by 62.0 MiB outside its tensors",
        ),
        (
            answer_of("cpu", 103, 660, 790),
            "3.0 MiB above plan, within the margin: the vision phase's tensors took more than planned",
        ),
        (
            answer_of("cuda:0", 90, 720, 864),
            "64.0 MiB above plan, within the margin: CUDA's context took 20.0 MiB more than was planned for it",
        ),
    ],
)
def test_json_names_the_cause_also_within_the_margin(answer: Answer, cause: str) -> None:
    assert above_plan(answer.plan, answer.memory) == usage_figures(answer)["above_plan"] == cause


def test_an_older_record_without_tensor_bytes_has_a_text() -> None:
    plan, usage = {"device": "cpu", "predicted_peak_bytes": 800 * MIB}, {"measured_peak_bytes": 804 * MIB}
    assert memory_text(plan, usage) == "peak 804.0 MiB of 800.0 MiB planned (4.0 MiB above plan and margin)"


def test_the_time_to_an_answer_includes_loading() -> None:
    answer = made_answer("yes")  # 1 s to load, 2 s to the first word, 1 s of decoding
    assert answer.timing.total_seconds == 4
    expected = "answer in 4.0 s (1.0 to load, first word after 2.0)"
    assert usage_text(answer).startswith(f"{expected} · 11 tokens at 10/s · ")
    assert f" · {expected} · " in describe_figures(plan_figures(answer.plan), usage_figures(answer))
    assert duration_text(0.5, 0.0, 0.2) == "answer in 0.5 s (first word after 0.2)"
