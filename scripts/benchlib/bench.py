"""The device under test: its own limits, the sizes that sections measure at, and one model at a time.

Every ratio in the results is to the copy bandwidth and matrix rate that are measured here, in the same process.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median

import torch

from benchlib.models import FULL, build, load, reduced
from benchlib.runs import seconds_of
from vidqa.models.loader import Loaded, release_cached_memory
from vidqa.models.specs import ModelSpec


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each section does. Sizes of frames are (height, width); the rest counts tokens, frames or slices."""

    copied_bytes: int = 2**31
    matrix: int = 8192
    decode_context: int = 8192
    decode_tokens: int = 192
    plain_tokens: int = 48
    prefill_tokens: int = 16384
    prefill_chunks: tuple[int, ...] = (512, 1024, 2048)
    vision: tuple[tuple[int, tuple[int, int]], ...] = ((64, (560, 1008)), (256, (280, 280)))
    frames: int = 64
    frame_size: tuple[int, int] = (560, 1008)
    follow_up_frames: int = 46  # 23 slices of 720 tokens
    flat_frames: tuple[int, int] = (8, 768)
    flat_size: tuple[int, int] = (252, 252)  # 81 tokens a slice: 31,104 at most
    exact_frames: int = 8
    exact_tokens: int = 64
    repeats: int = 5


TINY = Sizes(
    copied_bytes=2**16, matrix=64, decode_context=100, decode_tokens=8, plain_tokens=4, prefill_tokens=200,
    prefill_chunks=(64, 128), vision=((3, (56, 84)), (4, (56, 56))), frames=4, frame_size=(56, 84), follow_up_frames=16,
    flat_frames=(8, 32), flat_size=(112, 112), exact_frames=4, exact_tokens=8, repeats=1,
)  # fmt: skip


@dataclass(slots=True)
class Limits:
    """What the device itself reaches."""

    bytes_per_second: list[float] = field(default_factory=list)
    flops_per_second: list[float] = field(default_factory=list)

    @property
    def bandwidth(self) -> float:
        """Bytes a second, read and written, of a copy."""
        return median(self.bytes_per_second)

    @property
    def matrix_rate(self) -> float:
        """FLOP/s of a large product."""
        return median(self.flops_per_second)


class Bench:
    """What the sections share: in bf16 on a GPU, in float32 with small models where `tiny`."""

    def __init__(self, device: torch.device, *, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.sizes = TINY if tiny else Sizes()
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._name = ""
        self._loaded: Loaded | None = None

    def spec(self, name: str) -> ModelSpec:
        """The released `2b` or `7b`, or a small one with its head layout."""
        if not self.tiny:
            return FULL[name]
        return replace(reduced(name, 1, FULL[name].heads * 16), vocabulary=2048)

    def model(self, name: str) -> Loaded:
        """The random model of that size; the one before it leaves the device."""
        if self._name != name or self._loaded is None:
            self.drop_model()
            self._loaded = load(build(self.spec(name), self.device, self.dtype), self.device, self.dtype)
            self._name = name
        return self._loaded

    def drop_model(self) -> None:
        """Let go of the model."""
        self._loaded = None
        release_cached_memory()

    @cached_property
    def limits(self) -> Limits:
        """Copy bandwidth and matrix rate, each from ten samples on random numbers."""
        found, times = Limits(), 1 if self.tiny else 5
        source = torch.randn(self.sizes.copied_bytes // self.dtype.itemsize, device=self.device, dtype=self.dtype)
        target = torch.empty_like(source)
        left, right = torch.randn(2, self.sizes.matrix, self.sizes.matrix, device=self.device, dtype=self.dtype)
        for sample in range(12):
            copied = seconds_of(lambda: target.copy_(source), self.device, times)
            multiplied = seconds_of(lambda: left @ right, self.device, times)
            if sample >= 2:  # the first ones load libraries and wake the clocks
                found.bytes_per_second.append(2 * self.sizes.copied_bytes / copied)
                found.flops_per_second.append(2 * self.sizes.matrix**3 / multiplied)
        return found
