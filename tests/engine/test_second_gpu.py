"""CUDA events are recorded on the stream of the working device, which need not be the current one."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vidqa.engine.decode import _start_copy
from vidqa.engine.timers import PhaseTimer


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The streams that events were recorded on, by the name of their device."""
    streams: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.enable_timing = enable_timing

        def record(self, stream: Any = "of the current device") -> None:
            streams.append(stream)

        def synchronize(self) -> None:
            """It is over."""

        def elapsed_time(self, end: "Event") -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    return streams


def test_a_token_is_read_after_its_own_device(recorded: list[str]) -> None:
    with FakeTensorMode():
        _start_copy(torch.zeros(1, dtype=torch.int64, device="cuda:1"))
    assert recorded == ["of cuda:1"]


def test_stages_are_timed_on_their_own_device(recorded: list[str]) -> None:
    timer = PhaseTimer("cuda:1")
    with timer.measure("vision"):
        pass
    assert recorded == ["of cuda:1", "of cuda:1"]
    assert timer.seconds("vision") == 0.25
