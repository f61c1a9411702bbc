"""The decode step's kernels compared with torch, and compiled for every supported GPU.

Without a GPU they run in Triton's interpreter, which has no bfloat16 arithmetic: float16 is tested instead.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidqa.engine.kv_cache import to_int8
from vidqa.models.decoder_layers import rotate

pytest.importorskip("triton", reason="Triton is not installed on this system")
from vidqa.models import triton_kernels as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = 1e-6 if DEVICE == "cuda" else 0.0  # a GPU rounds a product and its sum once, torch twice
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
HEADS = pytest.mark.parametrize(("heads", "kv_heads"), [(12, 2), (28, 4), (6, 2)])
DIM, CAPACITY, LENGTHS = 16, 640, (5, 601)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def make_layer_cache(kv_heads: int, dtype: torch.dtype, *, quantized: bool, capacity: int = CAPACITY) -> Any:
    """A layer's cache of random numbers for two sequences."""
    states = random(2, len(LENGTHS), kv_heads, capacity, DIM, seed=3).to(dtype)
    if not quantized:
        return kernels.LayerCache(states, None)
    numbers, scales = to_int8(states)
    return kernels.LayerCache(numbers.to(torch.int8), scales)


def unpacked(cache: Any) -> Tensor:
    return cache.store.float() * (1 if cache.scales is None else cache.scales.float()[..., None])


@DTYPES
@pytest.mark.parametrize("width", [96, 1536])
def test_add_rms_norm(dtype: torch.dtype, width: int) -> None:
    hidden, branch, weight = (
        random(*shape, seed=n).to(dtype) for n, shape in enumerate(((3, width), (3, width), (width,)))
    )
    total, normed = kernels.add_rms_norm(hidden, branch, weight, 1e-6)
    assert torch.equal(total, hidden + branch)
    wide = (hidden + branch).float()
    expected = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype)
    assert torch.allclose(normed.float(), expected.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    alone = kernels.add_rms_norm(total, None, weight, 1e-6)
    assert alone[0] is total and torch.equal(alone[1], normed)


@DTYPES
@HEADS
@pytest.mark.parametrize("quantized", [False, True])
def test_rotate_and_append(dtype: torch.dtype, heads: int, kv_heads: int, quantized: bool) -> None:
    qkv, angles = random(2, (heads + 2 * kv_heads) * DIM).to(dtype), random(2, 1, DIM // 2, seed=1)
    cache, lengths = make_layer_cache(kv_heads, dtype, quantized=quantized), torch.tensor(LENGTHS, device=DEVICE)
    before = unpacked(cache)
    query = kernels.rotate_and_append(qkv, angles.cos(), angles.sin(), cache, lengths)
    split = qkv.view(2, -1, DIM)
    assert torch.allclose(query, rotate(split[:, :heads], angles.cos(), angles.sin()), atol=ROUNDING, rtol=ROUNDING)
    written = (rotate(split[:, heads : heads + kv_heads], angles.cos(), angles.sin()), split[:, heads + kv_heads :])
    after, expected = unpacked(cache), before.clone()
    for part, states in enumerate(written):
        for row, length in enumerate(LENGTHS):
            numbers, scales = to_int8(states[row].float())
            expected[part, row, :, length] = (
                (numbers.float() * scales.float()[:, None]) if quantized else states[row].float()
            )
    step = 0.03 * ROUNDING / 1e-6 if quantized else ROUNDING  # a GPU may round to the next code
    assert torch.allclose(after, expected, atol=step, rtol=ROUNDING)


def test_full_cache_is_overwritten_at_its_last_token() -> None:
    cache, lengths = make_layer_cache(2, torch.float32, quantized=False), torch.tensor((CAPACITY, 3), device=DEVICE)
    before = cache.store.clone()
    angles = random(2, 1, DIM // 2)
    kernels.rotate_and_append(random(2, 16 * DIM), angles.cos(), angles.sin(), cache, lengths)
    changed = (cache.store != before).any(-1).any(2).any(0)  # (sequence, token)
    assert changed.nonzero().tolist() == [[0, CAPACITY - 1], [1, 3]]


@DTYPES
@HEADS
@pytest.mark.parametrize("quantized", [False, True])
def test_decode_attention(dtype: torch.dtype, heads: int, kv_heads: int, quantized: bool) -> None:
    cache, query = make_layer_cache(kv_heads, dtype, quantized=quantized), random(2, heads, DIM, seed=5).to(dtype)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    for row, length in enumerate(LENGTHS):  # later values are never read
        (cache.store if cache.scales is None else cache.scales)[:, row, :, length + 1 :] = torch.nan
    mixed = kernels.decode_attention(query, cache, lengths).float()
    for row, length in enumerate(LENGTHS):
        keys, values = unpacked(cache)[:, row, :, : length + 1].repeat_interleave(heads // kv_heads, 1)
        weights = torch.softmax((query[row].float()[:, None] @ keys.transpose(1, 2)) * DIM**-0.5, -1)
        expected = (weights @ values).flatten()
        assert torch.allclose(mixed[row], expected, atol=TOLERANCE[dtype], rtol=0)


def test_decode_attention_over_many_tiles() -> None:
    capacity = 64 * 128 + 128  # a split becomes 256 tokens, two tiles
    cache, query = make_layer_cache(1, torch.float32, quantized=False, capacity=capacity), random(2, 3, DIM)
    lengths = torch.tensor((capacity - 1, 300), device=DEVICE)
    mixed = kernels.decode_attention(query, cache, lengths)
    for row, length in enumerate(lengths.tolist()):
        keys, values = cache.store[:, row, 0, : length + 1]
        expected = torch.softmax((query[row] @ keys.T) * DIM**-0.5, -1) @ values
        assert torch.allclose(mixed[row].view(3, DIM), expected, atol=1e-5)


@DTYPES
def test_silu_and_multiply(dtype: torch.dtype) -> None:
    gate_up = random(2, 2 * 1500).to(dtype) * 4
    gate, up = gate_up.split(1500, dim=1)
    ours = kernels.silu_and_multiply(gate_up)
    assert torch.allclose(ours.float(), (torch.nn.functional.silu(gate) * up).float(), atol=TOLERANCE[dtype], rtol=1e-3)


def test_every_kernel_compiles_without_a_gpu(tmp_path: Path) -> None:
    """In another process: here the kernels are the interpreter's."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.compile_kernels"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 6 * 2 * 7  # GPUs, precisions, kernels
    assert max(int(row[-1]) for row in rows) <= 99 * 1024  # bytes a block can have on the smallest of them
