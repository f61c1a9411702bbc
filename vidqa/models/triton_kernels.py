"""Triton kernels of the decode step: the operations between one layer's matrix products, for a few rows at a time.

Each function launches one kernel, `decode_attention` two: one program per part of the cache, then their sum
(Flash-Decoding, Dao et al. 2023). Cached keys and values are read up to each sequence's end only, int8 ones as they are
stored. Results are rounded where transformers' modules round, so both agree within the precision of the tensors.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_TOKENS = 128  # keys that a program holds at a time
MAX_SPLITS = 64  # parts of a cache, whose results are one tile of the second kernel
_MIN_ROWS = 16  # of tl.dot
# Adding and subtracting this rounds a float32 below 2^22 to the nearest even whole number, as torch.round does.
_ROUNDING = tl.constexpr(12582912.0)
_SMALLEST_SCALE = tl.constexpr(2.0**-14)  # engine/kv_cache.py, to_int8


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's store (2, B, kv_heads, capacity, d) and, for int8, its scales (2, B, kv_heads, capacity)."""

    store: Tensor
    scales: Tensor | None


Function = TypeVar("Function", bound=Callable[..., Any])


def _on_tensor_device(function: Function) -> Function:
    """Make the first tensor's device the current one, where Triton launches."""

    @functools.wraps(function)
    def guarded(first: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *rest)

    return cast(Function, guarded)


@_on_tensor_device
def add_rms_norm(hidden: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a branch (B, H) to hidden states (B, H) and normalise the sum; return (sum, normalised)."""
    rows, width = hidden.shape
    total = hidden if branch is None else torch.empty_like(hidden)
    normed = torch.empty_like(hidden)
    block = triton.next_power_of_2(width)
    _add_rms_norm[(rows,)](
        hidden, hidden if branch is None else branch, weight, total, normed, width, eps,
        HAS_BRANCH=branch is not None, BLOCK=block, num_warps=8 if block >= 2048 else 4,
    )  # fmt: skip
    return total, normed


@_on_tensor_device
def rotate_and_append(qkv: Tensor, cosine: Tensor, sine: Tensor, cache: LayerCache, lengths: Tensor) -> Tensor:
    """Rotate queries and keys of merged projections, and append keys and values to the cache.

    qkv: (B, (heads + 2·kv_heads)·d); cosine and sine: (B, 1, d/2) in float32; lengths: (B,) cached tokens.
    Return the queries (B, heads, d). A full cache is overwritten at its last token.
    """
    rows, width = qkv.shape
    _, _, kv_heads, capacity, dim = cache.store.shape
    heads = width // dim - 2 * kv_heads
    query = torch.empty(rows, heads, dim, dtype=qkv.dtype, device=qkv.device)
    scales = cache.store if cache.scales is None else cache.scales
    _rotate_and_append[(rows, heads + 2 * kv_heads)](
        qkv, cosine, sine, query, cache.store, scales, lengths, rows, capacity,
        HEADS=heads, KV_HEADS=kv_heads, HALF=dim // 2, QUANTIZED=cache.scales is not None, num_warps=1,
    )  # fmt: skip
    return query


@_on_tensor_device
def decode_attention(query: Tensor, cache: LayerCache, lengths: Tensor) -> Tensor:
    """Attend with one new token per sequence, which is cached already: (B, heads, d) to (B, heads·d).

    lengths: (B,) tokens cached before it. The query heads of a key head are rows of one product: each key is read once.
    """
    rows, heads, dim = query.shape
    _, _, kv_heads, capacity, _ = cache.store.shape
    group = heads // kv_heads
    split = max(TILE_TOKENS, triton.next_power_of_2(-(-capacity // MAX_SPLITS)))
    splits = -(-capacity // split)
    sums = torch.empty(rows, kv_heads, splits, group, dim + 2, dtype=torch.float32, device=query.device)
    scales = cache.store if cache.scales is None else cache.scales
    exact = query.dtype == torch.float32
    _attend_split[(rows * kv_heads, splits)](
        query, cache.store, scales, sums, lengths, rows, capacity, split, dim**-0.5,
        KV_HEADS=kv_heads, GROUP=group, GROUP_BLOCK=max(triton.next_power_of_2(group), _MIN_ROWS), DIM=dim,
        TILE=TILE_TOKENS, PRECISION="ieee" if exact else "tf32",
        QUANTIZED=cache.scales is not None, num_warps=4,
        num_stages=1 if exact else 3,  # three tiles of float32 exceed a block's shared memory
    )  # fmt: skip
    mixed = torch.empty(rows, heads * dim, dtype=query.dtype, device=query.device)
    _sum_splits[(rows, heads)](
        sums, mixed, lengths, splits, split, HEADS=heads, GROUP=group, DIM=dim, SPLITS_BLOCK=MAX_SPLITS, num_warps=4,
    )  # fmt: skip
    return mixed


@_on_tensor_device
def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up of merged projections (B, 2·I): (B, I)."""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    block = 1024
    _silu_and_multiply[(rows, triton.cdiv(width // 2, block))](gate_up, out, width // 2, BLOCK=block, num_warps=4)
    return out


@triton.jit
def _add_rms_norm(
    hidden, branch, weight, total, normed, width, eps, HAS_BRANCH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    place = row * width + columns
    states = tl.load(hidden + place, mask=inside, other=0.0)
    dtype = states.dtype
    if HAS_BRANCH:
        added = tl.load(branch + place, mask=inside, other=0.0)
        states = (states.to(tl.float32) + added.to(tl.float32)).to(dtype)
        tl.store(total + place, states, mask=inside)
    wide = states.to(tl.float32)
    mean_square = tl.sum(wide * wide, axis=0) / width
    scaled = (wide * (1.0 / tl.sqrt(mean_square + eps))).to(dtype)
    gain = tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(normed + place, (gain.to(tl.float32) * scaled.to(tl.float32)).to(dtype), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _rotate_and_append(
    qkv, cosine, sine, query, store, scales, lengths, rows, capacity,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, QUANTIZED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    halves = tl.arange(0, HALF)
    dim = 2 * HALF
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * dim
    first = tl.load(source + halves)
    dtype = first.dtype
    first = first.to(tl.float32)
    second = tl.load(source + HALF + halves).to(tl.float32)
    if head < HEADS + KV_HEADS:  # values are not rotated
        turn = tl.load(cosine + row * HALF + halves)
        across = tl.load(sine + row * HALF + halves)
        rotated = first * turn - second * across
        second = second * turn + first * across
        first = rotated
    first = first.to(dtype)
    second = second.to(dtype)
    if head < HEADS:
        target = query + (row * HEADS + head) * dim
        tl.store(target + halves, first)
        tl.store(target + HALF + halves, second)
    else:
        part = (head - HEADS) // KV_HEADS  # 0 for keys, 1 for values
        kv_head = (head - HEADS) % KV_HEADS
        last = tl.minimum(tl.load(lengths + row), capacity - 1)
        place = ((part * rows + row) * KV_HEADS + kv_head).to(tl.int64) * capacity + last
        if QUANTIZED:
            wide_first = first.to(tl.float32)
            wide_second = second.to(tl.float32)
            most = tl.maximum(tl.max(tl.abs(wide_first), axis=0), tl.max(tl.abs(wide_second), axis=0))
            scale = tl.maximum(most / 127.0, _SMALLEST_SCALE).to(tl.float16)
            tl.store(scales + place, scale)
            step = scale.to(tl.float32)
            tl.store(store + place * dim + halves, _round_to_int8(wide_first / step))
            tl.store(store + place * dim + HALF + halves, _round_to_int8(wide_second / step))
        else:
            tl.store(store + place * dim + halves, first)
            tl.store(store + place * dim + HALF + halves, second)


@triton.jit
def _round_to_int8(numbers):
    rounded = (numbers + _ROUNDING) - _ROUNDING
    return tl.minimum(tl.maximum(rounded, -127.0), 127.0).to(tl.int8)


@triton.jit(do_not_specialize=["rows", "split_tokens"])
def _attend_split(
    query, store, scales, sums, lengths, rows, capacity, split_tokens, scaling,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, DIM: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr, QUANTIZED: tl.constexpr,
):  # fmt: skip
    # One key head of one sequence, tokens from `split * split_tokens` on. Writes the weighted values, the largest score
    # and the sum of weights; nothing if the sequence ends before.
    key_head = tl.program_id(0)  # row * KV_HEADS + kv_head
    split = tl.program_id(1)
    row = key_head // KV_HEADS
    end = tl.minimum(tl.load(lengths + row).to(tl.int32) + 1, capacity)
    start = split * split_tokens
    if start < end:
        members = tl.arange(0, GROUP_BLOCK)
        columns = tl.arange(0, DIM)
        inside = members[:, None] < GROUP
        q = tl.load(query + (key_head * GROUP + members[:, None]) * DIM + columns[None, :], mask=inside, other=0.0)
        keys = key_head.to(tl.int64) * capacity
        values = (rows * KV_HEADS + key_head).to(tl.int64) * capacity
        top = tl.full((GROUP_BLOCK,), -float("inf"), tl.float32)
        weight_sum = tl.zeros((GROUP_BLOCK,), tl.float32)
        mixed = tl.zeros((GROUP_BLOCK, DIM), tl.float32)
        for first in range(start, tl.minimum(start + split_tokens, end), TILE):
            tokens = first + tl.arange(0, TILE)
            valid = tokens < end
            offsets = tokens[:, None] * DIM + columns[None, :]
            key = tl.load(store + keys * DIM + offsets, mask=valid[:, None], other=0.0).to(q.dtype)
            scores = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scaling
            if QUANTIZED:
                scores = scores * tl.load(scales + keys + tokens, mask=valid, other=0.0).to(tl.float32)[None, :]
            scores = tl.where(valid[None, :], scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, axis=1))
            shrink = tl.exp(top - higher)
            weights = tl.exp(scores - higher[:, None])
            weight_sum = weight_sum * shrink + tl.sum(weights, axis=1)
            if QUANTIZED:
                weights = weights * tl.load(scales + values + tokens, mask=valid, other=0.0).to(tl.float32)[None, :]
            value = tl.load(store + values * DIM + offsets, mask=valid[:, None], other=0.0).to(q.dtype)
            mixed = mixed * shrink[:, None] + tl.dot(weights.to(q.dtype), value, input_precision=PRECISION)
            top = higher
        out = sums + ((key_head * tl.num_programs(1) + split) * GROUP + members) * (DIM + 2)
        tl.store(out[:, None] + columns[None, :], mixed, mask=inside)
        tl.store(out + DIM, top, mask=members < GROUP)
        tl.store(out + DIM + 1, weight_sum, mask=members < GROUP)


@triton.jit(do_not_specialize=["splits", "split_tokens"])
def _sum_splits(
    sums, mixed, lengths, splits, split_tokens,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SPLITS_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    kv_head = head // GROUP
    member = head % GROUP
    columns = tl.arange(0, DIM)
    split = tl.arange(0, SPLITS_BLOCK)
    used = split < tl.minimum(tl.load(lengths + row).to(tl.int32) // split_tokens + 1, splits)
    source = sums + ((((row * (HEADS // GROUP) + kv_head) * splits) + split) * GROUP + member) * (DIM + 2)
    tops = tl.load(source + DIM, mask=used, other=-float("inf"))
    weight = tl.exp(tops - tl.max(tops, axis=0))
    total = tl.sum(weight * tl.load(source + DIM + 1, mask=used, other=0.0), axis=0)
    parts = tl.load(source[:, None] + columns[None, :], mask=used[:, None], other=0.0)
    out = tl.sum(parts * weight[:, None], axis=0) / total
    tl.store(mixed + (row * HEADS + head) * DIM + columns, out.to(mixed.dtype.element_ty))


@triton.jit
def _silu_and_multiply(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * width + columns, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=inside)
