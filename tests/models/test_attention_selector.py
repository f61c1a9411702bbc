"""The ladder is climbed by running it: what fails or is wrong is passed over, and said."""

from typing import Any

import pytest
import torch

from vidqa.errors import AttentionUnavailable
from vidqa.models.attention import selector
from vidqa.models.attention.selector import HeadLayout, select_kernel, try_rung

QWEN_2B, QWEN_7B = HeadLayout(12, 2, 128), HeadLayout(28, 4, 128)


@pytest.fixture(autouse=True)
def fresh() -> None:
    select_kernel.cache_clear()


@pytest.mark.parametrize("layout", [QWEN_2B, QWEN_7B, HeadLayout(6, 2, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_processor_runs_flash(layout: HeadLayout, dtype: torch.dtype) -> None:
    (chosen,) = select_kernel(layout, "cpu", dtype, timed=True)
    assert chosen.name == "flash" and chosen.runs and chosen.chunk_seconds > 0
    assert chosen.difference < (1e-5 if dtype == torch.float32 else 2e-2)


def test_every_rung_of_a_processor_is_exact() -> None:
    rungs = {name: try_rung(name, QWEN_7B, "cpu", torch.float32) for name in selector.LADDER}
    assert {name: rung.runs for name, rung in rungs.items()} == {
        "flash": True, "cudnn": False, "efficient": True, "tiled": True,
    }  # fmt: skip
    assert rungs["cudnn"].reason == "There is no cudnn attention on cpu"


class _Wrong:
    """A kernel that answers, but not with attention."""

    name = "wrong"

    def begin(self, *_: Any) -> None: ...

    def end(self) -> None: ...

    def attend(self, query: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(query)


def test_a_rung_that_is_wrong_or_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    real = selector.make_kernel

    def broken(name: str, device: torch.device) -> Any:
        if name == "flash":
            return _Wrong()
        if name == "efficient":
            raise RuntimeError("no kernel image is available. And more")
        return real(name, device)

    monkeypatch.setattr(selector, "make_kernel", broken)
    *missed, chosen = select_kernel(QWEN_2B, "cpu", torch.float32)
    assert [rung.name for rung in missed] == ["flash", "cudnn", "efficient"]
    assert missed[0].reason.startswith("differs from float32 by")
    assert missed[2].reason == "no kernel image is available"
    assert chosen.name == "tiled"


def test_nothing_that_runs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selector, "make_kernel", lambda name, device: _Wrong())
    with pytest.raises(AttentionUnavailable, match="No attention runs on cpu"):
        select_kernel(QWEN_2B, "cpu", torch.float32)


def test_the_score_matrix_in_numbers() -> None:
    assert HeadLayout(32, 32, 128).score_bytes(8192, 2) == 4 * 2**30  # Llama's 32 heads, fp16
    assert QWEN_2B.score_bytes(8192, 2) == 3 * 2**29


@pytest.mark.needs_cuda
@pytest.mark.parametrize("layout", [QWEN_2B, QWEN_7B])
def test_on_a_gpu_every_rung_is_exact(layout: HeadLayout) -> None:
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if bf16 else torch.float16
    rungs = {name: try_rung(name, layout, "cuda", dtype) for name in (*selector.LADDER, "flex")}
    assert rungs["efficient"].runs and rungs["tiled"].runs
    if torch.cuda.get_device_capability() >= (8, 0):
        assert rungs["flash"].runs and rungs["flex"].runs, rungs
