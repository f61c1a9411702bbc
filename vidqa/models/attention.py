"""Attention over a preallocated KV cache: which kernel runs, and that no other one does.

One function is registered with transformers; it hands each call to the kernel object
that the forward pass brought along, so nothing is patched and nothing is global.
Grouped queries are *folded into query rows* (a group's heads share their keys), never
expanded: the result is the same and no copy of K or V is made.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from vidqa.config import ATTENTION_CHOICES
from vidqa.errors import AttentionUnavailable, UsageError

REGISTERED_NAME = "vidqa"
SDPA_ROWS = 128  # query positions per tile: bounds the mask at heads/kv_heads · 128 · length
_FLEX_BLOCK = 128


class Kernel(Protocol):
    """An attention kernel. `whole_cache` kernels read the full buffers instead of the filled part."""

    name: str
    whole_cache: bool

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        """Prepare one forward pass: `length` new tokens after `past` cached ones."""

    def end(self) -> None:
        """Let go of what only this pass needed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention of (1, heads, n, d) over (1, kv_heads, m, d); returns (1, heads, n, d)."""


def fold(query: Tensor, kv_heads: int) -> Tensor:
    """Turn each key head's group of query heads into rows: (1, heads, n, d) -> (1, kv_heads, group·n, d)."""
    _, heads, length, dim = query.shape
    return query.reshape(1, kv_heads, heads // kv_heads * length, dim)


class SdpaKernel:
    """PyTorch's scaled_dot_product_attention on tiles of query rows.

    A tile's mask differs from its neighbour's only by the columns before it, so one mask,
    aligned to the right, serves every tile of a pass, and its size is known before the pass:
    heads/kv_heads · 128 rows by the filled cache.
    """

    name = "sdpa"
    whole_cache = True  # a tile's keys end at a whole block; what lies behind its rows is masked

    def __init__(self) -> None:
        self._past = 0
        self._last = 0
        self._mask: Tensor | None = None

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        self._past, self._last = past, self._tile_end(past, length)

    def end(self) -> None:
        self._mask = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if query.shape[2] == 1:  # one position: every row of the group sees the same keys
            end = self._past + 1
            folded = fold(query, key.shape[1])
            out = scaled_dot_product_attention(folded, key[:, :, :end], value[:, :, :end], scale=scaling)
            return out.reshape(query.shape)  # the fused CUDA kernels answer in (length, heads) order
        mixed = torch.empty_like(query)
        for start in range(0, query.shape[2], SDPA_ROWS):
            rows = slice(start, start + SDPA_ROWS)
            mixed[:, :, rows] = self._tile(query[:, :, rows], key, value, start, scaling)
        return mixed

    @staticmethod
    def _tile_end(past: int, length: int) -> int:
        """Keys that the last tile reads: to the end of a whole block after its last row."""
        tiles = -(-length // SDPA_ROWS)
        return -(-(past + tiles * SDPA_ROWS) // SDPA_ROWS) * SDPA_ROWS

    def _tile(self, query: Tensor, key: Tensor, value: Tensor, start: int, scaling: float) -> Tensor:
        rows = query.shape[2]
        query = pad(query, (0, 0, 0, SDPA_ROWS - rows)) if rows < SDPA_ROWS else query  # cheaper than a smaller mask
        end = self._tile_end(self._past, start + SDPA_ROWS)
        stop = min(end, key.shape[2])
        mask = self._right_aligned(query.shape[1] // key.shape[1], query)
        columns = slice(mask.shape[1] - end, mask.shape[1] - end + stop)
        out = scaled_dot_product_attention(
            fold(query, key.shape[1]), key[:, :, :stop], value[:, :, :stop], attn_mask=mask[:, columns], scale=scaling
        )
        return out.reshape(query.shape)[:, :, :rows]

    def _right_aligned(self, group: int, like: Tensor) -> Tensor:
        """Additive causal mask (group·128, columns) of a tile whose keys end at the last column."""
        if self._mask is None:
            beyond = (self._last - self._past) % SDPA_ROWS  # columns between a tile's last row and its block's end
            width = SDPA_ROWS + beyond
            mask = torch.zeros(group, SDPA_ROWS, self._last, dtype=like.dtype, device=like.device)
            corner = torch.full((SDPA_ROWS, width), -torch.inf, dtype=like.dtype, device=like.device)
            mask[:, :, self._last - width :] = corner.triu_(1)
            self._mask = mask.flatten(0, 1)
        return self._mask


class FlexKernel:
    """Compiled FlexAttention over the whole preallocated cache.

    The number of cached tokens is a tensor that the mask captures, the query is padded to
    whole blocks, and the block mask is arithmetic: shapes never change within a cache, so
    each padded length compiles once.
    """

    name = "flex"
    whole_cache = True

    def __init__(self) -> None:
        self._compiled = _compiled_flex()
        self._past: Tensor | None = None
        self._block_mask: Any = None

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        if self._past is None or self._past.device != device:
            self._past = torch.zeros((), dtype=torch.int64, device=device)
        self._past.fill_(past)
        self._block_mask = None
        if length > 1:
            self._block_mask = self._causal_blocks(past, _padded(length), capacity, self._past)

    def end(self) -> None:
        self._block_mask = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        length = query.shape[2]
        if length == 1:
            return self._decode(query, key, value, scaling)
        padded = pad(query, (0, 0, 0, _padded(length) - length))
        return self._run(padded, key, value, self._block_mask, scaling)[:, :, :length]

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        folded = fold(query, key.shape[1])  # one position: every row of the group sees the same keys
        rows = folded.shape[2]
        if self._block_mask is None:
            self._block_mask = self._filled_blocks(_padded(rows), key.shape[2])
        padded = pad(folded, (0, 0, 0, _padded(rows) - rows))
        out = self._run(padded, key, value, self._block_mask, scaling)
        return out[:, :, :rows].reshape(query.shape)

    def _run(self, query: Tensor, key: Tensor, value: Tensor, blocks: Any, scaling: float) -> Tensor:
        with warnings.catch_warnings():
            # Uncompiled flex materialises the score matrix: never in silence.
            warnings.filterwarnings("error", message=".*unfused implementation.*")
            try:
                out: Tensor = self._compiled(query, key, value, blocks, scaling)
            except torch.OutOfMemoryError:
                raise  # memory is the planner's business
            except Exception as error:  # whatever the compiler raises, the asked kernel did not run
                raise AttentionUnavailable(
                    f"FlexAttention did not compile on {query.device.type}: {type(error).__name__}.",
                    "Use --attn sdpa, or install a C++ compiler.",
                ) from error
        return out

    def _causal_blocks(self, past: int, rows: int, capacity: int, past_tokens: Tensor) -> Any:
        def causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return column <= row + past_tokens

        blocks = torch.arange(1, rows // _FLEX_BLOCK + 1, device=past_tokens.device)
        ends = past + blocks * _FLEX_BLOCK
        return _blocks(ends, rows, capacity, causal)

    def _filled_blocks(self, rows: int, capacity: int) -> Any:
        past_tokens = self._past
        assert past_tokens is not None

        def filled(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return column <= past_tokens

        ends = (past_tokens + 1).repeat(rows // _FLEX_BLOCK)
        return _blocks(ends, rows, capacity, filled)


def _blocks(ends: Tensor, rows: int, capacity: int, mask: Callable[..., Tensor]) -> Any:
    """A BlockMask from arithmetic: row block i sees the column blocks before `ends[i]`."""
    from torch.nn.attention.flex_attention import BlockMask

    columns = -(-capacity // _FLEX_BLOCK)
    counts = ((ends + _FLEX_BLOCK - 1) // _FLEX_BLOCK).clamp(max=columns).to(torch.int32)
    indices = torch.arange(columns, device=ends.device, dtype=torch.int32).expand(1, 1, len(ends), columns)
    return BlockMask.from_kv_blocks(
        counts.view(1, 1, -1), indices.contiguous(), BLOCK_SIZE=_FLEX_BLOCK, mask_mod=mask,
        seq_lengths=(rows, capacity), compute_q_blocks=False,
    )  # fmt: skip


def _padded(length: int) -> int:
    return -(-length // _FLEX_BLOCK) * _FLEX_BLOCK


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def run(query: Tensor, key: Tensor, value: Tensor, blocks: Any, scaling: float) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        return flex_attention(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=grouped)

    return torch.compile(run, dynamic=False, fullgraph=True)


def _check_name(choice: str) -> str:
    if choice not in ATTENTION_CHOICES:
        raise UsageError(f"There is no attention kernel {choice!r}.", f"Choose one of {', '.join(ATTENTION_CHOICES)}.")
    return "sdpa" if choice == "auto" else choice


_KERNELS: dict[str, Callable[[], Kernel]] = {"sdpa": SdpaKernel, "flex": FlexKernel}


def make_kernel(choice: str) -> Kernel:
    """The kernel that a user's choice names; `auto` is SDPA. Raises UsageError for other names."""
    return _KERNELS[_check_name(choice)]()


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    vidqa_kernel: Kernel | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, n, d) in, (1, n, heads, d) out."""
    if vidqa_kernel is None or attention_mask is not None:
        raise RuntimeError("vidqa's attention runs inside vidqa's forward pass, which brings its kernel and no mask")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return vidqa_kernel.attend(query, key, value, scale).transpose(1, 2), None


def register() -> str:
    """Make the function known to transformers; returns its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(REGISTERED_NAME, _attention)
    return REGISTERED_NAME
