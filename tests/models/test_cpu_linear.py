"""Small weights on a CPU: products against float64, the packed format, and a checkpoint that is loaded in them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.demos import QWEN2_DEMO
from vidqa.models.block_sizes import INT4_GROUP, INT4_PACKED_ROWS
from vidqa.models.cpu_linear import Int4Linear, Int8Linear, QuantizedLinear, layer_class
from vidqa.models.loader import load_model
from vidqa.types import Placement

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])


def layer(kind: Any, outputs: int, inputs: int, *, bias: bool = False, dtype: Any = torch.bfloat16) -> Any:
    """A layer of random weights, quantized, and those weights."""
    torch.manual_seed(0)
    whole = nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)
    made = kind(whole)
    codes, scales = kind.quantize(whole.weight)
    assert (codes.shape, codes.dtype) == (made.weight.shape, made.weight.dtype)
    assert (scales.shape, scales.dtype) == (made.scales.shape, made.scales.dtype)
    made.weight, made.scales = nn.Parameter(codes, False), nn.Parameter(scales, False)
    return made, whole


def int4_weights(made: Int4Linear, whole: nn.Linear) -> torch.Tensor:
    """What the scales and offsets make of the nearest codes, in float64."""
    scale, offset = made.scales.double().unbind(2)  # (groups, outputs)
    groups = whole.weight.double().view(made.out_features, -1, INT4_GROUP)
    scale, offset = scale.T[..., None], offset.T[..., None]
    codes = ((groups - offset) / scale + 8).round().clamp(0, 15)
    return ((codes - 8) * scale + offset).view(made.out_features, made.in_features)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rows", [1, 4, 255, 256, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int8_products_are_those_of_rounded_rows_and_weights(rows: int, dtype: torch.dtype) -> None:
    made, whole = layer(Int8Linear, 192, 512, bias=True, dtype=dtype)
    states = torch.randn(rows, 512).to(dtype)
    states[0] *= 1000  # its own scale: the other rows lose nothing
    scale = states.double().abs().amax(1, keepdim=True) / 127
    rounded = (states.double() / scale).round() * scale
    weights = (whole.weight.double() / made.scales.double()[:, None]).round() * made.scales.double()[:, None]
    exact = rounded @ weights.T + whole.bias.double()
    assert relative(made(states), exact) < (4e-3 if dtype == torch.bfloat16 else 2e-4)
    assert relative(made(states)[-1:], states[-1:].double() @ whole.weight.double().T + whole.bias.double()) < 0.02


@pytest.mark.parametrize("rows", [1, 5, INT4_PACKED_ROWS, INT4_PACKED_ROWS + 1, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("outputs", [64, 192, 1088])
def test_int4_products_are_those_of_the_nearest_codes(rows: int, dtype: torch.dtype, outputs: int) -> None:
    made, whole = layer(Int4Linear, outputs, 512, bias=True, dtype=dtype)
    states = torch.randn(rows, 512).to(dtype)
    exact = states.double() @ int4_weights(made, whole).T + whole.bias.double()
    assert relative(made(states), exact) < 6e-3
    assert 0.05 < relative(made(states), states.double() @ whole.weight.double().T + whole.bias.double()) < 0.1


@KINDS
def test_shapes_and_a_matrix_of_zeros(kind: Any) -> None:
    made, whole = layer(kind, 128, 64)
    assert made(torch.randn(2, 70, 64).bfloat16()).shape == (2, 70, 128)
    made.weight, made.scales = (nn.Parameter(one, False) for one in kind.quantize(torch.zeros_like(whole.weight)))
    assert made(torch.randn(3, 64).bfloat16()).abs().max() == 0
    assert made(torch.zeros(3, 64).bfloat16()).abs().max() == 0
    assert made(torch.full((1, 64), torch.nan).bfloat16()).isnan().all()


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_packed_format_gives_the_same_product(capability: str) -> None:
    """A processor without AVX-512 packs blocks of 32 channels; one without AVX2 in a way that is not unpacked."""
    code = (
        "import torch\nfrom tests.models.test_cpu_linear import Int4Linear, int4_weights, layer, relative\n"
        "made, whole = layer(Int4Linear, 192, 512)\nstates = torch.randn(100, 512).bfloat16()\n"
        "print(relative(made(states), states.double() @ int4_weights(made, whole).T))\n"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) < 6e-3


def test_layers_that_stay_whole() -> None:
    assert layer_class("int4", nn.Linear(64, 128)) is Int4Linear
    assert layer_class("int4", nn.Linear(96, 128)) is layer_class("int4", nn.Linear(64, 100)) is None
    assert layer_class("int8", nn.Linear(96, 100)) is Int8Linear
    assert layer_class("int8", nn.LayerNorm(64)) is None


@pytest.mark.parametrize(("weights", "kind"), [("int8", Int8Linear), ("int4", Int4Linear)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_language_models_layers_are_quantized_while_loading(weights: str, kind: Any, dtype: str) -> None:
    loaded = load_model(QWEN2_DEMO, CPU, weights, dtype, Placement())
    adapter = loaded.model
    small = [name for name, module in adapter.model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(small) == 7 * adapter.spec.layers and all("language_model.layers." in name for name in small)
    projection = adapter.language_model.layers[2].mlp.up_proj
    whole = load_model(QWEN2_DEMO, CPU, "bf16", "bf16", Placement()).model.language_model.layers[2].mlp.up_proj
    codes, scales = kind.quantize(whole.weight.to(adapter.dtype))
    assert torch.equal(projection.weight, codes) and torch.equal(projection.scales, scales)
    assert adapter.model.lm_head.weight is adapter.model.get_input_embeddings().weight


def test_the_vision_tower_is_quantized_where_the_placement_says_so() -> None:
    model = load_model(QWEN2_DEMO, CPU, "int8", "bf16", Placement(vision_quantized=True)).model
    assert isinstance(model.visual.blocks[0].mlp.fc1, Int8Linear)  # type: ignore[index, union-attr]


def test_the_demo_model_answers_in_small_weights() -> None:
    from tests.engine.asking import ANSWER, CONFIG, ask
    from vidqa import EngineConfig, Session

    for weights in ("int8", "int4"):
        config = EngineConfig(isolate_decoder=CONFIG.isolate_decoder, remember=False, weights=weights, device="cpu")
        with Session(config) as session:
            answer = ask(session)
        assert (answer.text, answer.plan.run_config.weights) == (ANSWER, weights)


def test_bitsandbytes_is_not_imported_for_them(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tests.engine.asking import ask\nfrom vidqa import EngineConfig, Session\n"
        "with Session(EngineConfig(remember=False, weights='int4', device='cpu')) as session: ask(session)\n"
        "print('bitsandbytes' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
