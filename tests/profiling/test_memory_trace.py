"""Cumulative beside peak, from scripted profiler events."""

from typing import Any

import pytest

from tests.planner.plan_builders import SPEC_2B
from vidqa.profiling.allocation_classifier import model_shapes
from vidqa.profiling.memory_trace import (
    Trace,
    alive_at_peak,
    level_peaks,
    make_timeline,
    peak_bytes,
    read_trace,
    totals,
)
from vidqa.types import PHASE_MARK

MODEL = model_shapes(SPEC_2B)
Event = dict[str, Any]


def operator(name: str, begin: float, duration: float, *shapes: list[int], number: int = 0, thread: int = 1) -> Event:
    args = {"Input Dims": list(shapes), "External id": number}
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": begin, "dur": duration, "tid": thread, "args": args}


def span(category: str, name: str, begin: float, duration: float) -> Event:
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": duration, "tid": 1, "args": {}}


def phase(name: str, begin: float, duration: float) -> Event:
    return span("user_annotation", PHASE_MARK + name, begin, duration)


def memory(moment: float, size: int, address: int, device: int = 0, thread: int = 1) -> Event:
    args = {"Bytes": size, "Addr": address, "Device Type": device}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": moment, "tid": thread, "args": args}


def read(*events: Event, device_type: int = 0) -> Trace:
    return read_trace(events, MODEL, device_type=device_type)


def layers_of_scores(layers: int, tokens: int) -> list[Event]:
    """Each layer allocates its score matrix and frees it before the next layer, as in the published profile."""
    size, events = 12 * tokens * tokens * 8, []
    for layer in range(layers):
        begin = 100.0 * layer
        events += [
            operator("aten::bmm", begin, 50, [12, tokens, 128], [12, 128, tokens]),
            operator("aten::empty", begin + 1, 5),
            memory(begin + 2, size, 7),
            memory(begin + 60, -size, 7),
        ]
    return events


def test_cumulative_is_not_peak() -> None:
    trace = read(*layers_of_scores(28, 3626))
    (total,) = totals(trace.allocations, "operator")
    assert total.name == "aten::bmm"  # not the aten::empty inside
    assert total.count == 28
    assert total.cumulative_bytes / 2**30 == pytest.approx(32.9, abs=0.05)
    assert total.peak_bytes == total.cumulative_bytes // 28
    assert [kind.name for kind in totals(trace.allocations, "words")] == ["score matrices"]


def test_an_operators_peak_is_of_its_own_allocations() -> None:
    trace = read(
        operator("aten::mul", 0, 10), memory(1, 100, 1),
        operator("aten::add", 20, 10), memory(21, 50, 2),
        memory(30, -100, 1),
        operator("aten::mul", 40, 10), memory(41, 70, 3),
        memory(60, -50, 2), memory(61, -70, 3),
    )  # fmt: skip
    by_name = {total.name: total for total in totals(trace.allocations, "operator")}
    assert (by_name["aten::mul"].cumulative_bytes, by_name["aten::mul"].peak_bytes) == (170, 100)
    assert (by_name["aten::add"].cumulative_bytes, by_name["aten::add"].peak_bytes) == (50, 50)
    assert peak_bytes(trace.allocations) == 150
    assert [one.size_bytes for one in alive_at_peak(trace.allocations)] == [100, 50]


def test_a_reused_address_is_another_allocation() -> None:
    trace = read(memory(0, 10, 1), memory(1, -10, 1), memory(2, 30, 1), memory(3, 5, 2))
    assert [(one.size_bytes, one.end) for one in trace.allocations] == [(10, 1e-6), (30, None), (5, None)]


def test_frees_of_earlier_allocations_are_ignored() -> None:
    trace = read(memory(0, -10, 1), memory(1, 20, 2))
    assert [one.size_bytes for one in trace.allocations] == [20]


def test_devices_are_separate() -> None:
    events = (memory(0, 10, 1), memory(1, 30, 1, device=1))
    assert [one.size_bytes for one in read(*events).allocations] == [10]
    assert [one.size_bytes for one in read(*events, device_type=1).allocations] == [30]


def test_each_thread_has_its_stack() -> None:
    trace = read(
        operator("aten::mm", 0, 100, thread=1), operator("aten::cat", 0, 100, thread=2),
        memory(10, 1, 1, thread=2), memory(20, 2, 2, thread=1),
    )  # fmt: skip
    assert [(one.size_bytes, one.operator) for one in trace.allocations] == [(1, "aten::cat"), (2, "aten::mm")]


def test_memory_without_an_operator() -> None:
    assert read(memory(0, 10, 1)).allocations[0].operator == "(no operator)"


def test_an_operators_seconds_exclude_the_operators_inside() -> None:
    trace = read(
        phase("decode", 0, 100),
        operator("aten::linear", 10, 50), span("python_function", "torch/x.py(1): f", 12, 40),
        operator("aten::addmm", 15, 30),
    )  # fmt: skip
    assert trace.operator_seconds == pytest.approx({"aten::linear": 20e-6, "aten::addmm": 30e-6})
    assert trace.phase_seconds == pytest.approx({"decode": 50e-6})


def test_kernels_count_for_the_operator_that_launched_them() -> None:
    kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 90, "dur": 7, "tid": 9, "args": {"External id": 4}}
    trace = read(operator("aten::mm", 0, 10, number=4), kernel)
    assert trace.device_seconds == pytest.approx({"aten::mm": 7e-6})


def test_a_phases_peak_includes_other_phases_tensors() -> None:
    trace = read(
        phase("vision", 0, 10), memory(1, 100, 1),
        phase("prefill", 20, 10), memory(21, 30, 2), memory(22, -100, 1),
        memory(23, 20, 3),
    )  # fmt: skip
    assert level_peaks(trace.allocations) == {"vision": 100, "prefill": 130}


def test_the_timeline_has_the_peak_of_every_stretch() -> None:
    events = []
    for number in range(1000):
        size = 1000 if number == 500 else 10
        events += [memory(2 * number, size, 1), memory(2 * number + 1, -size, 1)]
    trace = read(*events)
    timeline = make_timeline(trace.allocations, {"weights": 7}, moments=50)
    assert len(timeline.seconds) <= 52
    assert max(timeline.total()) == 1007
    assert timeline.seconds == tuple(sorted(timeline.seconds))
    assert timeline.layer("weights") == (7,) * len(timeline.seconds)
    assert timeline.largest(1) == ["other"]
    assert timeline.rest(["other"]) == timeline.layer("weights")


def test_tensors_of_a_list_are_shapes_too() -> None:
    cat = operator("aten::cat", 0, 10)
    cat["args"]["Input Dims"] = [[[1, 2, 9, 128], [1, 2, 1, 128]], []]
    (one,) = read(cat, memory(1, 10, 1)).allocations
    assert (one.words, one.shape) == ("KV concatenation", "1×2×9×128 1×2×1×128")
