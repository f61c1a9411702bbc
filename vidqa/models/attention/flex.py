"""Compiled FlexAttention over the whole preallocated cache.

The number of cached tokens is a tensor that the mask captures, a pass is padded to the rows of
the first one, and the block mask is arithmetic: one graph per kernel object and device, whatever
the cache's length. A second compilation, or flex without compilation, is an error: both would be
silent, and the second builds the score matrix.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidqa.errors import AttentionUnavailable
from vidqa.models.block_sizes import FLEX_BLOCK


class FlexKernel:
    """The rung that PyTorch generates for this GPU."""

    name = "flex"

    def __init__(self) -> None:
        self._rows = 0
        self._past: Tensor | None = None
        self._blocks: tuple[Tensor, Tensor] | None = None
        self._for: tuple[int, int, int] | None = None

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        if self._for == (past, length, capacity):
            return  # every layer of a pass asks for the same
        self._for = (past, length, capacity)
        self._rows = max(self._rows, -(-length // FLEX_BLOCK) * FLEX_BLOCK)  # the last, shorter chunk is padded
        self._past = torch.tensor(past, device=device)
        self._blocks = _causal_blocks(past, self._rows, capacity, device)

    def end(self) -> None:
        self._past = self._blocks = self._for = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        assert self._blocks is not None and self._past is not None
        length = query.shape[2]
        padded = pad(query, (0, 0, 0, self._rows - length))
        out = _run(padded, key, value, *self._blocks, self._past, scaling)
        return out[:, :, :length]


def _causal_blocks(past: int, rows: int, capacity: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which column blocks each row block reads: how many, and their numbers, as BlockMask wants them."""
    columns, count = -(-capacity // FLEX_BLOCK), rows // FLEX_BLOCK
    ends = torch.arange(1, count + 1, device=device) * FLEX_BLOCK + past
    counts = ((ends + FLEX_BLOCK - 1) // FLEX_BLOCK).clamp(max=columns).to(torch.int32)
    listed = max(columns, 2)  # the compiler takes a dimension of one for a constant: larger caches would not fit it
    indices = torch.arange(listed, device=device, dtype=torch.int32).expand(1, 1, count, listed)
    return counts.view(1, 1, -1), indices.contiguous()


def _run(*arguments: Any) -> Tensor:
    query, key = arguments[0], arguments[1]
    role = (query.device, query.dtype, *query.shape[1:], key.shape[1])
    run, seen = _compiled(role)
    for tensor, dimension in ((key, 2), (arguments[2], 2), (arguments[4], 3)):
        torch._dynamo.mark_dynamic(tensor, dimension)  # only the cache's length differs between plans
    with warnings.catch_warnings(), torch.compiler.set_stance("fail_on_recompile" if seen else "default"):
        # Uncompiled flex materialises the score matrix: never in silence.
        warnings.filterwarnings("error", message=".*unfused implementation.*")
        try:
            out: Tensor = run(*arguments)
        except torch.OutOfMemoryError:
            raise  # memory is the planner's business
        except Exception as error:  # whatever the compiler raises, the asked kernel did not run
            raise AttentionUnavailable(
                f"FlexAttention did not compile on {query.device.type}: {type(error).__name__}.",
                "Use --attn auto, or install a C++ compiler.",
            ) from error
    seen.append(role)
    return out


@functools.cache
def _compiled(role: tuple[Any, ...]) -> tuple[Callable[..., Tensor], list[Any]]:
    """A role's compiled function, and a list that is empty until it ran once."""
    return torch.compile(functools.partial(_flex, role), dynamic=False, fullgraph=True), []


def _flex(
    role: tuple[Any, ...], query: Tensor, key: Tensor, value: Tensor,
    counts: Tensor, indices: Tensor, past: Tensor, scaling: float,
) -> Tensor:  # fmt: skip
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    def causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return column <= row + past

    blocks = BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=FLEX_BLOCK, mask_mod=causal,
        seq_lengths=(query.shape[2], key.shape[2]), compute_q_blocks=False,
    )  # fmt: skip
    grouped = query.shape[1] != key.shape[1]
    out = flex_attention(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=grouped)
    assert isinstance(out, Tensor)
    return out
