"""Phases and samples from scripted meters, as of a GPU."""

from dataclasses import dataclass, field

from tests.planner.plan_builders import GIB, made_device
from vidqa.devices import memory_tracker as tracking
from vidqa.devices.memory_tracker import Tracker


@dataclass
class ScriptedMeter:
    """Return the next reading of each kind, and at the end the last one again."""

    readings: list[int] = field(default_factory=lambda: [10, 30, 20])
    held: list[int] = field(default_factory=lambda: [100, 150])
    resets: int = 0

    def now(self) -> int:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def peak(self) -> int:
        return 55

    def reset(self) -> None:
        self.resets += 1

    def reserved(self) -> int | None:
        return self.held.pop(0) if len(self.held) > 1 else self.held[0]

    def reserved_peak(self) -> int | None:
        return 160


def test_a_phase_is_measured_from_its_start_to_its_end() -> None:
    meter = ScriptedMeter()
    tracker = Tracker(made_device(8), meter)
    with tracker.phase("vision"):
        assert meter.resets == 1
    (use,) = tracker.phases
    assert (use.name, use.start_bytes, use.peak_bytes, use.end_bytes) == ("vision", 10, 55, 30)
    assert (use.reserved_start_bytes, use.reserved_peak_bytes, use.reserved_end_bytes) == (100, 160, 150)


def test_a_phase_that_fails_is_measured_too() -> None:
    tracker = Tracker(made_device(8), ScriptedMeter())
    try:
        with tracker.phase("prefill"):
            raise MemoryError
    except MemoryError:
        pass
    assert [use.name for use in tracker.phases] == ["prefill"]


def test_a_process_takes_its_runtime_and_what_is_reserved() -> None:
    tracker = Tracker(made_device(8), ScriptedMeter(), runtime_bytes=GIB)
    original, tracking.reread = tracking.reread, lambda device: device  # no such device here to look at again
    try:
        with tracker.phase("decode"):
            sample = tracker.sample()
        assert sample is not None and sample.current_bytes == GIB + 30
        assert tracker.sample() is None  # at most ten a second
        assert tracker.process_peak_bytes() == GIB + 160
    finally:
        tracking.reread = original
