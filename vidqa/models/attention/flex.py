"""Compiled FlexAttention over the whole preallocated cache.

The mask captures the number of cached tokens as a tensor, every chunk is padded to the rows of the first one, and the
block mask is computed: one graph per kernel object and device for every cache length. A second compilation or an
uncompiled call raises AttentionUnavailable: both would go unnoticed, and the latter builds the score matrix.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidqa.errors import AttentionUnavailable
from vidqa.models.block_sizes import FLEX_BLOCK


class FlexKernel:
    """The kernel that PyTorch generates for the device."""

    name = "flex"

    def __init__(self) -> None:
        self._rows = 0
        self._past: Tensor | None = None
        self._blocks: tuple[Tensor, Tensor] | None = None
        self._prepared_for: tuple[int, int, int] | None = None

    def begin(self, past: int, length: int, capacity: int, device: torch.device) -> None:
        if self._prepared_for == (past, length, capacity):
            return  # called by every layer of a pass
        self._prepared_for = (past, length, capacity)
        self._rows = max(self._rows, -(-length // FLEX_BLOCK) * FLEX_BLOCK)  # the last, shorter chunk is padded
        self._past = torch.tensor(past, device=device)
        self._blocks = _causal_blocks(past, self._rows, capacity, device)

    def end(self) -> None:
        self._past = self._blocks = self._prepared_for = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        assert self._blocks is not None and self._past is not None
        length = query.shape[2]
        # Always contiguous: the strides of an unpadded query would need another graph.
        padded = query.new_zeros(*query.shape[:2], self._rows, query.shape[3])
        padded[:, :, :length] = query
        out = _run(padded, key, value, *self._blocks, self._past, scaling)
        return out[:, :, :length]


def _causal_blocks(past: int, rows: int, capacity: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return number and indices of the key blocks of each query block, as BlockMask.from_kv_blocks takes them."""
    columns, count = -(-capacity // FLEX_BLOCK), rows // FLEX_BLOCK
    ends = torch.arange(1, count + 1, device=device) * FLEX_BLOCK + past
    counts = ((ends + FLEX_BLOCK - 1) // FLEX_BLOCK).clamp(max=columns).to(torch.int32)
    listed = max(columns, 2)  # the compiler specialises on a dimension of one, and would refuse larger caches
    indices = torch.arange(listed, device=device, dtype=torch.int32).expand(1, 1, count, listed)
    return counts.view(1, 1, -1), indices.contiguous()


def _run(*arguments: Any) -> Tensor:
    query, key = arguments[0], arguments[1]
    # The compiler's guards hold the number of registered container classes, to which each model family adds some.
    classes = len(torch.utils._pytree.SUPPORTED_NODES)
    signature = (query.device, query.dtype, *query.shape[1:], key.shape[1], classes)
    function, seen = _compiled(signature)
    for tensor, dimension in ((key, 2), (arguments[2], 2), (arguments[4], 3)):
        torch._dynamo.mark_dynamic(tensor, dimension)  # only the cache's length differs between plans
    with warnings.catch_warnings(), torch.compiler.set_stance("fail_on_recompile" if seen else "default"):
        # Uncompiled flex materialises the score matrix.
        warnings.filterwarnings("error", message=".*unfused implementation.*")
        try:
            out: Tensor = function(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's errors have no common class
            raise AttentionUnavailable(
                f"FlexAttention did not compile on {query.device.type}: {type(error).__name__}.",
                "Use --attn auto, or install a C++ compiler.",
            ) from error
    seen.append(signature)
    return out


@functools.cache
def _compiled(signature: tuple[Any, ...]) -> tuple[Callable[..., Tensor], list[Any]]:
    """Return the compiled function of a signature, and a list that is empty until its first run."""
    return torch.compile(functools.partial(_flex, signature), dynamic=False, fullgraph=True), []


def _flex(
    signature: tuple[Any, ...], query: Tensor, key: Tensor, value: Tensor,
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
