"""Every rung of the ladder is exact, and the one that is named is the one that runs."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vidqa.devices.live_bytes import LiveBytes
from vidqa.errors import AttentionUnavailable, UsageError
from vidqa.models.attention import flex, make_kernel

CPU = torch.device("cpu")


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, past: int) -> torch.Tensor:
    """Causal attention with every key copied to its group."""
    group, rows, seen = query.shape[1] // key.shape[1], query.shape[2], past + query.shape[2]
    mask = torch.ones(rows, seen, dtype=torch.bool).tril(past)
    keys, values = (tensor[:, :, :seen].repeat_interleave(group, 1) for tensor in (key, value))
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def states(heads: tuple[int, int], past: int, rows: int, room: int = 0) -> tuple[torch.Tensor, ...]:
    """Queries in the order of a projection, and whole buffers whose rest nobody may read."""
    generator = torch.Generator().manual_seed(past + rows)
    query = torch.randn(1, rows, heads[0], 16, generator=generator).transpose(1, 2)
    buffers = torch.full((2, 1, heads[1], past + rows + room, 16), torch.nan)
    buffers[:, :, :, : past + rows] = torch.randn(2, 1, heads[1], past + rows, 16, generator=generator)
    return query, buffers[0], buffers[1]


@pytest.mark.parametrize("name", ["flash", "efficient", "tiled"])
@pytest.mark.parametrize("heads", [(12, 2), (28, 4), (6, 2), (4, 4)])
@pytest.mark.parametrize(("past", "rows"), [(0, 1), (0, 300), (17, 1), (100, 128), (100, 129), (1, 5), (2000, 130)])
def test_every_rung_equals_expanded_attention(name: str, heads: tuple[int, int], past: int, rows: int) -> None:
    query, key, value = states(heads, past, rows, room=77)
    kernel = make_kernel(name, CPU)
    kernel.begin(past, rows, past + rows + 77, CPU)
    ours = kernel.attend(query, key, value, 0.25)
    assert kernel.name == name
    assert ours.shape == query.shape
    assert torch.allclose(ours, reference(query, key, value, past), atol=1e-5)


@pytest.mark.parametrize("name", ["flash", "efficient", "tiled"])
def test_no_rung_takes_more_for_a_longer_past(name: str) -> None:
    """Its workspace is a constant: nothing grows with what is cached, least of all a score matrix."""
    peaks = []
    for past in (2048, 32768):
        query, key, value = states((12, 2), past, 256)
        kernel, live = make_kernel(name, CPU), LiveBytes("cpu")
        kernel.begin(past, 256, past + 256, CPU)
        for there in (query, key, value):
            live.count(there)
        before = live.now
        with live:
            kernel.attend(query, key, value, 0.25)
        peaks.append(live.peak - before)
    assert 0 < peaks[0] == peaks[1] < 12 * 256 * 2048 * 4


def test_flex_compiles_once_for_twenty_lengths_and_then_never_again() -> None:
    """Chunks of every length behind caches of every length are one graph; another would raise."""
    kernel = make_kernel("flex", CPU)
    for number in range(20):
        past, rows, room = 37 * number, 200 - 9 * number, 128 * number
        query, key, value = states((12, 2), past, rows, room=0)
        key, value = (torch.nn.functional.pad(each, (0, 0, 0, -each.shape[2] % 128 + room)) for each in (key, value))
        kernel.begin(past, rows, key.shape[2], CPU)
        ours = kernel.attend(query, key, value, 0.25)
        kernel.end()
        assert torch.allclose(ours, reference(query, key, value, past), atol=1e-5), number
    otherwise = key.transpose(1, 2).contiguous().transpose(1, 2)  # the same numbers in another order of memory
    with pytest.raises(AttentionUnavailable, match="did not compile"):
        kernel.begin(past, rows, key.shape[2], CPU)
        kernel.attend(query, otherwise, value, 0.25)


def test_a_cache_of_one_block_is_no_other_graph() -> None:
    """A dimension of one would be compiled as a constant, and the next, larger cache refused."""
    counts, indices = flex._causal_blocks(0, 128, 128, CPU)
    assert counts.tolist() == [[[1]]]  # the second block is listed, and never read
    assert indices.tolist() == [[[[0, 1]]]]


def test_an_uncompiled_flex_is_an_error_and_never_runs_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda role: (lambda *arguments: flex._flex(role, *arguments), []))
    kernel = make_kernel("flex", CPU)
    kernel.begin(0, 5, 128, CPU)
    with pytest.raises(AttentionUnavailable, match="did not compile"):
        kernel.attend(torch.randn(1, 12, 5, 16), torch.randn(1, 2, 128, 16), torch.randn(1, 2, 128, 16), 0.25)


def test_a_kernel_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="'flash3'"):
        make_kernel("flash3", CPU)
    with pytest.raises(AttentionUnavailable, match="no cudnn attention on cpu"):
        make_kernel("cudnn", CPU)
