"""Frozen data that crosses a stage border. This file knows no torch, no av and no numpy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a probe learned about the best video stream of a file.

    `width` and `height` are those of the picture as shown: after rotation and after
    the pixel aspect. `pts_seconds` has one presentation time per frame, ascending;
    times are those of the file, so `start_seconds` need not be zero.
    `sources` says for each value where it came from (`header`, `packets`, `derived`...).
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation_degrees: int
    pixel_aspect: float
    fps: float
    frame_count: int
    duration_seconds: float
    start_seconds: float
    constant_rate: bool
    pts_seconds: tuple[float, ...] = field(repr=False)
    sources: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture: `rgb` is (height, width, 3) uint8, upright, at source size.

    `timestamp_seconds` counts from the first frame of the video.
    """

    index: int
    timestamp_seconds: float
    rgb: "numpy.ndarray"


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """What a checkpoint's video processor allows: pixels per frame, and frames per video."""

    min_pixels: int
    max_pixels: int
    total_pixels: int
    min_frames: int
    max_frames: int
    fps: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """One device as it is now, sizes in bytes. Rates are peak figures, for time estimates only.

    `free_bytes` is what this process could still allocate: the smaller of the driver's word and
    total - others - own. `process_bytes` and `other_bytes` are 0 where the driver does not say.
    """

    kind: Literal["cuda", "mps", "cpu"]
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    process_bytes: int
    other_bytes: int
    compute_capability: tuple[int, int] | None
    bf16: bool
    bandwidth_bytes_per_second: float
    flops_per_second: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One question about one video. `size` is (width, height) in pixels."""

    video: str
    question: str
    system: str | None = None
    frames: int | None = None
    fps: float | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    size: tuple[int, int] | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs. Sizes in pixels, chunks in temporal slices (vision) and tokens (prefill)."""

    model: str
    device: str
    dtype: str
    frames: int
    height: int
    width: int
    visual_tokens: int
    prompt_tokens: int
    timestamps_seconds: tuple[float, ...]
    attention: str
    vision_chunk: int
    prefill_chunk: int
    kv_capacity_tokens: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per stage. `first_token_seconds` runs from the accepted request, model loaded."""

    load_seconds: float
    video_seconds: float
    vision_seconds: float
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: the first token belongs to the prefill."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Measured bytes: weights and KV cache exactly, peaks by the host's and the device's own count."""

    weights_bytes: int
    kv_bytes: int
    host_peak_bytes: int
    device_peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer with everything that is known about how it came to be."""

    text: str
    finish_reason: FinishReason
    question: str
    video: VideoInfo
    plan: Plan
    timing: Timing
    memory: MemoryUse
    notes: tuple[str, ...] = ()
