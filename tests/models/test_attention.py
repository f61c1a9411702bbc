"""Attention kernels compared with PyTorch's masked attention, and the selection by probes."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vidqa.devices.tensor_counter import TensorCounter
from vidqa.errors import AttentionUnavailable, UsageError
from vidqa.models.attention import flex, selector
from vidqa.models.attention.sdpa import FusedKernel
from vidqa.models.attention.selector import (
    KERNELS_BY_PREFERENCE,
    HeadLayout,
    make_kernel,
    probe_kernel,
    select_kernel,
)

CPU = torch.device("cpu")
QWEN_2B, QWEN_7B = HeadLayout(12, 2, 128), HeadLayout(28, 4, 128)
EACH_KERNEL = pytest.mark.parametrize("name", ["flash", "efficient", "tiled"])


@pytest.fixture(autouse=True)
def fresh_selection() -> None:
    select_kernel.cache_clear()


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, past: int) -> torch.Tensor:
    """Causal attention with every key copied to its group."""
    group, rows, seen = query.shape[1] // key.shape[1], query.shape[2], past + query.shape[2]
    mask = torch.ones(rows, seen, dtype=torch.bool).tril(past)
    keys, values = (tensor[:, :, :seen].repeat_interleave(group, 1) for tensor in (key, value))
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def states(heads: tuple[int, int], past: int, rows: int, unused: int = 0) -> tuple[torch.Tensor, ...]:
    """Queries in the memory order of a projection, and whole buffers with NaN in their unused part."""
    generator = torch.Generator().manual_seed(past + rows)
    query = torch.randn(1, rows, heads[0], 16, generator=generator).transpose(1, 2)
    buffers = torch.full((2, 1, heads[1], past + rows + unused, 16), torch.nan)
    buffers[:, :, :, : past + rows] = torch.randn(2, 1, heads[1], past + rows, 16, generator=generator)
    return query, buffers[0], buffers[1]


@EACH_KERNEL
@pytest.mark.parametrize("heads", [(12, 2), (28, 4), (6, 2), (4, 4)])
@pytest.mark.parametrize(("past", "rows"), [(0, 1), (0, 300), (17, 1), (100, 128), (100, 129), (1, 5), (2000, 130)])
def test_kernel_equals_masked_attention(name: str, heads: tuple[int, int], past: int, rows: int) -> None:
    query, key, value = states(heads, past, rows, unused=77)
    kernel = make_kernel(name, CPU)
    kernel.begin(past, rows, past + rows + 77, CPU)
    output = kernel.attend(query, key, value, 0.25)
    assert kernel.name == name
    assert output.shape == query.shape
    assert torch.allclose(output, reference(query, key, value, past), atol=1e-5)


@EACH_KERNEL
def test_workspace_does_not_grow_with_cached_tokens(name: str) -> None:
    peaks = []
    for past in (2048, 32768):
        inputs = states((12, 2), past, 256)
        kernel, live = make_kernel(name, CPU), TensorCounter("cpu")
        kernel.begin(past, 256, past + 256, CPU)
        for tensor in inputs:
            live.count(tensor)
        before = live.now
        with live:
            kernel.attend(*inputs, 0.25)
        peaks.append(live.peak - before)
    assert 0 < peaks[0] == peaks[1] < 12 * 256 * 2048 * 4


def test_flex_compiles_once_for_all_lengths() -> None:
    """Chunks and caches of all lengths use one graph; another would raise. The first are exactly one block."""
    kernel = make_kernel("flex", CPU)
    for number in range(20):
        past, rows, unused = 37 * number, 128 - 6 * number, 128 * number
        query, key, value = states((12, 2), past, rows)
        key, value = (torch.nn.functional.pad(each, (0, 0, 0, -each.shape[2] % 128 + unused)) for each in (key, value))
        kernel.begin(past, rows, key.shape[2], CPU)
        output = kernel.attend(query, key, value, 0.25)
        kernel.end()
        assert torch.allclose(output, reference(query, key, value, past), atol=1e-5), number
    restrided = key.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(AttentionUnavailable, match="did not compile"):
        kernel.begin(past, rows, key.shape[2], CPU)
        kernel.attend(query, restrided, value, 0.25)


def test_flex_goes_on_after_another_family_was_imported() -> None:
    """transformers registers container classes with each family, and the compiler's guards count them."""

    class Container:
        pass

    def attend() -> torch.Tensor:
        kernel, (query, key, value) = make_kernel("flex", CPU), states((6, 2), 0, 128)
        kernel.begin(0, 128, 128, CPU)
        return kernel.attend(query, key, value, 0.25)

    first = attend()
    torch.utils._pytree.register_pytree_node(Container, lambda one: ([], None), lambda values, context: Container())
    try:
        assert attend().shape == first.shape
    finally:
        torch.utils._pytree._deregister_pytree_node(Container)


def test_uncompiled_flex_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda key: (lambda *arguments: flex._flex(key, *arguments), []))
    kernel = make_kernel("flex", CPU)
    kernel.begin(0, 5, 128, CPU)
    with pytest.raises(AttentionUnavailable, match="did not compile"):
        kernel.attend(torch.randn(1, 12, 5, 16), torch.randn(1, 2, 128, 16), torch.randn(1, 2, 128, 16), 0.25)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(UsageError, match="'flash3'"):
        make_kernel("flash3", CPU)
    with pytest.raises(AttentionUnavailable, match="no cudnn attention on cpu"):
        make_kernel("cudnn", CPU)


@pytest.mark.parametrize("layout", [QWEN_2B, QWEN_7B, HeadLayout(6, 2, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_is_selected_on_a_cpu(layout: HeadLayout, dtype: torch.dtype) -> None:
    (selected,) = select_kernel(layout, "cpu", dtype, timed=True)
    assert selected.name == "flash" and selected.runs and selected.chunk_seconds > 0
    assert selected.difference < (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_single_row_on_a_cpu_reads_the_keys_of_a_head_once() -> None:
    """PyTorch's kernel would read them for every query head: ten times as long in bf16."""
    kernel, shapes = FusedKernel("flash", CPU), []
    original = kernel._operator

    def operator(query: torch.Tensor, *rest: Any) -> Any:
        shapes.append(tuple(query.shape))
        return original(query, *rest)

    kernel._operator = operator
    query, (key, value) = torch.randn(1, 12, 1, 64), torch.randn(2, 1, 2, 100, 64)
    kernel.begin(79, 1, 100, CPU)
    out = kernel.attend(query, key, value, 0.125)
    exact = scaled_dot_product_attention(query, key[:, :, :80], value[:, :, :80], scale=0.125, enable_gqa=True)
    assert shapes == [(1, 2, 6, 64)]
    torch.testing.assert_close(out, exact)


def test_probes_on_a_cpu() -> None:
    probes = {name: probe_kernel(name, QWEN_7B, "cpu", torch.float32) for name in KERNELS_BY_PREFERENCE}
    assert {name: probe.runs for name, probe in probes.items()} == {
        "flash": True, "cudnn": False, "efficient": True, "tiled": True,
    }  # fmt: skip
    assert probes["cudnn"].reason == "There is no cudnn attention on cpu"


class WrongKernel:
    """A kernel that returns zeros."""

    name = "wrong"

    def begin(self, *_: Any) -> None: ...

    def end(self) -> None: ...

    def attend(self, query: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(query)


def test_wrong_and_failing_kernels_are_not_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, device: torch.device) -> Any:
        if name == "flash":
            return WrongKernel()
        if name == "efficient":
            raise RuntimeError("no kernel image is available. And more")
        return make_kernel(name, device)

    monkeypatch.setattr(selector, "make_kernel", broken)
    *rejected, selected = select_kernel(QWEN_2B, "cpu", torch.float32)
    assert [probe.name for probe in rejected] == ["flash", "cudnn", "efficient"]
    assert rejected[0].reason.startswith("differs from float32 by")
    assert rejected[2].reason == "no kernel image is available"
    assert selected.name == "tiled"
    monkeypatch.setattr(selector, "make_kernel", lambda name, device: WrongKernel())
    select_kernel.cache_clear()
    with pytest.raises(AttentionUnavailable, match="No attention runs on cpu"):
        select_kernel(QWEN_2B, "cpu", torch.float32)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("layout", [QWEN_2B, QWEN_7B])
def test_probes_on_a_gpu(layout: HeadLayout) -> None:
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    probes = {name: probe_kernel(name, layout, "cuda", dtype) for name in (*KERNELS_BY_PREFERENCE, "flex")}
    assert probes["efficient"].runs and probes["tiled"].runs
    if torch.cuda.get_device_capability() >= (8, 0):
        assert probes["flash"].runs and probes["flex"].runs, probes
