"""Decode steps: eager on any device, or a step of constant shapes that is captured as a CUDA graph and replayed.

Both leave the chosen token on the device. At most one graph is live per process and device: a new capture releases the
one before, which is captured again when its KV cache is used again. So the plan counts one graph's memory, and no graph
outlives a workspace that it shares.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vidqa.engine.kv_cache import KVCache, Storage
from vidqa.engine.prompt import text_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.static_decode_step import DecodeState, next_logits
from vidqa.models.attention.selector import Kernel
from vidqa.models.block_sizes import KV_BLOCK_TOKENS
from vidqa.models.vlm import SequenceChunk, VisionLanguageModel

_GRAPH_BLOCK_TOKENS = (
    512  # a captured plain step reads whole blocks of the cache; one block more, and it is captured anew
)
_CAPTURED_LINEAR = ("Linear", "Linear4bit", "ScaledLinear")  # known to run without synchronizing with the host
_WARM_UPS = 2  # steps before the capture: libraries and Triton initialize in the first ones

Step = Callable[[], None]
Snapshot = Callable[[], Step]  # stores what a step changes; returns a function that restores it
Capture = Callable[[Step, Snapshot], Step]  # runs a step a few times, undoing each, and records it; returns its replay

_lock = threading.RLock()  # sessions may run in several threads


class CudaGraphStep:
    """One storage's captured step, while it is the live one of its device."""

    def __init__(self, device: torch.device, capture: Capture) -> None:
        self._device, self._capture = device, capture
        self._replay: Step | None = None
        self._key: tuple[object, ...] = ()

    def run(self, key: tuple[object, ...], step: Step, snapshot: Snapshot) -> None:
        """Replay the step; capture it first if it is not captured for `key`. `snapshot` undoes the warm-ups."""
        with _lock:
            if self._replay is None or self._key != key:
                if (live := _live.get(self._device)) is not None:
                    live.release()
                self._replay, self._key = self._capture(step, snapshot), key
                _live[self._device] = self
            self._replay()

    def release(self) -> None:
        """Free the graph and its memory once the device has finished with it."""
        with _lock:
            if self._replay is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._replay = None


_live: "weakref.WeakValueDictionary[torch.device, CudaGraphStep]" = weakref.WeakValueDictionary()


def capture_on(device: torch.device) -> Capture | None:
    """Return how a step is captured on a device; None if steps are run instead of replayed."""
    return functools.partial(_capture, device) if device.type == "cuda" else None


@torch.no_grad()
def _capture(device: torch.device, step: Step, snapshot: Snapshot) -> Step:
    with torch.cuda.device(device):  # torch.cuda.graph waits for the current device
        stream, undo = _side_stream(device), snapshot()
        _release_cached(device)  # the warm-ups' memory takes the place of the prefill's, not one beside it
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                step()
                undo()
        torch.cuda.current_stream(device).wait_stream(stream)
        # cuBLAS keeps a workspace for every stream it has seen. Cleared before, the warm-up's does not stay beside the
        # graph's; cleared after, the graph's belongs to the graph's memory pool alone, and ends with it.
        _release_cached(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
        torch._C._cuda_clearCublasWorkspaces()
    return graph.replay


def _release_cached(device: torch.device) -> None:
    """Free workspaces of cuBLAS and unused memory of the allocator."""
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """Return one stream for all captures: cuBLAS keeps a handle and a workspace for every stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class DecodeRunner(Protocol):
    """Chooses tokens (B,), one for each sequence. `pipelined`: a step can be queued before its input was read."""

    pipelined: bool
    dtype: str  # the name of the compute precision

    def first(self, logits: Tensor) -> Tensor:
        """Return tokens (B,) chosen from the prefill's logits (B, vocabulary)."""

    def next(self, tokens: Tensor, /) -> Tensor:
        """Append tokens (B,) to their caches; return the ones that follow."""

    def finish(self, sequence: int, *, rollback: bool) -> None:
        """End a sequence; `rollback` removes its last token, whose step was queued before the stop was read."""


class EagerDecoder:
    """Runs the model's layers over the filled part of the cache, with the prefill's attention kernel."""

    pipelined = False

    def __init__(
        self, model: VisionLanguageModel, cache: KVCache, kernel: Kernel, position: int, sampler: Sampler
    ) -> None:
        self._model, self._cache, self._kernel, self._sampler = model, cache, kernel, sampler
        self._position, self.dtype = position, str(model.dtype).removeprefix("torch.")

    def first(self, logits: Tensor) -> Tensor:
        """Return the token (1,) chosen from the prefill's logits."""
        return _choose((self._sampler,), logits)

    def next(self, token: Tensor) -> Tensor:
        """Append a token to the cache; return the one that follows."""
        part = SequenceChunk(self._model.embed(token), text_positions(self._position, 1), self._cache)
        self._position += 1
        return _choose((self._sampler,), self._model.score(self._model.run([part], self._kernel)))

    def finish(self, sequence: int, *, rollback: bool) -> None:
        """Do nothing: no step is queued early."""


class CudaGraphDecoder:
    """One decode step for B sequences, captured once and replayed: thousands of launches become one.

    Tokens, lengths and positions are tensors that the graph reads and writes, so it serves all tokens of these caches
    and of the questions that reuse them. Sampling is part of the graph: `samplers` differ in their seeds alone. Without
    a `capture` the step is run instead of replayed.
    """

    pipelined = True

    def __init__(
        self,
        model: VisionLanguageModel,
        caches: Sequence[KVCache],
        positions: Sequence[int],
        samplers: Sequence[Sampler],
        capture: Capture | None,
    ) -> None:
        self._model, self._caches, self._samplers = model, caches, samplers
        self._storage = caches[0].storage
        self._slot = _slot_of(self._storage, model.device, capture)
        self._slot.decode_state.set([cache.length for cache in caches], positions)
        self._finished, self.dtype = set[int](), str(model.dtype).removeprefix("torch.")

    def first(self, logits: Tensor) -> Tensor:
        """Return the tokens (B,) chosen from the prefill's logits."""
        return _choose(self._samplers, logits)

    def next(self, tokens: Tensor) -> Tensor:
        """Append tokens to their caches; return the ones that follow, in a buffer that the next step overwrites."""
        slot, sampler = self._slot, self._samplers[0]
        if tokens is not slot.tokens:
            slot.tokens.copy_(tokens)
        if sampler.temperature:
            slot.uniform.copy_(_draws(self._samplers), non_blocking=True)
        visible = self._visible()
        step = functools.partial(_step, self._model, self._storage, slot, sampler, visible)
        if slot.graph is None:
            step()
        else:
            key = (visible, sampler.temperature, sampler.top_p)
            slot.graph.run(key, step, functools.partial(_snapshot, slot))
        for sequence, cache in enumerate(self._caches):
            if sequence not in self._finished:
                cache.advance(1)
        return slot.tokens

    def _visible(self) -> int:
        """Return how many tokens of the storage a plain step reads: the longest sequence and one, in whole blocks."""
        if self._model.fused is not None:
            return self._storage.capacity
        longest = max(cache.length for cache in self._caches) + 1
        block = KV_BLOCK_TOKENS if self._slot.graph is None else _GRAPH_BLOCK_TOKENS
        return min(-(-longest // block) * block, self._storage.capacity)

    def finish(self, sequence: int, *, rollback: bool) -> None:
        """End a sequence; `rollback` removes its last token."""
        self._finished.add(sequence)
        self._slot.decode_state.active[sequence] = 0
        if rollback:
            cache = self._caches[sequence]
            cache.truncate(cache.length - 1)
            self._slot.decode_state.lengths[sequence] -= 1


@dataclass(frozen=True, slots=True)
class _Slot:
    """A storage's decode step: the tensors (B,) that it reads and writes, and its graph if it is captured."""

    tokens: Tensor
    uniform: Tensor
    decode_state: DecodeState
    graph: CudaGraphStep | None


# A storage keeps its step for the questions that reuse it; both are freed together.
_SLOTS: "weakref.WeakKeyDictionary[Storage, _Slot]" = weakref.WeakKeyDictionary()


def _slot_of(storage: Storage, device: torch.device, capture: Capture | None) -> _Slot:
    slot = _SLOTS.get(storage)
    if slot is None:
        count = storage.sequences
        slot = _SLOTS[storage] = _Slot(
            torch.zeros(count, dtype=torch.int64, device=device),
            torch.zeros(count, device=device),
            DecodeState.of([0] * count, [0] * count, device),
            CudaGraphStep(device, capture) if capture else None,
        )
    return slot


def _step(model: VisionLanguageModel, storage: Storage, slot: _Slot, sampler: Sampler, visible: int) -> None:
    """Replace the slot's tokens by the ones that follow."""
    tokens = slot.tokens.clamp(min=0)  # NOT_A_NUMBER raises an error when it is read, not here
    logits = next_logits(model, model.embed(tokens), storage, slot.decode_state, visible)
    slot.tokens.copy_(sampler.choose(logits, slot.uniform))


def _snapshot(slot: _Slot) -> Step:
    """Return a function that undoes a step: its tokens and lengths; the next step overwrites what it cached."""
    tokens = slot.tokens.clone()

    def undo() -> None:
        slot.decode_state.advance(-1)
        slot.tokens.copy_(tokens)

    return undo


def why_not_captured(model: VisionLanguageModel) -> str:
    """Return what in a step waits for the host, which a graph cannot; "" if nothing does."""
    table: Tensor = model.model.get_input_embeddings().weight
    if table.device.type != model.device.type:
        return "the embedding table lies on the host"
    kinds = {type(module).__name__ for module in model.language_model.layers[0].modules()}
    if "Linear8bitLt" in kinds:  # bitsandbytes' int8_vectorwise_quant
        return "int8 layers ask the host about outliers"
    unknown = sorted(kind for kind in kinds if "Linear" in kind and kind not in _CAPTURED_LINEAR)
    return f"{unknown[0]} layers may ask the host" if unknown else ""


def make_decode_runner(
    model: VisionLanguageModel, cache: KVCache, kernel: Kernel, position: int, sampler: Sampler
) -> DecodeRunner:
    """Return the captured step if the device has graphs and nothing in the step needs the host, else the eager one."""
    capture, on_device = capture_on(model.device), cache.storage.store.device.type == model.device.type
    if capture and on_device and not why_not_captured(model):
        return CudaGraphDecoder(model, [cache], [position], [sampler], capture)
    return EagerDecoder(model, cache, kernel, position, sampler)


@torch.no_grad()
def _choose(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    uniform = _draws(samplers).to(logits.device) if samplers[0].temperature else logits[:, 0]
    return samplers[0].choose(logits, uniform)


def _draws(samplers: Sequence[Sampler]) -> Tensor:
    """Return a uniform number for each sequence, from its own generator."""
    return torch.cat([sampler.draw(1) for sampler in samplers])
