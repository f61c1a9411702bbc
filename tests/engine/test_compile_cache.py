"""Compilations are recorded, announced once, and give the same results."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.demos import QWEN2_DEMO
from tests.engine.asking import ANSWER, CLIP, QUESTION, answer_in, of_kind
from tests.tiny import pair
from vidqa import EngineConfig, Request, Session
from vidqa.devices.device import compiler_environment
from vidqa.diagnostics import kernel_warmup
from vidqa.diagnostics.kernel_warmup import DECODE_STEP
from vidqa.engine import compile_cache
from vidqa.engine.compile_cache import FLEX, pending
from vidqa.events import Noted
from vidqa.models.checkpoint import read_spec
from vidqa.models.vlm import VisionLanguageModel

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path))


@pytest.fixture
def model() -> VisionLanguageModel:
    return pair("2B").ours


def test_a_compilation_is_announced_until_it_is_remembered(model: VisionLanguageModel) -> None:
    facts = (model.spec, model.device, model.dtype)
    (key,) = pending(*facts)
    assert key.startswith(f"{FLEX} · cpu · torch {torch.__version__}")
    assert "compiling attention (once per GPU and version), about" in pending(*facts)[key]
    compile_cache.remember(key)
    assert pending(*facts) == {}
    assert pending(model.spec, model.device, torch.bfloat16)  # another precision is compiled again


def test_a_damaged_record_is_no_record(model: VisionLanguageModel, tmp_path: Path) -> None:
    (tmp_path / "compiled.json").write_text("[1, 2")
    assert pending(model.spec, model.device, model.dtype)
    compile_cache.remember("a key")
    assert json.loads((tmp_path / "compiled.json").read_text()) == ["a key"]


def test_a_record_of_an_older_version_still_holds(model: VisionLanguageModel, tmp_path: Path) -> None:
    (key,) = pending(model.spec, model.device, model.dtype)
    (tmp_path / "compiled.json").write_text(json.dumps({key: 31.4}))
    assert pending(model.spec, model.device, model.dtype) == {}


def test_the_folder_of_compiled_kernels_is_configurable(tmp_path: Path) -> None:
    folder = Path("here") / "compiled"
    both = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    assert compiler_environment({"VIDQA_STATE": "here"}) == both
    assert compiler_environment({"TORCHINDUCTOR_CACHE_DIR": "elsewhere", "VIDQA_STATE": "here"}) == {
        "TRITON_CACHE_DIR": str(folder / "triton")
    }
    assert "vidqa" in compiler_environment({})["TORCHINDUCTOR_CACHE_DIR"]


def test_flex_is_announced_at_the_first_question_and_not_at_the_second() -> None:
    config, notes = EngineConfig(isolate_decoder=False, attention="flex", remember=False), []
    for _ in range(2):
        with Session(config) as session:
            events = list(session.ask(Request(CLIP, QUESTION)))
        assert answer_in(events).text == ANSWER
        notes.append([event.text for event in of_kind(events, Noted)])
    assert "compiling attention" in notes[0][0] and notes[1] == []


def test_warmup_reports_what_there_is_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_spec(QWEN2_DEMO)
    done = list(kernel_warmup.warm_up(spec, CPU, torch.float32, flex=False))
    assert [(one.name, one.done) for one in done] == [("attention", True), (DECODE_STEP, True)]
    assert "nothing to compile: on cpu" in done[1].detail
    monkeypatch.setattr(kernel_warmup, "can_compile", lambda device: "")  # as on a GPU whose kernels differ
    monkeypatch.setattr(kernel_warmup, "why_not_fused", lambda spec, device, dtype: "Triton's kernels differ")
    done = list(kernel_warmup.warm_up(spec, CPU, torch.float32, flex=False))
    assert (done[1].done, done[1].detail) == (False, "Triton's kernels differ")


def test_the_warmup_command_prints_what_it_compiled(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from vidqa.cli.main import run

    assert run(["warmup", "--model", "demo", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("attention") and "flash" in lines[0]
    assert "nothing to compile" in lines[1]
