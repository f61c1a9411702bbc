"""What is compiled is remembered, announced once, and gives the same numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.test_demo_parity import CLIP, QUESTION
from tests.tiny import pair
from vidqa import EngineConfig, Request, Session
from vidqa.engine import compiling, warmup
from vidqa.engine.compiling import DECODE_STEP, FLEX, compiled_layer, key_of, layer_step, pending
from vidqa.engine.static_step import run_layer
from vidqa.events import Answered, Noted
from vidqa.memory.device import compiler_environment
from vidqa.models.qwen2_vl import Qwen2VL

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path))


@pytest.fixture
def model() -> Qwen2VL:
    return pair("2B").ours


def test_the_choice_and_what_was_compiled_before_decide(model: Qwen2VL, monkeypatch: pytest.MonkeyPatch) -> None:
    assert layer_step(model, "on", quantized=False) is run_layer  # nothing is compiled on a CPU
    monkeypatch.setattr(compiling, "can_compile", lambda device: "")
    assert layer_step(model, "on", quantized=False) is compiled_layer
    assert layer_step(model, "on", quantized=True) is run_layer
    assert layer_step(model, "off", quantized=False) is run_layer
    assert layer_step(model, "auto", quantized=False) is run_layer
    compiling.remember(key_of(DECODE_STEP, model.spec, model.device, model.dtype), 12.0)
    assert layer_step(model, "auto", quantized=False) is compiled_layer
    other = replace(model, dtype=torch.bfloat16)
    assert layer_step(other, "auto", quantized=False) is run_layer  # other numbers, another graph


def test_a_compilation_is_announced_until_it_is_remembered(model: Qwen2VL) -> None:
    (key,) = pending(model, "flex", run_layer)
    assert key.startswith(f"{FLEX} · cpu · torch {torch.__version__}")
    assert "compiling attention (once per GPU and version), about" in pending(model, "flex", run_layer)[key]
    compiling.remember(key, 31.4)
    assert pending(model, "flex", run_layer) == {}
    assert compiling.seconds_taken(key) == 31.4
    assert pending(model, "flash", run_layer) == {}


def test_a_damaged_record_is_no_record(model: Qwen2VL, tmp_path: Path) -> None:
    (tmp_path / "compiled.json").write_text("[1, 2")
    assert len(pending(model, "flex", compiled_layer)) == 2
    compiling.remember("a key", 1.0)
    assert json.loads((tmp_path / "compiled.json").read_text()) == {"a key": 1.0}


def test_kernels_are_kept_where_the_user_says(tmp_path: Path) -> None:
    assert compiler_environment({"TORCHINDUCTOR_CACHE_DIR": "elsewhere"}) == {}
    assert compiler_environment({"VIDQA_STATE": "here"}) == {"TORCHINDUCTOR_CACHE_DIR": str(Path("here") / "compiled")}
    assert "vidqa" in compiler_environment({})["TORCHINDUCTOR_CACHE_DIR"]


def test_flex_is_announced_at_the_first_question_and_not_at_the_second() -> None:
    config, notes = EngineConfig(isolate_decoder=False, attention="flex", remember=False), []
    for _ in range(2):
        with Session(config) as session:
            events = list(session.ask(Request(CLIP, QUESTION)))
        assert isinstance(events[-1], Answered) and events[-1].answer.text == "a red circle moves right."
        notes.append([event.text for event in events if isinstance(event, Noted)])
    assert "compiling attention" in notes[0][0] and notes[1] == []


def test_warming_up_runs_a_layer_of_the_models_shapes(model: Qwen2VL, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidqa.models.hub import demo_folder
    from vidqa.models.specs import read_spec

    spec = read_spec(demo_folder())
    done = list(warmup.warm_up(spec, CPU, torch.float32, flex=False))
    assert [(one.name, one.done) for one in done] == [("attention", True), (DECODE_STEP, True)]
    assert "nothing to compile: on cpu" in done[1].detail
    monkeypatch.setattr(warmup, "can_compile", lambda device: "")  # as on a GPU; a CPU compiles it too
    done = list(warmup.warm_up(spec, CPU, torch.float32, flex=False))
    assert done[1].detail.startswith("compiled") and done[1].seconds > 0
    assert compiling.seconds_taken(key_of(DECODE_STEP, spec, CPU, torch.float32)) is not None


def test_the_command_says_what_it_made_ready(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from vidqa.cli.main import run

    assert run(["warmup", "--model", "demo", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("attention") and "flash" in lines[0]
    assert "nothing to compile" in lines[1]
