"""float16 with activations beyond its range: transformers returns NaN, vidqa answers as in float32.

The demo model is rewritten so that it computes the same in exact numbers and overflows float16 in between: in the
residual streams (norms remove a common factor) or in the MLP's product.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from demo_world.precisions import with_separate_lm_head, write_checkpoint
from tests.demos import QWEN2_DEMO
from tests.engine.test_demo_parity import CLIP, QUESTION, ask, oracle_inputs
from vidqa import EngineConfig, Request, Session
from vidqa.engine.kv_cache import make_cache
from vidqa.errors import NotFinite
from vidqa.events import Answered, Event, TextDelta
from vidqa.models import loader
from vidqa.models.attention.selector import make_kernel
from vidqa.models.fp16 import ScaledLinear, largest_weight, power_of_two
from vidqa.models.loader import Loaded, load_model
from vidqa.models.vlm import SequenceChunk
from vidqa.types import Placement

CPU = torch.device("cpu")
FACTOR = 2.0**12
QUESTIONS = (QUESTION, "what color is it?")


def scale(*modules: Any, by: float) -> None:
    for module in modules:
        for parameter in module.parameters(recurse=False):
            parameter.data.mul_(by)


def overflow_residual_stream(model: Any) -> None:
    scale(model.model.language_model.embed_tokens, model.model.visual.merger.mlp[2], by=FACTOR)  # in range: 15 · 4096
    for layer in model.model.language_model.layers:
        scale(layer.self_attn.o_proj, layer.mlp.down_proj, by=FACTOR)


def overflow_one_channel(model: Any) -> None:
    """As in the released models: one output of a projection is far above all others. The last norm removes it."""
    text = model.model.language_model
    text.layers[-1].mlp.down_proj.weight.data[7] *= 64 * FACTOR
    text.norm.weight.data[7] = 0


def overflow_mlp_product(model: Any) -> None:
    for layer in model.model.language_model.layers:
        scale(layer.mlp.up_proj, by=FACTOR)
        scale(layer.mlp.down_proj, by=1 / FACTOR)


def overflow_vision_tower(model: Any) -> None:
    visual = model.model.visual
    scale(visual.patch_embed.proj, by=FACTOR)
    for block in visual.blocks:
        scale(block.attn.proj, block.mlp.fc2, by=FACTOR)


REWRITES = pytest.mark.parametrize(
    "rewrite", [overflow_residual_stream, overflow_one_channel, overflow_mlp_product, overflow_vision_tower]
)


def rewritten(rewrite: Any, folder: Path) -> Path:
    model = with_separate_lm_head(QWEN2_DEMO)
    rewrite(model)
    return write_checkpoint(model, folder, QWEN2_DEMO)


def session_of(folder: Path, weights: str | None = None, device: str = "cpu") -> Session:
    return Session(
        EngineConfig(model=str(folder), device=device, weights=weights, isolate_decoder=False, remember=False)
    )


def answers(folder: Path, weights: str, device: str = "cpu") -> list[str]:
    texts = []
    with session_of(folder, weights, device) as session:
        for question in QUESTIONS:
            *_, last = session.ask(Request(CLIP, question, max_tokens=32))
            assert isinstance(last, Answered)
            texts.append(last.answer.text)
    return texts


@torch.no_grad()
def transformers_logits(folder: Path, dtype: torch.dtype) -> Tensor:
    """Last logits of the clip and the question by transformers alone."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    logits: Tensor = model(**inputs()).logits[0, -1]
    return logits


@cache
def inputs() -> dict[str, Tensor]:
    return oracle_inputs(ask())


@REWRITES
def test_overflowing_model_answers_as_in_float32(rewrite: Any, tmp_path: Path) -> None:
    folder = rewritten(rewrite, tmp_path)
    assert transformers_logits(folder, torch.float32).isfinite().all()
    assert transformers_logits(folder, torch.float16).isnan().all()  # the cause of the published "!!!!"
    assert answers(folder, "fp32") == answers(folder, "fp16") == ["a red circle moves right.", "red."]


@pytest.mark.needs_cuda
@REWRITES
def test_overflowing_model_answers_on_a_gpu(rewrite: Any, tmp_path: Path) -> None:
    folder = rewritten(rewrite, tmp_path)
    assert answers(folder, "fp16", "cuda") == answers(folder, "fp32")


@pytest.mark.parametrize("weights", ["nf4", "nf4-dq", "int8"])
def test_quantized_layers_stay_finite(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 is for GPUs, which run bitsandbytes' int8; on a CPU int8 has other layers, which no float16 meets."""
    monkeypatch.setattr(loader, "CPU_WEIGHTS", ())
    folder = rewritten(overflow_one_channel, tmp_path)
    full, half = (load_model(folder, CPU, weights, dtype, Placement()) for dtype in ("fp32", "fp16"))
    layer = half.model.language_model.layers[-1].mlp
    assert type(layer.down_proj.linear).__name__ in ("Linear4bit", "Linear8bitLt")
    expected, logits = first_logits(full), first_logits(half)
    assert int(logits.argmax()) == int(expected.argmax())
    assert torch.allclose(logits, expected, atol=0.05 * float(expected.abs().max()))


@torch.no_grad()
def first_logits(loaded: Loaded) -> Tensor:
    """Logits of a short text by vidqa's forward pass."""
    model, ids = loaded.model, torch.tensor([754, 40, 41, 300, 301])
    cache = make_cache(model.spec, 128, model.dtype, CPU)
    part = SequenceChunk(model.embed(ids), torch.arange(len(ids)).expand(3, -1), cache)
    return model.score(model.run([part], make_kernel("flash", CPU)))[0]


def rows_and_linear(reach: float) -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(int(reach))
    linear = nn.Linear(300, 40)
    linear.weight.data.mul_(20)
    rows = torch.randn(50, 300) * torch.logspace(-3, 1, 50)[:, None] * reach
    return rows.clamp(-60_000, 60_000).half(), linear.half()


@pytest.mark.parametrize("reach", [1e-3, 1.0, 100.0, 10_000.0])
def test_scaled_linear_equals_float32(reach: float) -> None:
    rows, linear = rows_and_linear(reach)
    with torch.no_grad():
        expected = nn.functional.linear(rows.float(), linear.weight.float(), linear.bias.float())
        plain, scaled = linear(rows), ScaledLinear(linear, largest_weight(linear))(rows)
    assert plain.isfinite().all() == (reach < 1000)  # so that the test can fail
    size = rows.float().norm(dim=1, keepdim=True) * linear.weight.float().norm(dim=1) + 1
    assert ((scaled - expected).abs() <= size * 2**-11).all()


def test_rows_within_range_are_not_scaled() -> None:
    rows, linear = rows_and_linear(0.01)
    with torch.no_grad():
        linear.bias.zero_()
        assert torch.equal(ScaledLinear(linear, largest_weight(linear))(rows), linear(rows).float())


def test_power_of_two() -> None:
    sizes = torch.cat((torch.logspace(-30, 9, 997), 32_752 * 2.0 ** torch.arange(-20, 20), torch.zeros(1)))
    powers = power_of_two(sizes, 32_752.0)
    assert (sizes / powers <= 32_752).all()
    assert (torch.log2(powers) == torch.log2(powers).round()).all() and (powers >= 1).all()
    assert (sizes[powers > 1] / powers[powers > 1] >= 32_752 / 2).all()


def test_nan_logits_raise_not_finite(tmp_path: Path) -> None:
    folder = rewritten(lambda model: model.lm_head.weight.data[5, 3].fill_(torch.nan), tmp_path)
    events: list[Event] = []
    with session_of(folder) as session, pytest.raises(NotFinite) as failed:
        events.extend(session.ask(Request(CLIP, QUESTION)))
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert "--weights bf16" in failed.value.remedy
