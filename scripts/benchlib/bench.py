"""Shared state of the sections: the device's limits, the sizes to measure at, and one model at a time.

All ratios in the results are to the copy bandwidth and matrix rate measured here, in the same process.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median

import torch
from torch import nn

from benchlib.accelerator import Accelerator
from benchlib.models import FULL, build, load, reduced
from benchlib.runs import seconds_of
from vidqa.devices.torch_device import release_cached_memory
from vidqa.models.loader import Loaded
from vidqa.models.spec import ModelSpec

_LEFT_BYTES = 2**28  # workspaces of libraries may stay


# Seconds of video, frames, size (width, height), answer tokens.
PlanRequest = tuple[float, int | None, tuple[int, int] | None, int]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The amounts of work of each section. Sizes of frames are (height, width); the rest are tokens, frames or slices.

    `plans` has seconds of video, frames and size (width, height; None: the planner's choice) and answer tokens.
    """

    copied_bytes: int = 2**31
    matrix: int = 8192
    kernel_names: tuple[str, ...] = ("flash", "cudnn", "efficient", "tiled")
    compiled_kernel_names: tuple[str, ...] = ("flex",)
    exact_frames: int = 8
    exact_tokens: int = 64
    exact_context: int = 1000
    exact_steps: int = 16
    caps_gib: tuple[float, float, float] = (8, 24, 8)  # of 2B in bf16, 7B in bf16, 7B in nf4
    plans: tuple[PlanRequest, ...] = (
        (4, None, None, 16), (60, None, None, 16), (600, None, None, 16), (60, 8, (448, 252), 64),
        (60, 16, (1008, 560), 16), (60, 32, (448, 252), 16), (60, 64, (616, 336), 32), (60, 100, (448, 252), 16),
        (60, 4, (1008, 560), 256), (60, 24, (784, 448), 64), (60, 2, (1008, 560), 8), (60, 128, (280, 280), 16),
    )  # fmt: skip
    plan_seconds: float = 20.0  # one plan may take so long
    decode_context: int = 8192
    decode_tokens: int = 192
    plain_tokens: int = 48
    prefill_tokens: int = 16384
    prefill_chunks: tuple[int, ...] = (512, 1024, 2048, 4096)
    vision: tuple[tuple[str, int, tuple[int, int]], ...] = (("large", 64, (560, 1008)), ("small", 256, (280, 280)))
    frames: int = 64
    frame_size: tuple[int, int] = (560, 1008)
    follow_up_frames: int = 46  # 23 slices of 720 tokens
    flat_frames: tuple[int, int] = (8, 768)
    flat_size: tuple[int, int] = (252, 252)  # 81 tokens a slice: 31,104 at most
    clips: int = 120
    sweep_cap_gib: float = 14.56  # what a T4 has
    sweep_size: tuple[int, int] = (560, 1008)
    sweep_frames: tuple[int, ...] = (6, 10, 16, 20, 26, 30, 60, 88)  # 720 tokens a slice: 31,680 at most
    sweep_plain_frames: int = 60  # the most that transformers is asked for
    repeats: int = 3


TINY = Sizes(
    copied_bytes=2**16, matrix=64, kernel_names=("flash", "efficient", "tiled", "cudnn"),
    compiled_kernel_names=("tiled",),
    exact_frames=4, exact_tokens=8, exact_context=100, exact_steps=3, caps_gib=(2, 2, 2),
    plans=((1, None, (84, 56), 4), (1, 4, (84, 56), 4), (1, 8, (112, 84), 4)), plan_seconds=20.0,
    decode_context=100, decode_tokens=8, plain_tokens=6, prefill_tokens=200, prefill_chunks=(64, 128),
    vision=(("large", 3, (56, 84)), ("small", 4, (56, 56))), frames=4, frame_size=(56, 84), follow_up_frames=16,
    flat_frames=(8, 32), flat_size=(112, 112), clips=4, sweep_cap_gib=0.25, sweep_frames=(2, 4, 200),
    sweep_plain_frames=4, repeats=1,
)  # fmt: skip


@dataclass(slots=True)
class Limits:
    """Measured limits of the device."""

    bytes_per_second: list[float] = field(default_factory=list)
    flops_per_second: list[float] = field(default_factory=list)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, read plus written, of a copy."""
        return median(self.bytes_per_second)

    @property
    def matrix_rate(self) -> float:
        """FLOP/s of a large matrix product."""
        return median(self.flops_per_second)


class Bench:
    """Shared state: bf16 on a GPU, or float32 and small models if `tiny`."""

    def __init__(self, accelerator: Accelerator, *, tiny: bool) -> None:
        self.accelerator, self.tiny = accelerator, tiny
        self.device = accelerator.device
        self.sizes = TINY if tiny else Sizes()
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self._name = ("", "")
        self._loaded: Loaded | None = None

    def spec(self, name: str) -> ModelSpec:
        """Return the spec of `2b` or `7b`, or of a small model with its head layout."""
        if not self.tiny:
            return FULL[name]
        full = FULL[name]
        return replace(reduced(name, 1, full.heads * 16), vocabulary=2048, tied=full.tied)

    def model(self, name: str, weights: str = "") -> Loaded:
        """Return the random model of that size in 16-bit or other weights; the previous model is dropped."""
        if self._name != (name, weights) or self._loaded is None:
            self.drop_model()
            model = build(self.spec(name), self.device, self.dtype, weights or "native")
            self._loaded, self._name = load(model, self.device, self.dtype, weights), (name, weights)
        return self._loaded

    def drop_model(self) -> None:
        """Drop the model and release its memory."""
        self._loaded = None
        release_cached_memory()

    def usable(self) -> bool:
        """Return whether the process can go on after a failed section: the device works and holds no tensors."""
        self.drop_model()
        self.accelerator.cap(None)
        try:
            with self.accelerator.peak(nn.Module()) as peak:
                torch.ones(1, device=self.device).sum()
            self.accelerator.wait()
        except RuntimeError:  # a CUDA error persists in its process
            return False
        return bool(peak.tensors < _LEFT_BYTES)

    @cached_property
    def limits(self) -> Limits:
        """Copy bandwidth and matrix rate, each from ten samples on random numbers."""
        found, times = Limits(), 1 if self.tiny else 5
        source = torch.randn(self.sizes.copied_bytes // self.dtype.itemsize, device=self.device, dtype=self.dtype)
        target = torch.empty_like(source)
        left, right = torch.randn(2, self.sizes.matrix, self.sizes.matrix, device=self.device, dtype=self.dtype)
        for sample in range(12):
            copied = seconds_of(lambda: target.copy_(source), self.accelerator, times)
            multiplied = seconds_of(lambda: left @ right, self.accelerator, times)
            if sample >= 2:  # the first ones load libraries and wake the clocks
                found.bytes_per_second.append(2 * self.sizes.copied_bytes / copied)
                found.flops_per_second.append(2 * self.sizes.matrix**3 / multiplied)
        return found
