"""The time of a captioning run: what earlier runs correct, and what a run remembers. Plain numbers."""

import io
import json
import os
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.answer_builders import made_answer
from tests.batch.commands import CLIPS
from tests.batch.scripted import CONFIG, ScriptedEngine
from tests.planner.plan_builders import SPEC_2B, made_run_config, plan_of
from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion
from vidqa.batch.captioner import CaptionerConfig, PrefetchOptions, SessionCaptioner
from vidqa.batch.clip_record import Clip, PendingClip
from vidqa.batch.gpu_worker import MAKE_CAPTIONER, serve
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.batch.run_forecast import RunTimer, forecast_run
from vidqa.errors import VidqaError
from vidqa.events import Answered, StageStarted
from vidqa.planner.calibration import CaptionTimes, earlier_captions, remember_captions
from vidqa.types import Request, TimeEstimate

KEY = "cpu:a processor:1"
PLAN = plan_of(replace(made_run_config(), max_tokens=100), SPEC_2B)
# 1 s of prompt and 10 s for 100 tokens; the catalog's processor takes half of it.
PLAN = replace(PLAN, seconds=TimeEstimate(0.0, 0.0, 0.5, 0.5, 10.0))
REFERENCE = TimeEstimate(0.0, 0.0, 0.25, 0.25, 5.0)


class Replies(io.BytesIO):
    """What a worker writes; the first record closes the pipe of its clips, which ends it."""

    def __init__(self, clips: int) -> None:
        super().__init__()
        self._clips = clips

    def write(self, data: Any) -> int:
        if bytes(data).startswith(b'{"record"'):
            os.close(self._clips)
        return super().write(data)


def question(name: str = "a") -> PlannedQuestion:
    return PlannedQuestion(PendingClip(Clip(name, name), ""), plan=PLAN, reference=REFERENCE)


@pytest.fixture(autouse=True)
def empty_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path))


def run(start: float, seconds: float, model: str = PLAN.model) -> CaptionTimes:
    """A run of 10 answers with 50 tokens each, whose groups the catalog's processor would have taken 6 s for."""
    return CaptionTimes(KEY, model, PLAN.run_config.weights, start, seconds, 6.0, 10, 500)


def test_without_an_earlier_run_answers_are_as_long_as_they_may_be() -> None:
    found = forecast_run([[question(), question()]], KEY, 2 * 10**9, 2)
    assert found.groups == (2 * 1.0 + 10.0,) and found.answer_tokens == 100 and found.runs == 0
    assert found.start_seconds == 10 + 2 and found.total_seconds == 24
    assert forecast_run([], KEY, 0, 2).total_seconds == 0


def test_earlier_runs_of_this_model_correct_the_time() -> None:
    for one in (run(90, 99, model="another"), run(8, 12), run(20, 36), run(9, 12)):
        remember_captions(one)
    found = forecast_run([[question(), question()], [question()]], KEY, 0, 2)
    assert found.runs == 3 and found.start_seconds == 9 and found.answer_tokens == 50
    assert found.groups == (2 * (2 * 0.5 + 2.5), 2 * (0.5 + 2.5))  # twice the catalog's, half of the tokens
    assert forecast_run([[question()]], None, 0, 2).runs == 0  # without calibration they do not count
    assert earlier_captions("cuda:a card", PLAN.model, PLAN.run_config.weights) == []


def test_a_run_remembers_its_start_without_the_measurement_and_the_rest() -> None:
    moments = iter([0.0, 1.0, 2.0, 6.0, 30.0])  # begin; first group ready; speed measured from 2 to 6; end
    timer = RunTimer(2, now=lambda: next(moments))
    timer.begin_group([question()])
    timer.on_event(StageStarted("speed", 4))
    timer.on_event(StageStarted("load", 1))
    timer.load_seconds = 14.0
    timer.on_event(Answered(made_answer("yes")))  # 11 tokens
    timer.remember(KEY)
    (found,) = earlier_captions(KEY, PLAN.model, PLAN.run_config.weights)
    assert (found.start_seconds, found.seconds, found.answers, found.answer_tokens) == (11.0, 15.0, 1, 11)
    assert found.reference_seconds == pytest.approx(0.5 + 5.0 * 11 / 100)


def test_a_run_keeps_no_question() -> None:
    timer, asked = RunTimer(2, now=lambda: 0.0), question()
    asked.error = VidqaError("It is broken.", "Mend it.")
    part = weakref.ref(asked.error)
    timer.begin_group([asked])
    assert part() is not None
    del asked
    assert part() is None


def test_a_run_without_an_answer_is_not_remembered() -> None:
    timer = RunTimer(2, now=lambda: 0.0)
    timer.begin_group([question()])
    timer.remember(KEY)
    assert earlier_captions(KEY, PLAN.model, PLAN.run_config.weights) == []


def test_a_run_is_remembered_and_a_workers_part_of_one_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker gets its clips a few at a time: each part but the first would say that nothing had to be loaded."""
    engine = replace(CONFIG, remember=True, calibrate=True, device="cpu")
    request = CaptionRequest(PromptTemplate("test", "what happens?"), Request("", ""))
    config = CaptionerConfig(engine, request, "a run", 1, PrefetchOptions(1))
    pending = PendingClip(Clip(str(CLIPS[0]), CLIPS[0].name), "")
    monkeypatch.setattr("vidqa.engine.session.Session", lambda config, opener: ScriptedEngine(config, opener))

    end, start = os.pipe()
    for values in (config.to_object(), asdict(pending)):
        os.write(start, json.dumps(values).encode() + b"\n")
    out = Replies(start)
    with os.fdopen(end, "rb") as lines:
        assert serve(lines, out, MAKE_CAPTIONER) == 0
    assert b'"status": "done"' in out.getvalue()
    assert not (tmp_path / "caption_runs.jsonl").exists()

    captioner = SessionCaptioner(config)
    assert [record.status for record in captioner.captions([pending])] == ["done"]
    captioner.close()
    assert len((tmp_path / "caption_runs.jsonl").read_text().splitlines()) == 1
