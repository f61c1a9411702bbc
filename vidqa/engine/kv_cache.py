"""The KV cache: keys and values of several sequences in one allocation, made once.

They are stored in the compute precision, or as int8 with a scale per token and head; on the device, or on the host.
Attention reads quantized or host layers through the scratch of one layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidqa.devices.torch_device import register
from vidqa.engine.no_grad import no_grad_scope
from vidqa.errors import DoesNotFit
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import whole_blocks

_SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number: a row of zeros stays zeros


def to_int8(states: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (..., d) to int8 from -127 to 127; return it and its float16 scales (...)."""
    scale = (states.abs().amax(dim=-1).float() / 127).clamp_(min=_SMALLEST_SCALE).to(torch.float16)
    return (states / scale[..., None]).round_().clamp_(-127, 127), scale


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Storage:
    """The allocations of the caches of B sequences of equal capacity; compared by identity.

    store: (layers, 2, B, kv_heads, capacity, d); scales: the same without d, for int8, always on the device; scratch:
    (2, kv_heads, capacity, d) for one layer of one sequence, if the store is quantized or on the host; arrival: the
    same in int8, for an int8 store on the host.
    """

    store: Tensor
    scales: Tensor | None
    scratch: Tensor | None
    arrival: Tensor | None

    @classmethod
    @no_grad_scope()
    def allocate(
        cls,
        spec: ModelSpec,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        sequences: int = 1,
        quantized: bool = False,
        on_host: bool = False,
    ) -> "Storage":
        """Allocate `tokens` for each sequence, rounded up to whole blocks."""
        place = torch.device("cpu") if on_host else device
        shape = (spec.layers, 2, sequences, spec.kv_heads, whole_blocks(tokens), spec.head_dim)
        layer = (2, *shape[3:])
        # Zeroed once: a kernel that reads masked positions multiplies them by 0, and 0 · NaN is NaN.
        store = _zeros(shape, torch.int8 if quantized else dtype, place)
        if on_host:
            register(store, device)
        return cls(
            store,
            _zeros(shape[:-1], torch.float16, device) if quantized else None,
            _zeros(layer, dtype, device) if quantized or on_host else None,
            _zeros(layer, torch.int8, device) if quantized and place != device else None,
        )

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return self.store.shape[2]

    @property
    def capacity(self) -> int:
        """Tokens that each sequence can hold."""
        return self.store.shape[4]

    @property
    def bytes(self) -> int:
        """Bytes of all allocations."""
        return sum(part.nbytes for part in self._parts)

    @property
    def device_bytes(self) -> int:
        """Bytes of those on the model's device: all, but for a store on the host."""
        parts = [part for part in self._parts if self.scratch is None or part.device == self.scratch.device]
        return sum(part.nbytes for part in parts)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        parts = (self.store, self.scales, self.scratch, self.arrival)
        return tuple(part for part in parts if part is not None)


class KVCache:
    """The cache of one sequence; `length` tokens of it are filled."""

    def __init__(self, storage: Storage, sequence: int = 0) -> None:
        self.storage, self.capacity = storage, storage.capacity
        self.length = 0
        self._store = storage.store[:, :, sequence]
        self._scales = None if storage.scales is None else storage.scales[:, :, sequence]

    @property
    def bytes(self) -> int:
        """Bytes of the whole storage."""
        return self.storage.bytes

    def write(self, layer: int, keys: Tensor, values: Tensor) -> Tensor:
        """Write (n, kv_heads, d) after the cached tokens; return the layer's (2, kv_heads, capacity, d).

        Raises DoesNotFit beyond the capacity.
        """
        end = self.length + keys.shape[0]
        if end > self.capacity:
            raise DoesNotFit(
                f"The KV cache holds {self.capacity} tokens and {end} are needed.", "Ask for fewer frames or tokens."
            )
        fresh = slice(self.length, end)
        for part, states in enumerate((keys, values)):
            self._put(layer, part, fresh, states.transpose(0, 1))
        return self._store[layer] if self.storage.scratch is None else self._load_scratch(layer, end)

    def _put(self, layer: int, part: int, fresh: slice, states: Tensor) -> None:
        """Store (kv_heads, n, d) of keys (part 0) or values (part 1)."""
        if self._scales is not None:
            states, self._scales[layer, part, :, fresh] = to_int8(states)
        _copy_heads(self._store[layer, part, :, fresh], states)

    def _load_scratch(self, layer: int, end: int) -> Tensor:
        """Copy a layer's first `end` tokens in the compute precision into the scratch."""
        scratch, arrival = self.storage.scratch, self.storage.arrival
        assert scratch is not None
        filled, stored = scratch[:, :, :end], self._store[layer, :, :, :end]
        if arrival is not None:
            _copy_heads(arrival[:, :, :end], stored)
            stored = arrival[:, :, :end]
        _copy_heads(filled, stored)
        if self._scales is not None:
            filled.mul_(self._scales[layer, :, :, :end, None])
        return scratch

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as cached; call it after all layers have written them."""
        self.length += tokens

    def copy_from(self, other: "KVCache", tokens: int) -> None:
        """Copy the first `tokens` of another sequence in the same storage."""
        self._store[:, :, :, :tokens] = other._store[:, :, :, :tokens]
        if self._scales is not None and other._scales is not None:
            self._scales[:, :, :, :tokens] = other._scales[:, :, :, :tokens]
        self.length = tokens

    def truncate(self, length: int) -> None:
        """Drop the tokens from position `length` on."""
        self.length = min(self.length, length)


def make_cache(
    spec: ModelSpec,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantized: bool = False,
    on_host: bool = False,
) -> KVCache:
    """Return an empty cache for one sequence of `tokens`."""
    return KVCache(Storage.allocate(spec, tokens, dtype, device, quantized=quantized, on_host=on_host))


def _copy_heads(target: Tensor, source: Tensor) -> None:
    """Copy (..., tokens, d); between host and device head by head, as each is contiguous and needs no buffer."""
    if target.device == source.device:
        target.copy_(source)
        return
    source = source.to(target.dtype)
    if target.device.type == "cpu":  # new ones are a view of the layer's projections
        source = source.contiguous()
    for one, other in zip(target.flatten(0, -3), source.flatten(0, -3), strict=True):
        one.copy_(other, non_blocking=True)  # page-locked, and read again on the same stream


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).zero_()
