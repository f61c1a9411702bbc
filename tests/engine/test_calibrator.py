"""Calibration: measured once per device and precision, before the first model is loaded, and used by the next plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from vidqa import EngineConfig, Request, Session
from vidqa.devices.host import usable_cores
from vidqa.engine import calibrator
from vidqa.errors import Interrupted
from vidqa.events import Answered, Event, Noted
from vidqa.planner import calibration
from vidqa.types import Answer

DEMO = "assets/demo.mp4"
CONFIG = EngineConfig(device="cpu", cpu_threads=1, weights="fp32", isolate_decoder=False, calibrate=True)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path))
    monkeypatch.setattr(calibrator, "_ROUND_SECONDS", 0.01)
    monkeypatch.setattr(calibrator, "_HIDDEN", 64)
    monkeypatch.setattr(calibrator, "_WIDE", 128)


def ask(session: Session, question: str = "what happens?") -> tuple[Answer, list[Event]]:
    events = list(session.ask(Request(DEMO, question)))
    assert isinstance(events[-1], Answered)
    return events[-1].answer, events


def calibration_notes(events: list[Event]) -> list[str]:
    return [
        event.text for event in events if isinstance(event, Noted) and "measured this machine's speed" in event.text
    ]


def test_the_first_question_measures_and_the_next_plan_is_calibrated() -> None:
    with Session(CONFIG) as session:
        assert not session.plan(Request(DEMO, "what?")).seconds.calibrated
        answer, events = ask(session)
        (note,) = calibration_notes(events)
        assert "`vidqa doctor` shows it" in note
        assert answer.text == "a red circle moves right." and answer.plan.seconds.calibrated
        assert not calibration_notes(ask(session, "what colour is it?")[1])
    (key,) = {row["device"] for row in map(dict, calibration._answers())}
    assert key.startswith("cpu:") and key.endswith(":1")
    with Session(CONFIG) as session:
        assert not calibration_notes(ask(session)[1])  # stored
        corrected = session.plan(Request(DEMO, "what?")).seconds
    assert corrected.calibrated and corrected.vision_seconds > 0
    for row in calibration._answers():
        assert row["predicted_s"].keys() == row["measured_s"].keys() == set(calibration.STAGES)
        assert all(seconds > 0 for name in ("predicted_s", "measured_s") for seconds in row[name].values())


def test_a_follow_up_teaches_nothing_about_vision() -> None:
    with Session(CONFIG) as session:
        ask(session)
        ask(session, "what colour is it?")  # about the same frames: they are not encoded again
    assert len(list(calibration._answers())) == 1


def test_nothing_is_measured_or_read_without_the_setting() -> None:
    calibration.store_rates("cpu:x:1", {}, "0", 0.0)
    with Session(EngineConfig(device="cpu", isolate_decoder=False)) as session:
        answer, events = ask(session)
    assert not calibration_notes(events) and not answer.plan.seconds.calibrated
    assert not list(calibration._answers())


def test_other_threads_and_precisions_are_measured_apart() -> None:
    with Session(CONFIG) as session:
        answer, _ = ask(session)
        problem = session.forecast(answer.video, Request(DEMO, "what?")).problem
    assert calibrator.unmeasured_precisions(problem) == ()
    other = replace(problem, config=replace(problem.config, cpu_threads=2))
    assert calibrator.unmeasured_precisions(other) == (("fp32",) if usable_cores() > 1 else ())
    bf16 = replace(problem, config=replace(problem.config, weights="bf16"), pinned_weights=None)
    assert calibrator.unmeasured_precisions(bf16) == ("bf16",)


def test_a_measurement_that_fails_leaves_the_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(calibrator, "_measure", fail)
    with Session(CONFIG) as session:
        answer, events = ask(session)
    assert answer.text == "a red circle moves right." and not answer.plan.seconds.calibrated
    assert not calibration_notes(events) and not answer.degraded


def test_a_calibration_can_be_stopped() -> None:
    with Session(CONFIG) as session:
        events = session.ask(Request(DEMO, "what?"))
        next(events)
        session.cancel()
        with pytest.raises(Interrupted):
            list(events)
    assert not (calibration.state_folder() / "rates.json").exists()
