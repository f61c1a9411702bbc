"""Who computes the next token: step by step on any device, or by replaying a captured CUDA graph.

Both leave the token on the device. Knows caches and steps; knows nothing of text.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from vidqa.engine.kv_cache import KVCache
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.static_step import Layer, Places, next_logits, run_layer
from vidqa.models.attention import Kernel
from vidqa.models.qwen2_vl import Qwen2VL

_WARM_UPS = 2  # steps before the capture: libraries allocate their workspaces in the first ones


class Writer(Protocol):
    """Chooses tokens one after the other. `ahead`: a step can be queued before its input was read."""

    ahead: bool

    @property
    def dtype(self) -> str:
        """The precision that is computed in."""

    def first(self, logits: Tensor) -> Tensor:
        """The token (1,) that the prefill's logits (vocabulary,) choose."""

    def next(self, token: Tensor) -> Tensor:
        """Append a token (1,) to the cache; the one after it."""

    def take_back(self) -> None:
        """Forget the last token that was appended."""


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
        return _choose(self._sampler, logits)

    def next(self, token: Tensor) -> Tensor:
        """Append a token to the cache; the one after it."""
        positions = text_positions(self._position, 1)
        self._position += 1
        hidden = self._model.run(self._model.embed(token), positions, self._cache, self._kernel)
        return _choose(self._sampler, self._model.score(hidden))

    def take_back(self) -> None:
        """Forget the last token that was appended."""
        self._position -= 1
        self._cache.truncate(self._cache.length - 1)


class CapturedWriter:
    """One decode step, captured once and replayed for every token: thousands of launches become one.

    The token, the place in the cache and the position are tensors that the graph reads and
    writes, so it serves all tokens and lengths of this cache. Sampling is part of it. On other
    devices the step is run instead of replayed.
    """

    ahead = True

    def __init__(self, model: Qwen2VL, cache: KVCache, position: int, sampler: Sampler, layer_step: Layer) -> None:
        self._model, self._cache, self._sampler, self._layer_step = model, cache, sampler, layer_step
        device = model.device
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._uniform = torch.zeros(1, device=device)
        self._places = Places.of([cache.length], [position], device)
        self._chosen = self._token
        self._replay: Callable[[], None] | None = None

    @property
    def dtype(self) -> str:
        """The precision that is computed in."""
        return _name(self._model.dtype)

    def first(self, logits: Tensor) -> Tensor:
        """The token that the prefill's logits choose."""
        return _choose(self._sampler, logits)

    def next(self, token: Tensor) -> Tensor:
        """Append a token to the cache; the one after it, in a buffer that the next step overwrites."""
        if self._replay is None:
            self._replay = self._captured() if token.is_cuda else self._step
        self._token.copy_(token)
        if self._sampler.temperature:
            self._uniform.copy_(self._sampler.draw(1), non_blocking=True)
        self._replay()
        self._cache.advance(1)
        return self._chosen

    def take_back(self) -> None:
        """Forget the last token that was appended."""
        self._places.advance(-1)
        self._cache.truncate(self._cache.length - 1)

    @torch.no_grad()
    def _captured(self) -> Callable[[], None]:
        """Run the step a few times on a side stream, then once more to record it."""
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
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
        token = self._token.clamp(min=0)  # no token stands for overflow: it is told when it is read
        hidden = self._model.embed(token)
        logits = next_logits(self._model, hidden, self._cache.storage, self._places, self._layer_step)
        self._chosen = self._sampler.choose(logits, self._uniform)


def make_writer(
    model: Qwen2VL, cache: KVCache, kernel: Kernel, position: int, sampler: Sampler, layer_step: Layer = run_layer
) -> Writer:
    """The captured step on CUDA where cache and embedding table lie there, else the eager one."""
    table: Tensor = model.model.get_input_embeddings().weight
    if cache.storage.store.is_cuda and table.is_cuda:
        return CapturedWriter(model, cache, position, sampler, layer_step)
    return EagerWriter(model, cache, kernel, position, sampler)


@torch.no_grad()
def _choose(sampler: Sampler, logits: Tensor) -> Tensor:
    uniform = sampler.draw(1).to(logits.device) if sampler.temperature else logits[:1]
    return sampler.choose(logits[None], uniform)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
