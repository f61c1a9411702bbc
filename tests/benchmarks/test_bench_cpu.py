"""The benchmark of a CPU's precisions: its rows from plain numbers, its layers, and an answer of the demo model."""

from pathlib import Path
from typing import Any

import bench_cpu
import pytest
import torch
from bench_cpu import BARS, ask, model_rows, small
from torch import nn

from tests.engine.asking import CLIP
from vidqa.models.hub import demo_folder


def found(first: float, rate: float) -> dict[str, Any]:
    return {"load": 3.0, "first": [2 * first, first], "vision": [1.0, 0.5], "prefill": [1.0], "rate": [rate / 2, rate],
            "prompt": 200, "planned": 5_000_000_000, "peak": 4_900_000_000}  # fmt: skip


def test_rows_are_compared_with_fp32_and_the_copy() -> None:
    rows = {row.key: row.value for row in model_rows("bf16", found(3, 8), found(10, 2), 50e9)}
    assert set(BARS) <= set(rows)
    assert rows["bf16: decode, times fp32"] == pytest.approx(4)
    assert rows["bf16: first token, share of fp32"] == pytest.approx(0.3)
    assert rows["bf16: peak of the process"] == pytest.approx(4.9)
    assert rows["bf16: share of the copy bandwidth"] == pytest.approx(8 * 3.087e9 / 50e9, rel=0.01)  # 1.54 B weights
    assert "fp32: decode, times fp32" not in {row.key for row in model_rows("fp32", found(10, 2), found(10, 2), 50e9)}


@pytest.mark.parametrize(
    ("weights", "most"), [("fp32", 0), ("bf16", 0.005), ("int8", 0.02), ("int4", 0.1), ("nf4", 0.1)]
)
def test_layers_have_the_same_weights(weights: str, most: float) -> None:
    whole = nn.Linear(128, 64).requires_grad_(False)
    states = torch.randn(5, 128).to(torch.float32 if weights == "fp32" else torch.bfloat16)
    exact = whole(states.float())
    made = small(weights, whole if weights == "fp32" else whole.bfloat16())
    with torch.no_grad():
        assert float((made(states).float() - exact).norm() / exact.norm()) <= most


def test_a_model_is_asked_more_than_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cpu, "_SIZE", (160, 128))
    measured = ask("int4", demo_folder(), Path(CLIP), torch.get_num_threads())
    assert len(measured["first"]) == len(measured["rate"]) == 2 and min(measured["rate"]) > 0
    assert measured["peak"] > 10**8 and measured["prompt"] == 80 + 56  # visual and text tokens
