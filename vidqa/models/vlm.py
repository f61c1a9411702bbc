"""A loaded vision-language model: embeds text, runs tokens through the decoder, computes logits.

Runs transformers' unpatched modules in vidqa's own loop over the layers (`decoder_layers`). `FamilyRuntime` has what
differs between families.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from vidqa.devices.torch_device import to_device
from vidqa.models.attention.selector import Kernel
from vidqa.models.decoder_layers import Rotary, run_layers
from vidqa.models.family import FamilyRuntime, family_of
from vidqa.models.fused_decoder import FusedDecoder
from vidqa.models.spec import ModelSpec
from vidqa.models.training_domain import TrainingDomain


class TokenCache(Protocol):
    """The KV cache as the forward pass uses it."""

    length: int
    capacity: int

    def write(self, layer: int, keys: Tensor, values: Tensor, /) -> Tensor:
        """Append (rows, kv_heads, d) to a layer; return the layer's (2, kv_heads, capacity, d)."""

    def advance(self, tokens: int, /) -> None:
        """Count tokens as cached after all layers have written them."""


@dataclass(frozen=True, slots=True)
class SequenceChunk:
    """New tokens of a sequence: rows (n, embedding_width), M-RoPE positions (3, n), and the cache to append to."""

    rows: Tensor
    positions: Tensor
    cache: TokenCache


def _concatenate(tensors: list[Tensor], dimension: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dimension)


@dataclass(frozen=True)
class VisionLanguageModel:
    """A loaded model.

    `check_cancel` is called before every layer; what it raises ends the forward pass before any cache has grown.
    `fused` has the same layers for a decode step in few kernels, if the device runs them. `domain` has the videos that
    the model can know, if it was trained on drawn ones alone.
    """

    model: Any
    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    weights_bytes: int
    check_cancel: Callable[[], None] = lambda: None
    fused: FusedDecoder | None = None
    domain: TrainingDomain | None = None

    @cached_property
    def family(self) -> FamilyRuntime:
        """The implementation of the model's family."""
        return family_of(self.spec).load_runtime()

    @cached_property
    def rotary(self) -> Rotary:
        """The language model's rotary embedding."""
        return self.family.rotary(self.language_model)

    @cached_property
    def language_model(self) -> Any:
        """The decoder: has `layers`, `norm` and `embed_tokens`."""
        return attrgetter(self.family.LANGUAGE_MODEL)(self.model)

    def with_cancel_check(self, check_cancel: Callable[[], None]) -> "VisionLanguageModel":
        """Return the same model with another `check_cancel`."""
        return self._replace(check_cancel=check_cancel)

    def with_fused(self, fused: FusedDecoder) -> "VisionLanguageModel":
        """Return the same model with fused layers for its decode steps."""
        return self._replace(fused=fused)

    def _replace(self, **fields: Any) -> "VisionLanguageModel":
        other = replace(self, **fields)
        vars(other).update(rotary=self.rotary, language_model=self.language_model)  # cached once
        return other

    @property
    def visual(self) -> nn.Module:
        """The vision tower."""
        tower: nn.Module = attrgetter(self.family.VISION_TOWER)(self.model)
        return tower

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (n,): (n, hidden). The lookup runs on the table's device."""
        table = self.model.get_input_embeddings().weight
        return embedding(to_device(ids, table.device), table).to(self.device)

    def embed_prompt(self, ids: Tensor) -> Tensor:
        """Embed token ids (n,) as rows of a prompt (n, embedding_width), with zeros for the `deepstack` layers."""
        rows = self.embed(ids)
        return pad(rows, (0, self.spec.embedding_width - self.spec.hidden)) if self.spec.deepstack else rows

    def run(self, parts: Sequence[SequenceChunk], kernel: Kernel) -> Tensor:
        """Run new tokens of one or several sequences through the decoder, and append them to their caches.

        All rows go through a layer together; every part attends to its own cache alone. Return the normalised hidden
        states of each part's last token: (parts, hidden).
        """
        decoder = self.language_model
        ends = list(accumulate(len(part.rows) for part in parts))
        spans = [slice(end - len(part.rows), end) for part, end in zip(parts, ends, strict=True)]
        embedded, *added = torch.split(_concatenate([part.rows for part in parts]), self.spec.hidden, dim=1)
        positions = _concatenate([part.positions for part in parts], 1)

        def attend(layer: int, *states: Tensor) -> Tensor:
            self.check_cancel()
            pairs = zip(parts, spans, strict=True)
            return _concatenate(
                [self._attend(layer, kernel, part.cache, *(one[span] for one in states)) for part, span in pairs]
            )

        rotary = self.rotary.of_positions(to_device(positions, self.device))
        hidden = run_layers(decoder.layers, embedded, rotary, attend, added)
        kernel.end()
        for part in parts:
            part.cache.advance(len(part.rows))
        last: Tensor = decoder.norm(torch.stack([hidden[end - 1] for end in ends]))
        return last

    def _attend(
        self, layer: int, kernel: Kernel, cache: TokenCache, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Append new tokens to their cache and attend: (n, heads, d) and (n, kv_heads, d) to (n, heads·d)."""
        kernel.begin(cache.length, len(query), cache.capacity, self.device)
        keys, values = cache.write(layer, key, value).unsqueeze(1).unbind(0)
        mixed = kernel.attend(query.transpose(0, 1)[None], keys, values, self.spec.head_dim**-0.5)
        return mixed[0].transpose(0, 1).flatten(1)

    def score(self, hidden: Tensor) -> Tensor:
        """Return float32 logits (n, vocabulary) of hidden states (n, hidden)."""
        logits: Tensor = self.model.lm_head(hidden)
        return logits.float()
