"""Frozen data that crosses a stage border. This file knows no torch, no av and no numpy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # by the name of a compute precision
PHASES = ("load", "vision", "prefill", "decode")  # of memory, in their order
PHASE_MARK = "vidqa phase: "  # how a phase's range in a profiler's trace begins


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a probe learned about the best video stream of a file.

    `width` and `height` are those of the picture as shown: after rotation and after
    the pixel aspect. `pts_seconds` has one presentation time per frame, ascending;
    times are those of the file, so `start_seconds` need not be zero. `lead_seconds` is how long a player that counts
    from 0 shows nothing yet, as where sound begins first; `duration_seconds` includes it.
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
    lead_seconds: float = 0.0

    def shown_seconds(self, index: int) -> float:
        """When a player that counts from 0 shows a frame."""
        return self.pts_seconds[index] - self.start_seconds + self.lead_seconds


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture: `rgb` is (height, width, 3) uint8, upright, at source size.

    `timestamp_seconds` is when a player that counts from 0 shows it. `note` says what is unusual about it.
    """

    index: int
    timestamp_seconds: float
    rgb: "numpy.ndarray"
    note: str = ""


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

    @property
    def torch_name(self) -> str:
        """As torch names it: `cpu`, `mps`, `cuda:0`."""
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind


@dataclass(frozen=True, slots=True)
class Turn:
    """A question about a video and the answer that was given."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Request:
    """One question about one video. `size` is (width, height) in pixels; `history` are the turns before it.

    `stream` is the index of the picture to look at, as FFmpeg counts streams; None for the best.
    """

    video: str
    question: str
    history: tuple[Turn, ...] = ()
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
    stream: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """One part of a plan's memory: what it is, its bytes, how they were computed, and what kind of memory it is.

    `tensors` are what formulas give; `process` is what the runtime takes beside them; `margin` is kept free.
    """

    name: str
    bytes: int
    formula: str
    kind: Literal["tensors", "process", "margin"] = "tensors"


@dataclass(frozen=True, slots=True)
class Placement:
    """What does not simply lie on the device in 16-bit; every True saves device memory and costs something.

    `embedding_on_host`: rows of the table are looked up on the host. `vision_offloaded`: the whole
    video is encoded first, its embeddings wait on the host, and the vision tower leaves the device
    before the KV cache is made. `vision_quantized`, `lm_head_quantized`: they share
    the precision of quantized weights. `kv_on_host`: each layer's keys and values visit the
    device for its turn only.
    """

    embedding_on_host: bool = False
    vision_offloaded: bool = False
    vision_quantized: bool = False
    lm_head_quantized: bool = False
    kv_on_host: bool = False


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All that memory and time depend on. Sizes in pixels, `text_tokens` around the video.

    `weights` and `kv` are precisions, `dtype` the one that is computed in; `vision_chunk` is
    in temporal slices, `prefill_chunk` in tokens; so is `spare_tokens`, what the KV cache holds
    beyond prompt and answer, for the questions that follow. `batch` sequences are decoded together:
    each has its cache, and they are encoded and prefilled one after the other. `sampled`: at a temperature above 0.
    """

    weights: str
    kv: str
    dtype: str
    attention: str
    frames: int
    height: int
    width: int
    text_tokens: int
    max_tokens: int
    vision_chunk: int
    prefill_chunk: int
    placement: Placement = Placement()
    batch: int = 1
    spare_tokens: int = 0
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Predicted seconds per stage, from FLOPs and bytes over the device's rates."""

    video_seconds: float
    vision_seconds: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def total_seconds(self) -> float:
        """All stages one after the other, the model loaded."""
        return self.video_seconds + self.vision_seconds + self.prefill_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs, and what it is predicted to take. Sizes in pixels, memory in bytes.

    `lines` are those of the phase that takes most, and add up to `required_bytes`: the
    predicted peak and the margin. `limits` says for each choice that lowered something
    which limit forced it.
    """

    model: str
    device: str
    run_config: RunConfig
    indices: tuple[int, ...]
    timestamps_seconds: tuple[float, ...]
    visual_tokens: int
    prompt_tokens: int
    kv_capacity_tokens: int
    lines: tuple[MemoryLine, ...]
    phase_bytes: Mapping[str, int]
    peak_phase: str
    margin_bytes: int
    budget_bytes: int
    limits: tuple[str, ...]
    seconds: TimeEstimate
    score: float

    @property
    def required_bytes(self) -> int:
        """What the budget must hold: the sum of the lines."""
        return sum(line.bytes for line in self.lines)

    @property
    def predicted_peak_bytes(self) -> int:
        """The largest phase, without the margin."""
        return self.required_bytes - self.margin_bytes

    @property
    def tensor_bytes(self) -> int:
        """What lives in tensors in the largest phase: weights, KV cache and activations."""
        return sum(line.bytes for line in self.lines if line.kind == "tensors")

    @property
    def runtime_bytes(self) -> int:
        """What the process is planned to take beside its tensors."""
        return sum(line.bytes for line in self.lines if line.kind == "process")

    @property
    def interval_seconds(self) -> float:
        """Mean time between two frames; 0 for a single moment."""
        times = self.timestamps_seconds
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


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
class PhaseMemory:
    """Measured bytes of one phase: tensors', and what the allocator held, where there is one."""

    name: str
    start_bytes: int
    peak_bytes: int
    end_bytes: int
    reserved_start_bytes: int | None
    reserved_peak_bytes: int | None
    reserved_end_bytes: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Measured bytes, beside the plan's: `measured_peak_bytes` is the process's on the plan's device.

    `runtime_bytes` is what the process held there before this request's tensors. `tensor_peak_bytes` is the most
    that lived in tensors at once, where it was counted.
    """

    weights_bytes: int
    kv_bytes: int
    runtime_bytes: int
    measured_peak_bytes: int
    host_peak_bytes: int
    other_bytes: int
    phases: tuple[PhaseMemory, ...]
    tensor_peak_bytes: int | None = None


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
    degraded: tuple[str, ...] = ()
