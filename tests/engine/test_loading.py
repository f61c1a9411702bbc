"""Loading before a question: progress in bytes, cancellation, and reuse by the question."""

import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from demo_world.precisions import write_checkpoint
from tests.demos import QWEN2_DEMO
from tests.engine.asking import ANSWER, CLIP, CONFIG, DEMO_WEIGHTS, QUESTION, answer_in, ask
from tests.engine.test_fallback import failing
from vidqa import EngineConfig, Request, Session
from vidqa.engine.model_manager import BackgroundTask
from vidqa.engine.timers import stage_events, starting_libraries
from vidqa.errors import DoesNotFit, Interrupted, UsageError
from vidqa.events import Answered, Degraded, Event, MemorySampled, Planned, StageProgress, StageStarted
from vidqa.models.hub import demo_folder
from vidqa.models.loader import load_model
from vidqa.models.weight_files import tensor_sizes
from vidqa.types import Placement

REQUEST = Request(CLIP, QUESTION, max_tokens=16)
AHEAD = Request(CLIP, "")


def progress_of(events: list[Event]) -> list[int]:
    return [event.done for event in events if isinstance(event, StageProgress) and event.stage == "load"]


@pytest.mark.parametrize("weights", ["fp32", "nf4"])
def test_every_tensor_is_counted_when_it_is_in_the_model(weights: str) -> None:
    counts: list[int] = []
    dtype = "fp32" if weights == "fp32" else "bf16"
    load_model(QWEN2_DEMO, torch.device("cpu"), weights, dtype, Placement(), counts.append)
    sizes = tensor_sizes(QWEN2_DEMO)
    steps = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    assert sorted(steps) == sorted(sizes.values()) and counts[-1] == sum(sizes.values())


def test_what_is_stored_quantized_is_counted_too(tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = Qwen2VLForConditionalGeneration.from_pretrained(QWEN2_DEMO, quantization_config=four, device_map="cpu")
    counts: list[int] = []
    folder = write_checkpoint(model, tmp_path / "stored", QWEN2_DEMO)
    load_model(folder, torch.device("cpu"), "nf4", "bf16", Placement(), counts.append)
    assert counts == sorted(counts) and counts[0] > 0 and counts[-1] == sum(tensor_sizes(folder).values())


def test_loading_stops_between_two_tensors_and_the_hook_is_gone() -> None:
    def stop(done_bytes: int) -> None:
        raise Interrupted("Enough.")

    with pytest.raises(Interrupted, match="Enough"):
        load_model(QWEN2_DEMO, torch.device("cpu"), "fp32", "fp32", Placement(), stop)
    counts: list[int] = []
    load_model(QWEN2_DEMO, torch.device("cpu"), "fp32", "fp32", Placement(), counts.append)
    assert len(counts) > 10


def test_a_question_uses_the_model_that_was_loaded_before() -> None:
    with Session(CONFIG) as session:
        events = list(session.load(AHEAD))
        loaded, total = session.loaded, sum(tensor_sizes(demo_folder()).values())
        assert isinstance(events[0], Planned) and events[1] == StageStarted("load", total)
        assert loaded is not None and progress_of(events)[-1] == total
        assert progress_of(events) == sorted(progress_of(events))
        assert [type(event) for event in session.load(AHEAD)] == [Planned]
        asked = list(session.ask(REQUEST))
        assert isinstance(asked[-1], Answered) and asked[-1].answer.text == ANSWER
        assert not progress_of(asked) and session.loaded is loaded
        assert asked[-1].answer.timing.load_seconds == 0
        assert torch.is_grad_enabled()


def test_a_question_that_loads_yields_progress() -> None:
    with Session(CONFIG) as session:
        events = list(session.ask(REQUEST))
    assert progress_of(events)[-1] == sum(tensor_sizes(demo_folder()).values())
    assert any(isinstance(event, MemorySampled) for event in events)
    assert answer_in(events).memory.phases[0].name == "load"


def test_memory_that_runs_out_while_loading_gives_lighter_weights() -> None:
    with Session(CONFIG, fault=failing("load", times=1)) as session:
        events = list(session.load(AHEAD))
        assert [event.step for event in events if isinstance(event, Degraded)] == [f"{DEMO_WEIGHTS[1]} weights"]
        assert session.loaded is not None and session.loaded.weights == DEMO_WEIGHTS[1]
    with Session(CONFIG, fault=failing("load", times=9)) as session, pytest.raises(DoesNotFit):
        list(session.load(AHEAD))


def test_a_stop_while_loading_raises_at_once_and_the_next_question_loads_again() -> None:
    with Session(CONFIG) as session:
        events = session.load(AHEAD)
        for event in events:
            if isinstance(event, StageStarted):
                session.cancel()
                began = time.monotonic()
                break
        with pytest.raises(Interrupted, match="while the model was loaded"):
            list(events)
        assert time.monotonic() - began < 5 and session.loaded is None
        assert ask(session, REQUEST).text == ANSWER


def test_only_one_thing_at_a_time() -> None:
    with Session(CONFIG) as session:
        events = session.load(AHEAD)
        next(events)
        with pytest.raises(UsageError, match="answering another"):
            list(session.ask(REQUEST))
        events.close()  # type: ignore[attr-defined]
        assert isinstance(list(session.ask(REQUEST))[-1], Answered)


class Scripted:
    """Work that goes on until it is released, whether or not it is stopped."""

    def __init__(self) -> None:
        self.release, self.running, self.ended = threading.Event(), 0, 0

    def __call__(self, stop: threading.Event) -> str:
        self.running += 1
        assert self.running == self.ended + 1  # never two at once
        self.release.wait(20)
        self.ended += 1
        return "done" if not stop.is_set() else "late"


def test_work_that_does_not_stop_is_left_and_waited_for_before_the_next() -> None:
    beside, slow, cancelled = BackgroundTask(), Scripted(), threading.Event()
    running = beside.run(slow, cancelled.is_set, "while it worked")
    next(running)
    cancelled.set()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="while it worked"):
        next(running)
    assert time.monotonic() - began < 1 and slow.ended == 0
    with pytest.raises(Interrupted):
        list(beside.run(slow, cancelled.is_set, "while it waited"))
    cancelled.clear()
    again = beside.run(slow, cancelled.is_set, "while it worked")
    next(again)
    assert slow.running == 1
    slow.release.set()
    with pytest.raises(StopIteration) as finished:
        while True:
            next(again)
    assert finished.value.value == "done" and slow.ended == 2
    beside.close()


def test_an_error_of_the_job_is_raised_to_the_consumer() -> None:
    def fail(stop: threading.Event) -> None:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        list(BackgroundTask().run(fail, lambda: False, "while it worked"))


def test_cpu_threads_are_those_of_the_settings() -> None:
    before = torch.get_num_threads()
    try:
        with Session(EngineConfig(isolate_decoder=False, remember=False, cpu_threads=1)) as session:
            assert isinstance(list(session.ask(REQUEST))[-1], Answered)
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_libraries_that_start_are_counted_from_the_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing() -> Generator[None, None, str]:
        for number in range(3):
            monkeypatch.setitem(sys.modules, f"library_{number}", sys)
            yield
        return "started"

    assert (list(starting_libraries(importing(), bitsandbytes=False))) == []  # nothing to wait for: torch is there
    monkeypatch.delitem(sys.modules, "library_0")
    monkeypatch.delitem(sys.modules, "torch")
    events = list(starting_libraries(importing(), bitsandbytes=False))
    total = events[0].total if isinstance(events[0], StageStarted) else 0
    assert events[0] == StageStarted("libraries", total) and total > 1000
    assert events[1] == StageProgress("libraries", 1, total) and events[-1] == StageProgress("libraries", total, total)


def test_a_count_past_its_estimate_is_not_done_before_the_end() -> None:
    def work() -> Generator[None, None, int]:
        yield
        return 7

    assert list(stage_events("speed", work(), 10, lambda: 99)) == [
        StageStarted("speed", 10), StageProgress("speed", 9, 10), StageProgress("speed", 10, 10),
    ]  # fmt: skip
