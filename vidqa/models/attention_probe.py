"""The first layers of a model over one prompt, and how the last tokens attend to it in the layer that follows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidqa.devices.torch_device import to_device
from vidqa.models.attention.selector import Kernel
from vidqa.models.block_sizes import PROBE_ROWS
from vidqa.models.decoder_layers import project, run_layers
from vidqa.models.vlm import SequenceChunk, VisionLanguageModel


@dataclass(slots=True, eq=False)
class ProbedStates:
    """What the reference layer computed of a prompt: keys (capacity, kv_heads, d), and the last queries (n, heads, d).

    `most_queries` is the number of last tokens whose queries are kept.
    """

    keys: Tensor
    most_queries: int
    filled: int = 0
    queries: Tensor | None = None

    def begin(self, queries: int) -> None:
        """Forget the last prompt; keep so many queries of the next one."""
        self.filled, self.queries, self.most_queries = 0, None, queries

    def add(self, query: Tensor, key: Tensor) -> None:
        """Add the states of the next tokens."""
        end = self.filled + len(key)
        self.keys[self.filled : end] = key
        self.filled = end
        before = () if self.queries is None else (self.queries,)
        self.queries = torch.cat((*before, query[-self.most_queries :]))[-self.most_queries :].clone()

    def attention(self) -> Tensor:
        """Return the attention weights (filled,) in float32 of the kept queries, mean over heads and queries.

        Each token attends to those before it and to itself. A few queries at a time are computed.
        """
        assert self.queries is not None
        keys, total = self.keys[: self.filled], torch.zeros(self.filled, device=self.keys.device)
        count, heads, width = self.queries.shape
        kv_heads, places = keys.shape[1], torch.arange(self.filled, device=keys.device)
        for start in range(0, count, PROBE_ROWS):
            rows = self.queries[start : start + PROBE_ROWS].view(-1, kv_heads, heads // kv_heads, width)
            scores = torch.einsum("nkgd,lkd->nkgl", rows, keys).float().mul_(width**-0.5)
            own = places[self.filled - count + start :][: len(rows)]
            scores.masked_fill_(places > own[:, None, None, None], float("-inf"))
            total += scores.softmax(-1).mean((1, 2)).sum(0)
        return total / count


@dataclass(frozen=True)
class AttentionProbe(VisionLanguageModel):
    """A model of which only the layers before `layer` run; keys and queries of that layer go into `states`.

    Caches have that many layers. The hidden states that `run` returns mean nothing.
    """

    layer: int = 0
    states: ProbedStates = field(kw_only=True)

    @classmethod
    def of(cls, model: VisionLanguageModel, layer: int, states: ProbedStates) -> "AttentionProbe":
        """Return the probe of a loaded model at a layer."""
        return cls(
            model.model, model.spec, model.device, model.dtype, model.weights_bytes, model.check_cancel,
            layer=layer, states=states,
        )  # fmt: skip

    def run(self, parts: Sequence[SequenceChunk], kernel: Kernel) -> Tensor:
        """Run new tokens of one sequence through the first layers; return (1, hidden) of the last."""
        (part,) = parts
        layers = self.language_model.layers
        embedded, *added = torch.split(part.rows, self.spec.hidden, dim=1)
        rotary = self.rotary.of_positions(to_device(part.positions, self.device))

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.check_cancel()
            return self._attend(layer, kernel, part.cache, query, key, value)

        hidden = run_layers(layers[: self.layer], embedded, rotary, attend, added)
        kernel.end()
        query, key, _ = project(layers[self.layer], hidden, rotary)
        self.states.add(query, key)
        part.cache.advance(len(part.rows))
        return hidden[-1:]
