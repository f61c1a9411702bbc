"""Checkpoints with quantized weights: loaded as they are, planned by the headers of their files."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from demo_world.precisions import write_checkpoint
from tests.demos import QWEN2_DEMO
from tests.engine.test_demo_parity import CLIP, QUESTION
from tests.models.hostile import copy_demo
from vidqa import EngineConfig, Request, Session
from vidqa.errors import ModelError, UsageError
from vidqa.events import Answered
from vidqa.models.checkpoint import read_spec
from vidqa.models.family import family_of
from vidqa.models.loader import DTYPES, _load_weights, _quantization, load_model
from vidqa.models.registry import find_checkpoints
from vidqa.planner.weight_memory import part_bytes
from vidqa.types import Answer, Placement

CPU = torch.device("cpu")
PARTS = ("embedding", "layers", "vision", "lm_head")
VISION_TOO = Placement(vision_quantized=True)


def quantized_demo(folder: Path, weights: str, dtype: str = "fp32", placement: Placement = VISION_TOO) -> Path:
    """The demo model as transformers stores it once bitsandbytes has quantized it."""
    family = family_of(read_spec(QWEN2_DEMO)).load_runtime()
    quantization = _quantization(weights, dtype, placement, True, False, family, torch.device("cuda"))
    options = {"dtype": DTYPES[dtype], "device_map": {"": CPU}, "quantization_config": quantization}
    return write_checkpoint(_load_weights(QWEN2_DEMO, family, [], **options), folder, QWEN2_DEMO)


def demo_with_config(folder: Path, quantization: dict[str, Any]) -> Path:
    """The demo checkpoint with another quantization_config."""
    copy_demo(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


def answer(folder: Path, weights: str | None = None) -> tuple[Answer, Session]:
    config = EngineConfig(model=str(folder), device="cpu", weights=weights, isolate_decoder=False, remember=False)
    session = Session(config)
    *_, last = session.ask(Request(CLIP, QUESTION, max_tokens=16))
    assert isinstance(last, Answered)
    return last.answer, session


@pytest.mark.parametrize(
    ("weights", "placement"),
    [("nf4", Placement()), ("nf4", VISION_TOO), ("nf4-dq", VISION_TOO), ("int8", Placement())],
)
def test_bitsandbytes_checkpoint(weights: str, placement: Placement, tmp_path: Path) -> None:
    folder = quantized_demo(tmp_path, weights, placement=placement)
    answered, session = answer(folder)
    run_config = answered.plan.run_config
    assert (run_config.weights, run_config.placement.vision_quantized) == (weights, placement.vision_quantized)
    assert answered.text == "a red circle moves right."
    assert not answered.plan.limits  # nothing was chosen
    assert session.loaded is not None
    model = session.loaded.model
    assert type(model.language_model.layers[0].mlp.up_proj).__name__.startswith("Linear")
    planned = sum(part_bytes(model.spec, part, weights, run_config.dtype, run_config.placement) for part in PARTS)
    assert model.weights_bytes <= planned <= model.weights_bytes + 512 * 550
    fresh = read_spec(QWEN2_DEMO)  # the plan of quantizing it while loading is the same
    formula = sum(part_bytes(fresh, part, weights, run_config.dtype, run_config.placement) for part in PARTS)
    assert planned == pytest.approx(formula, rel=0.009)


def test_compute_dtype_is_the_planned_one(tmp_path: Path) -> None:
    folder = quantized_demo(tmp_path, "nf4", dtype="bf16")  # the checkpoint names bfloat16
    layer = load_model(folder, CPU, "nf4", "fp32", Placement()).model.language_model.layers[0]
    assert layer.mlp.up_proj.compute_dtype == torch.float32
    assert layer.self_attn.q_proj.bias.dtype == torch.float32


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    folder = quantized_demo(tmp_path, "nf4")
    with pytest.raises(UsageError, match=r"stored in nf4.*no bf16 weights"):
        answer(folder, "bf16")
    assert answer(folder, "nf4")[0].plan.run_config.weights == "nf4"


@pytest.mark.parametrize(("method", "named"), [("awq", "gptqmodel"), ("gptq", "optimum and gptqmodel")])
def test_missing_library_is_named(method: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = demo_with_config(tmp_path, {"quant_method": method, "bits": 4, "group_size": 128})
    for refused in (
        lambda: find_checkpoints(str(folder), local=True),
        lambda: load_model(folder, CPU, method, "fp32", Placement()),
        lambda: answer(folder),
    ):
        with pytest.raises(ModelError, match=rf"{method}, which needs {named}") as failed:
            refused()
        assert f"pip install {named.replace(' and', '')}" in failed.value.remedy
    (planned,) = find_checkpoints(str(folder), local=False)  # planning needs no library
    assert planned.spec.stored is not None and planned.spec.stored.weights == method


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "fp8"}, "'fp8'; vidqa loads bitsandbytes, awq, gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
    ],
)
def test_unknown_methods_are_refused(quantization: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_spec(demo_with_config(tmp_path, quantization))


def test_bytes_of_packed_matrices(tmp_path: Path) -> None:
    """AWQ's tensors: 4-bit codes in int32, scales and zeros per group of 128."""
    folder = demo_with_config(tmp_path, {"quant_method": "awq", "bits": 4, "group_size": 128})
    rows, columns = 512, 1024
    save_file(
        {
            "model.layers.0.mlp.up_proj.qweight": torch.zeros(rows, columns // 8, dtype=torch.int32),
            "model.layers.0.mlp.up_proj.qzeros": torch.zeros(rows // 128, columns // 8, dtype=torch.int32),
            "model.layers.0.mlp.up_proj.scales": torch.zeros(rows // 128, columns, dtype=torch.float16),
            "model.layers.0.input_layernorm.weight": torch.zeros(512, dtype=torch.bfloat16),
            "visual.blocks.0.attn.proj.weight": torch.zeros(64, 64, dtype=torch.bfloat16),
        },
        folder / "model.safetensors",
    )
    weights = read_spec(folder).stored
    assert weights is not None and weights.quantized == ("layers",)
    packed = rows * columns // 2 + rows // 128 * columns // 2 + rows // 128 * columns * 2
    assert weights.part_bytes("layers", 2) == packed + 1024
    assert weights.part_bytes("layers", 4) == packed + 2048
    assert weights.part_bytes("vision", 2) == 64 * 64 * 2
    assert weights.part_bytes("lm_head", 2) == 0


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_invalid_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = demo_with_config(tmp_path, {"quant_method": "awq"})
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="no whole safetensors file"):
        read_spec(folder)
