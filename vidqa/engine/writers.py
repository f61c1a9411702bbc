"""Who computes the next token: step by step on any device, or by replaying a captured CUDA graph.

Both leave the token on the device. Knows caches and steps; knows nothing of text.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vidqa.engine.kv_cache import KVCache
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.static_step import Layer, Places, next_logits, run_layer
from vidqa.models.attention import Kernel
from vidqa.models.qwen2_vl import Part, Qwen2VL

_WARM_UPS = 2  # steps before the capture: libraries allocate their workspaces in the first ones


class Writer(Protocol):
    """Chooses tokens (B,), one for each sequence. `ahead`: a step can be queued before its input was read."""

    ahead: bool

    @property
    def dtype(self) -> str:
        """The precision that is computed in."""

    def first(self, logits: Tensor) -> Tensor:
        """The tokens (B,) that the prefill's logits (B, vocabulary) choose."""

    def next(self, token: Tensor) -> Tensor:
        """Append tokens (B,) to their caches; the ones after them."""

    def end(self, sequence: int, *, take_back: bool) -> None:
        """A sequence goes on no more; `take_back` forgets its last token, which was queued ahead."""


class EagerWriter:
    """Runs the model's layers over the filled part of the cache, with the prefill's own kernel."""

    ahead = False

    def __init__(self, model: Qwen2VL, cache: KVCache, kernel: Kernel, position: int, sampler: Sampler) -> None:
        self._model, self._cache, self._kernel, self._sampler = model, cache, kernel, sampler
        self._position = position

    @property
    def dtype(self) -> str:
        """The precision that is computed in."""
        return _name(self._model.dtype)

    def first(self, logits: Tensor) -> Tensor:
        """The token that the prefill's logits choose."""
        return _choose((self._sampler,), logits)

    def next(self, token: Tensor) -> Tensor:
        """Append a token to the cache; the one after it."""
        part = Part(self._model.embed(token), text_positions(self._position, 1), self._cache)
        self._position += 1
        return _choose((self._sampler,), self._model.score(self._model.run([part], self._kernel)))

    def end(self, sequence: int, *, take_back: bool) -> None:
        """Nothing was queued ahead."""


class CapturedWriter:
    """One decode step for B sequences, captured once and replayed: thousands of launches become one.

    Tokens, places in the caches and positions are tensors that the graph reads and writes, so it
    serves all tokens and lengths of these caches. Sampling is part of it: `samplers` differ in their
    seeds alone. On other devices the step is run instead of replayed.
    """

    ahead = True

    def __init__(
        self,
        model: Qwen2VL,
        caches: Sequence[KVCache],
        positions: Sequence[int],
        samplers: Sequence[Sampler],
        layer_step: Layer,
    ) -> None:
        self._model, self._caches, self._samplers, self._layer_step = model, caches, samplers, layer_step
        device = model.device
        self._tokens = torch.zeros(len(caches), dtype=torch.int64, device=device)
        self._uniform = torch.zeros(len(caches), device=device)
        self._places = Places.of([cache.length for cache in caches], positions, device)
        self._chosen = self._tokens
        self._ended: set[int] = set()
        self._replay: Callable[[], None] | None = None

    @property
    def dtype(self) -> str:
        """The precision that is computed in."""
        return _name(self._model.dtype)

    def first(self, logits: Tensor) -> Tensor:
        """The tokens that the prefill's logits choose."""
        return _choose(self._samplers, logits)

    def next(self, tokens: Tensor) -> Tensor:
        """Append tokens to their caches; the ones after them, in a buffer that the next step overwrites."""
        if self._replay is None and tokens.is_cuda:
            self._replay = self._captured()
        self._tokens.copy_(tokens)
        if self._samplers[0].temperature:
            self._uniform.copy_(_draws(self._samplers), non_blocking=True)
        (self._replay or self._step)()  # a step of its own, kept, would keep the caches after the last token
        for sequence, cache in enumerate(self._caches):
            if sequence not in self._ended:
                cache.advance(1)
        return self._chosen

    def end(self, sequence: int, *, take_back: bool) -> None:
        """A sequence goes on no more; `take_back` forgets its last token, which was queued ahead."""
        self._ended.add(sequence)
        self._places.going_on[sequence] = 0
        if take_back:
            cache = self._caches[sequence]
            cache.truncate(cache.length - 1)
            self._places.lengths[sequence] -= 1

    @torch.no_grad()
    def _captured(self) -> Callable[[], None]:
        """Run the step a few times on a side stream, then once more to record it."""
        stream = _side_stream(self._model.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._step()
                self._places.advance(-1)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _step(self) -> None:
        tokens = self._tokens.clamp(min=0)  # no token stands for overflow: it is told when it is read
        hidden = self._model.embed(tokens)
        logits = next_logits(self._model, hidden, self._caches[0].storage, self._places, self._layer_step)
        self._chosen = self._samplers[0].choose(logits, self._uniform)


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """One for all captures: cuBLAS keeps a workspace for every stream that it has ever seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def why_not_captured(model: Qwen2VL) -> str:
    """What in a step would wait for the host, which a graph cannot; nothing where nothing does."""
    table: Tensor = model.model.get_input_embeddings().weight
    if table.device.type != model.device.type:
        return "the embedding table lies on the host"
    # bitsandbytes' int8_vectorwise_quant asks the host whether there are outliers.
    kinds = {type(module).__name__ for module in model.model.model.language_model.layers[0].modules()}
    return "int8 layers ask the host about outliers" if "Linear8bitLt" in kinds else ""


def make_writer(
    model: Qwen2VL, cache: KVCache, kernel: Kernel, position: int, sampler: Sampler, layer_step: Layer = run_layer
) -> Writer:
    """The captured step on CUDA where nothing in it needs the host, else the eager one."""
    if cache.storage.store.is_cuda and not why_not_captured(model):
        return CapturedWriter(model, [cache], [position], [sampler], layer_step)
    return EagerWriter(model, cache, kernel, position, sampler)


@torch.no_grad()
def _choose(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    uniform = _draws(samplers).to(logits.device) if samplers[0].temperature else logits[:, 0]
    return samplers[0].choose(logits, uniform)


def _draws(samplers: Sequence[Sampler]) -> Tensor:
    """A uniform number for each sequence, from its own generator."""
    return torch.cat([sampler.draw(1) for sampler in samplers])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
