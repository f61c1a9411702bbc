"""Planning problems: one per model, from a request, the settings and a device. Arithmetic only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vidqa.config import EngineConfig
from vidqa.devices.host import free_host_bytes, usable_cores
from vidqa.errors import UsageError
from vidqa.models.registry import Checkpoint
from vidqa.models.spec import ModelSpec
from vidqa.planner.budget import RuntimeOverhead, budget_bytes, runtime_overhead
from vidqa.planner.calibration import UNMEASURED, DeviceSpeed, device_key, stored_speed
from vidqa.types import Device, PixelBounds, Placement, Request, VideoInfo
from vidqa.video.change_signal import ChangeSignal

# Vision group (temporal slices) and prefill chunk (tokens), from the fastest to the smallest.
CHUNKS = ((8, 1024), (4, 1024), (2, 512), (1, 512), (1, 256), (1, 128))
# On a large GPU a chunk of 1,024 tokens is over before its kernels are launched.
LARGE_CHUNKS = ((16, 4096), (16, 2048), *CHUNKS)
_LARGE_GPU_BYTES = 20 * 2**30
# The longest time to the first word that people wait for without being asked, in seconds (`--max-wait auto`).
AUTO_WAIT_SECONDS = {"cuda": 30.0, "mps": 30.0, "cpu": 90.0}
_LEAST_SCAN_SECONDS = 4.0
# 2 cores, shared with another program: 6,000 frames of 320x240 in 1.8 s, 132 of 1280x720 in 0.28 s.
_SCANNED_FRAME_SECONDS, _SCANNED_PIXELS_PER_SECOND = 0.15e-3, 0.5e9
_HOST_SHARE = 0.5  # of the host's free memory, for embeddings of frames to select from
_TURN_TOKENS = 16  # the template around one more question and answer
_USUAL_QUESTION = "what happens?"  # the room for a question in a plan without one
_TEMPLATE_TOKENS = 32  # the chat template around a question, with Qwen's default system prompt


@dataclass(frozen=True, slots=True)
class PlanningProblem:
    """Everything that a plan is computed from. `budget_bytes` is the memory, `config` holds what the user set.

    `speed` is what was measured of the device. The fields from `chunks` on narrow the search: to less than a plan that
    ran out of memory, and to how the model is already loaded (`pinned_weights`, and the lasting parts of
    `pinned_placement`). `raised_wait_seconds` replaces the automatic limit on time where the request's own frames and
    size need longer. `subtitle_tokens` is the room for subtitles, beside `text_tokens`. `signal` is how much the video
    changes, where it was scanned; `scan_seconds` is the time that a scan took or will take. `host_bytes` is the host's
    memory for embeddings of frames to select from; None where the host is the device.
    """

    model: str
    spec: ModelSpec
    bounds: PixelBounds
    video: VideoInfo
    request: Request
    config: EngineConfig
    device: Device
    overhead: RuntimeOverhead
    budget_bytes: int
    text_tokens: int
    speed: DeviceSpeed = UNMEASURED
    chunks: tuple[tuple[int, int], ...] = CHUNKS
    most_visual_tokens: int | None = None
    most_slice_tokens: int | None = None
    pinned_weights: str | None = None
    pinned_placement: Placement | None = None
    raised_wait_seconds: float | None = None
    subtitle_tokens: int = 0
    signal: ChangeSignal | None = None
    scan_seconds: float = 0.0
    host_bytes: int | None = None

    def constrained_to(self, weights: str, placement: Placement) -> "PlanningProblem":
        """Return the problem for a model that is loaded in this precision and placement."""
        return replace(self, pinned_weights=weights, pinned_placement=placement)

    @property
    def max_wait_seconds(self) -> float | None:
        """Return the longest time to the first word; None for no limit."""
        chosen = self.config.max_wait_seconds
        if chosen == "auto":
            return self.raised_wait_seconds or self.usual_wait_seconds
        return chosen

    @property
    def usual_wait_seconds(self) -> float | None:
        """Return the automatic limit on the time to the first word: none for the best quality."""
        return _usual_wait_seconds(self.device, self.config)

    @property
    def context_left(self) -> int:
        """Tokens of the model's context that are left for a video."""
        used = self.text_tokens + self.subtitle_tokens + self.request.max_tokens + self.config.conversation_tokens
        return self.spec.context_tokens - used


def planning_problems(
    checkpoints: Sequence[Checkpoint],
    video: VideoInfo,
    request: Request,
    config: EngineConfig,
    device: Device,
    signal: ChangeSignal | None = None,
    parked_bytes: int = 0,
) -> list[PlanningProblem]:
    """Return one problem per model; raise UsageError for an empty budget, or weights that the only model lacks.

    A request that needs a `signal` and has none will scan the video first. `parked_bytes` of embeddings that lie on the
    host now are reused or freed.
    """
    if len(checkpoints) == 1:
        _check_stored(checkpoints[0], config)
    if config.weights == "int4" and device.kind != "cpu":
        raise UsageError(
            f"int4 weights run on a CPU, and the device is {device.name}.",
            "Use --weights nf4, which are 4-bit too, or add --device cpu.",
        )
    if request.focus == "always":  # a search reads nothing of what it finds
        config = replace(config, prune="off")
    overhead, budget = runtime_overhead(device, video), budget_bytes(device, config)
    large = device.kind == "cuda" and device.total_bytes >= _LARGE_GPU_BYTES
    return [
        PlanningProblem(
            model=checkpoint.name,
            spec=checkpoint.spec,
            bounds=checkpoint.bounds,
            video=video,
            request=request,
            config=config,
            device=with_cpu_threads(device, config),
            overhead=overhead,
            budget_bytes=budget,
            text_tokens=most_text_tokens(request),
            speed=speed_of(device, config, checkpoint.name),
            chunks=LARGE_CHUNKS if large else CHUNKS,
            pinned_weights=checkpoint.spec.stored.weights if checkpoint.spec.stored else None,
            pinned_placement=_stored_placement(checkpoint.spec),
            signal=signal,
            scan_seconds=0.0 if signal or request.sample == "uniform" else _scan_seconds(video, device, config),
            host_bytes=host_share_bytes(parked_bytes) if device.kind == "cuda" else None,
        )
        for checkpoint in checkpoints
    ]


def host_share_bytes(parked_bytes: int) -> int:
    """Return the host's memory for embeddings; `parked_bytes` of it are in use for them."""
    return int(_HOST_SHARE * (free_host_bytes() + parked_bytes))


def _usual_wait_seconds(device: Device, config: EngineConfig) -> float | None:
    return None if config.quality == "best" else AUTO_WAIT_SECONDS[device.kind]


def scan_limit_seconds(device: Device, config: EngineConfig, first_token_seconds: float = 0.0) -> float:
    """Return how long a scan may take: a quarter of what an answer's first word takes without it, but 4 s at least.

    It is at most a third of the limit on that time.
    """
    wait = _usual_wait_seconds(device, config) if config.max_wait_seconds == "auto" else config.max_wait_seconds
    return min(max(first_token_seconds / 4, _LEAST_SCAN_SECONDS), math.inf if wait is None else wait / 3)


def _scan_seconds(video: VideoInfo, device: Device, config: EngineConfig) -> float:
    """Return the predicted time of a scan."""
    every = _SCANNED_FRAME_SECONDS + video.coded_width * video.coded_height / _SCANNED_PIXELS_PER_SECOND
    return min(video.frame_count * every, scan_limit_seconds(device, config))


def _check_stored(checkpoint: Checkpoint, config: EngineConfig) -> None:
    stored = checkpoint.spec.stored
    if stored is not None and config.weights not in (None, stored.weights):
        raise UsageError(
            f"{checkpoint.name} is stored in {stored.weights}: there are no {config.weights} weights in it.",
            "Leave --weights away, or name the unquantized checkpoint.",
        )


def _stored_placement(spec: ModelSpec) -> Placement | None:
    if spec.stored is None:
        return None
    quantized = spec.stored.quantized
    return Placement(vision_quantized="vision" in quantized, lm_head_quantized="lm_head" in quantized)


def with_cpu_threads(device: Device, config: EngineConfig) -> Device:
    """Return a CPU with the FLOP/s of the threads that the settings allow; other devices as they are."""
    if device.kind != "cpu" or config.cpu_threads is None:
        return device
    share = min(config.cpu_threads / usable_cores(), 1.0)
    return replace(device, flops_per_second=device.flops_per_second * share)


def cpu_threads(config: EngineConfig) -> int:
    """Return the number of threads that torch uses on a CPU."""
    return min(config.cpu_threads or usable_cores(), usable_cores())


def speed_of(device: Device, config: EngineConfig, model: str) -> DeviceSpeed:
    """Return what was measured of a device's speed with the settings' threads; nothing without `calibrate`."""
    return stored_speed(device_key(device, cpu_threads(config)), model) if config.calibrate else UNMEASURED


def most_text_tokens(request: Request) -> int:
    """Return an upper bound of the tokens around the video: byte-level BPE makes no more tokens than UTF-8 bytes."""
    turns = [text for turn in request.history for text in (turn.question, turn.answer)]
    texts = (request.question or _USUAL_QUESTION, request.system or "", *turns)
    return _TEMPLATE_TOKENS + _TURN_TOKENS * len(request.history) + sum(map(_utf8_bytes, texts))


def most_turn_tokens(request: Request) -> int:
    """Return an upper bound of the tokens that a later question and its answer add to a conversation."""
    return _TURN_TOKENS + _utf8_bytes(request.question) + request.max_tokens


def _utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
