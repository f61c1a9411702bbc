"""A driver that does not name our process: its context is measured, and neither others' nor planned twice."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from tests.devices.scripted_nvml import GIB, MIB, OWN, Card, ScriptedNvml, machine
from tests.planner.plan_builders import made_problem
from vidqa.config import EngineConfig
from vidqa.devices.device import find_device, start_cuda
from vidqa.devices.nvml import ASSUMED_CONTEXT_BYTES
from vidqa.planner.budget import budget_bytes
from vidqa.planner.planner import plan_video
from vidqa.types import Device, Plan

OTHERS = 2560 * MIB
FREE = 8 * GIB - OTHERS


@dataclass
class HiddenProcess:
    """A card of 8 GiB whose driver does not name our process, OTHERS held by another process, and torch in ours.

    `reserved` and `context` are what we hold by now.
    """

    reserved: int = 0
    context: int = 0
    started: bool = False

    def __post_init__(self) -> None:
        self.card = Card(total=8 * GIB, reserved=0, computing=[(7, None)])
        cuda = SimpleNamespace(
            is_initialized=lambda: self.started,
            device_count=lambda: 1,
            get_device_properties=lambda index: SimpleNamespace(uuid="aaaa"),
            mem_get_info=lambda index: (self.card.free, 8 * GIB),
            memory_reserved=lambda index: self.reserved,
        )
        self.machine = machine(ScriptedNvml(self.look()), modules={"torch": SimpleNamespace(cuda=cuda)})

    def look(self) -> Card:
        self.card.free = FREE - self.reserved - self.context
        return self.card

    def take(self, reserved: int, context: int) -> None:
        self.reserved, self.context, self.started = reserved, context, True
        self.look()

    def device(self) -> Device:
        return find_device("cuda", self.machine)

    def budget(self) -> int:
        return budget_bytes(self.device(), EngineConfig())

    def plan(self, less_bytes: int = 0) -> Plan:
        """What a minute of video would run by now."""
        return plan_video(replace(made_problem(8, device=self.device()), budget_bytes=self.budget() - less_bytes))


def test_a_context_that_the_driver_hides_is_ours_and_leaves_the_budget_as_it_was() -> None:
    """Docker, Colab and WSL report this process by another id or not at all."""
    gpu = HiddenProcess()
    first = gpu.device()
    assert (gpu.budget(), first.process_bytes, first.other_bytes) == (FREE, 0, OTHERS)
    planned = gpu.plan()
    assert gpu.plan(less_bytes=410 * MIB).run_config != planned.run_config  # a context counted twice would show
    start_cuda(first, lambda: gpu.take(2 * MIB, 410 * MIB), gpu.machine)
    assert gpu.machine.context_bytes == {(OWN, 0): 410 * MIB}
    started = gpu.device()
    assert (gpu.budget(), started.process_bytes, started.other_bytes) == (FREE, 412 * MIB, OTHERS)
    assert gpu.plan() == planned
    gpu.take(5 * GIB, 410 * MIB)  # the second question finds the weights of the first
    later = gpu.device()
    assert (gpu.budget(), later.process_bytes, later.other_bytes) == (FREE, 5 * GIB + 410 * MIB, OTHERS)
    assert gpu.plan() == planned
    start_cuda(later, lambda: gpu.take(5 * GIB, 900 * MIB), gpu.machine)  # once is enough
    assert gpu.machine.context_bytes == {(OWN, 0): 410 * MIB}


@pytest.mark.parametrize("taken_by_others", [-GIB, 3 * GIB])
def test_a_fall_of_free_memory_that_is_no_context_is_not_taken_for_one(taken_by_others: int) -> None:
    gpu = HiddenProcess()

    def start() -> None:
        gpu.take(2 * MIB, 410 * MIB)
        gpu.card.free -= taken_by_others

    start_cuda(gpu.device(), start, gpu.machine)
    assert gpu.machine.context_bytes == {}
    gpu.take(2 * MIB, 410 * MIB)
    assert gpu.device().process_bytes == 2 * MIB + ASSUMED_CONTEXT_BYTES  # what is usual
    gpu.card.free = 8 * GIB - 300 * MIB
    assert gpu.device().process_bytes == 300 * MIB  # and no more than is in use
