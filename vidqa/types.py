"""Data types that several packages share. Imports no torch, av or numpy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vidqa.utils.cues import PlannedSubtitles, Subtitles
from vidqa.utils.frame_choice import Sampling, SliceSelection
from vidqa.utils.metrics import MemoryUse, Timing

if TYPE_CHECKING:
    import numpy

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # by the name of a compute precision
CPU_WEIGHTS = ("int8", "int4")  # that a CPU runs by models/cpu_linear.py, if the checkpoint is not stored quantized
PHASES = ("load", "vision", "prefill", "decode")  # of memory, in their order
PHASE_MARK = "vidqa phase: "  # how a phase's range in a profiler's trace begins


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Metadata of a file's video stream.

    `width` and `height` are those of the picture as shown: after rotation and pixel aspect. `pts_seconds` has one
    presentation time per frame, ascending; times are those of the file, so `start_seconds` need not be zero.
    `lead_seconds` is the time before the first picture, for example where sound begins first; `duration_seconds`
    includes it. `sources` has the origin of each value (`header`, `packets`, `derived`...). `subtitles` and `has_sound`
    are filled where subtitles were asked for.
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
    subtitles: Subtitles | None = None
    has_sound: bool = False

    def shown_seconds(self, index: int) -> float:
        """Return when a player that counts from 0 shows a frame."""
        return self.pts_seconds[index] - self.start_seconds + self.lead_seconds


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded picture: `rgb` is (height, width, 3) uint8, upright, at source size.

    `timestamp_seconds` is when a player that counts from 0 shows it. `note` is empty for an ordinary frame.
    """

    index: int
    timestamp_seconds: float
    rgb: "numpy.ndarray"
    note: str = ""


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """Limits of a checkpoint's video processor: pixels per frame and per video, frames per video."""

    min_pixels: int
    max_pixels: int
    total_pixels: int
    min_frames: int
    max_frames: int
    fps: float
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its current memory in bytes. Rates are peak rates, for time estimates only.

    `free_bytes` is what this process can still allocate: the smaller of the driver's figure and total - others - own.
    `process_bytes` and `other_bytes` are 0 where the driver does not report them.
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
        """Return torch's name of the device: `cpu`, `mps`, `cuda:0`."""
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind


@dataclass(frozen=True, slots=True)
class Turn:
    """A question about a video and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class PictureTimes:
    """When the numbered pictures of a folder are shown: at `fps` per second, or at the times in a `file`.

    The file wins; with neither, the folder's timestamps.txt has the times, or 25 pictures per second are assumed.
    """

    fps: float | None = None
    file: str | None = None


NO_TIMES = PictureTimes()


@dataclass(frozen=True, slots=True)
class Request:
    """A question about a video; it is empty in a plan that is made before there is one.

    `size` is (width, height) in pixels; `history` are the turns before it.
    `stream` is the index of the video stream, as FFmpeg counts streams; None for the best. Where the video is a folder
    of numbered pictures, `picture_fps` is their rate, and `timestamps` a file with a time in seconds for each of them;
    for a file neither counts. `subs` chooses the subtitles that the model reads: `auto` for a file beside the video,
    else a stream in it; `embedded` for a stream alone; `off`; or the path of a file. `sample` places the frames evenly,
    by the video's change, or by change where that is far from even. With `focus` the question selects what is read:
    `auto` of long videos, `always` of all. The range from `start_seconds` to `end_seconds` is read densely where it is
    short; not if it is a `segment`, one of the parts that a whole video is divided into.
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
    picture_fps: float | None = None
    timestamps: str | None = None
    subs: str = "auto"
    sample: Literal["uniform", "change", "auto"] = "uniform"
    focus: Literal["auto", "off", "always"] = "off"
    segment: bool = False

    @property
    def picture_times(self) -> PictureTimes:
        """Return when the pictures are shown, if the video is a folder of them."""
        return PictureTimes(self.picture_fps, self.timestamps)


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """A part of a plan's memory: its name, bytes, formula and kind.

    `tensors` are computed by formulas; `process` is the memory of the runtime; `margin` is left free.
    """

    name: str
    bytes: int
    formula: str
    kind: Literal["tensors", "process", "margin"] = "tensors"


@dataclass(frozen=True, slots=True)
class Placement:
    """Deviations from a model that is on the device in 16 bit. Each True saves device memory for time or quality.

    `embedding_on_host`: rows of the table are looked up on the host. `vision_offloaded`: the whole video is encoded
    first, its embeddings wait on the host, and the vision tower leaves the device before the KV cache is allocated.
    `vision_quantized`, `lm_head_quantized`: these have the precision of the quantized weights. `kv_on_host`: each
    layer's keys and values are on the device only while the layer runs.
    """

    embedding_on_host: bool = False
    vision_offloaded: bool = False
    vision_quantized: bool = False
    lm_head_quantized: bool = False
    kv_on_host: bool = False


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All parameters of memory and time. Sizes in pixels; `text_tokens` are those around the video.

    `weights` and `kv` are precisions, `dtype` is that of the computation. `vision_chunk` is in temporal slices,
    `prefill_chunk` in tokens. `spare_tokens` is room in the KV cache beyond prompt and answer, for further questions.
    `subtitle_tokens` of the `text_tokens` are for subtitles.
    `batch` sequences are decoded together: each has its cache, and they are encoded and prefilled one after the other.
    `sampled` is True at a temperature above 0. `device` is the kind of the device. `visual_share` is the most of the
    visual tokens that is kept for the prompt; with `drop_repeats` only those that are new are. If a question selects
    `frames`, they are from `candidate_frames` that are encoded; else that is 0.
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
    device: str = "cuda"
    subtitle_tokens: int = 0
    visual_share: float = 1.0
    drop_repeats: bool = False
    candidate_frames: int = 0


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations, in matrix products with weights and in attention."""

    matmul: float
    attention: float

    @property
    def total(self) -> float:
        """Return all of them."""
        return self.matmul + self.attention


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Predicted seconds per stage, without loading; `decode_seconds` are those of the longest answer.

    `calibrated` is whether the device's rates were measured on this machine. `scan_seconds` are those of looking at the
    whole video, where that decides on the frames.
    """

    start_seconds: float
    video_seconds: float
    vision_seconds: float
    prefill_seconds: float
    decode_seconds: float
    calibrated: bool = False
    scan_seconds: float = 0.0

    @property
    def source(self) -> str:
        """Return `calibrated` or `estimated`."""
        return "calibrated" if self.calibrated else "estimated"

    @property
    def first_token_seconds(self) -> float:
        """Return the time from the question to the first word."""
        frames = self.scan_seconds + self.video_seconds
        return self.start_seconds + frames + self.vision_seconds + self.prefill_seconds

    @property
    def total_seconds(self) -> float:
        """Return the time of all stages."""
        return self.first_token_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request runs, and the predicted memory and time. Sizes in pixels, memory in bytes.

    `lines` are the parts of the phase with the most memory; their sum is `required_bytes`. `limits` has a sentence for
    each choice that a limit lowered, `choices` one for how the frames are chosen where a scan or the question decided
    it, also why they stay even. `visual_tokens` are those that are kept of `video_tokens`; once a plan ran,
    `kept_tokens` has their number in each temporal slice if any were dropped.
    `sampling` is None where the video was not scanned: its frames are even. If the question selects the frames,
    `candidates` are the indices of those that are encoded, with their times, and `host_bytes` is for their embeddings,
    if the host is not the device. After the run `indices` are the selected ones, `frame_places` their places among the
    candidates, and `selection` has the scores.
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
    choices: tuple[str, ...] = ()
    subtitles: PlannedSubtitles | None = None
    video_tokens: int = 0
    kept_tokens: tuple[int, ...] = ()
    sampling: Sampling | None = None
    candidates: tuple[int, ...] = ()
    candidate_seconds: tuple[float, ...] = ()
    host_bytes: int = 0
    frame_places: tuple[int, ...] = ()
    selection: SliceSelection | None = None

    @property
    def required_bytes(self) -> int:
        """Return the least budget: predicted peak and margin."""
        return sum(line.bytes for line in self.lines)

    @property
    def predicted_peak_bytes(self) -> int:
        """Return the memory of the largest phase, without the margin."""
        return self.required_bytes - self.margin_bytes

    @property
    def tensor_bytes(self) -> int:
        """Return the memory of tensors in the largest phase: weights, KV cache and activations."""
        return sum(line.bytes for line in self.lines if line.kind == "tensors")

    @property
    def runtime_bytes(self) -> int:
        """Return the planned memory of the process without its tensors."""
        return sum(line.bytes for line in self.lines if line.kind == "process")

    @property
    def slice_tokens(self) -> int:
        """Return the visual tokens of a whole temporal slice, once the plan ran and dropped some; else 0."""
        return self.video_tokens // len(self.kept_tokens) if self.kept_tokens else 0

    @property
    def interval_seconds(self) -> float:
        """Return the mean time between two frames, or between two candidates if they were selected; 0 for one."""
        times = self.candidate_seconds if self.frame_places else self.timestamps_seconds
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its plan, times and memory.

    `out_of_domain` is whether the model cannot know what the video shows; None for a model of real videos.
    """

    text: str
    finish_reason: FinishReason
    question: str
    video: VideoInfo
    plan: Plan
    timing: Timing
    memory: MemoryUse
    notes: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    out_of_domain: bool | None = None
