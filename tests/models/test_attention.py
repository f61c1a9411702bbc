"""The kernel that is named is the kernel that runs."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from vidqa.errors import AttentionUnavailable, UsageError
from vidqa.models import attention
from vidqa.models.attention import FlexKernel, SdpaKernel, make_kernel


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, past: int) -> torch.Tensor:
    """Causal attention with every key copied to its group."""
    group, rows, seen = query.shape[1] // key.shape[1], query.shape[2], past + query.shape[2]
    mask = torch.ones(rows, seen, dtype=torch.bool).tril(past)
    keys, values = (tensor[:, :, :seen].repeat_interleave(group, 1) for tensor in (key, value))
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask)


@pytest.mark.parametrize("heads", [(12, 2), (28, 4), (6, 2), (4, 4)])
@pytest.mark.parametrize(("past", "rows"), [(0, 1), (0, 300), (17, 1), (100, 128), (100, 129), (1, 5)])
def test_folded_sdpa_equals_expanded_attention(heads: tuple[int, int], past: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(past + rows)
    query = torch.randn(1, heads[0], rows, 16, generator=generator)
    key, value = torch.randn(2, 1, heads[1], past + rows, 16, generator=generator)
    kernel = SdpaKernel()
    kernel.begin(past, rows, past + rows, torch.device("cpu"))
    assert torch.allclose(kernel.attend(query, key, value, 0.25), reference(query, key, value, past), atol=1e-5)


def test_an_uncompiled_flex_is_an_error_and_never_runs_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: object, scaling: float) -> object:
        return flex_attention(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=True)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "_compiled_flex", lambda: eager)
    kernel = FlexKernel()
    kernel.begin(0, 5, 128, torch.device("cpu"))
    with pytest.raises(AttentionUnavailable, match="did not compile"):
        kernel.attend(torch.randn(1, 12, 5, 16), torch.randn(1, 2, 128, 16), torch.randn(1, 2, 128, 16), 0.25)


def test_a_kernel_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="'flash3'"):
        make_kernel("flash3")
    assert make_kernel("auto").name == "sdpa"
