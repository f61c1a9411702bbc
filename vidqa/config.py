"""Configuration of an engine, the choices of its options, and the paths of the user's files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vidqa.types import Placement

ATTENTION_CHOICES = ("auto", "flash", "cudnn", "efficient", "flex", "tiled")
SAMPLE_CHOICES = ("uniform", "change", "auto")
DEFAULT_SAMPLE = "auto"
QUALITY_CHOICES = ("fast", "balanced", "best")
WEIGHT_CHOICES = ("fp32", "bf16", "fp16", "int8", "int4", "nf4", "nf4-dq", "fp8")
PLANNED_ONLY = ("fp8",)
KV_CHOICES = ("native", "int8")
FOCUS_CHOICES = ("auto", "off")
DEFAULT_FOCUS = "off"
DECODER_DEADLINE_SECONDS = 60.0  # for one reply of the decoder process
CLIP_DEADLINE_SECONDS = 600.0  # for all replies about one video
SUBTITLE_SHARE = 0.25  # of the context, and of the video's tokens
DEFAULT_PRUNE: Literal["auto", "off"] = "off"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a Session loads and runs its model.

    The planner chooses what is None. `weights` is a precision, `kv` `native` or `int8`; `vision_chunk` is in
    temporal slices, `prefill_chunk` in tokens. `vram_bytes` is the budget instead of the free memory;
    `reserve_bytes` are left free. `max_wait_seconds` limits the time to the first word: None for no limit, `auto`
    for 30 s on a GPU and 90 s on a CPU, and none with the quality `best`. `isolate_decoder` runs FFmpeg in a
    process that can be killed; `decoder_deadline_seconds` limits each of its replies, `clip_deadline_seconds` all
    replies about one video. `conversation_tokens` is room in the KV cache for further questions and answers.
    `batch` is the number of requests that memory is planned for. `step_seconds` limits the time between two checks
    for cancellation, which follow each chunk and on a CPU each layer: the planner's chunks become smaller, down to
    a slice and 16 tokens. `cpu_threads` is torch's number of threads, for the whole process. `remember` saves
    planned and measured peaks in the user's state folder. `calibrate` measures the device's speed before a model is
    loaded on it for the first time, stores it and the times of answers there, and plans by them; else speeds are
    estimated. `subtitle_share` is the largest part of the context that subtitles take, and of the video's tokens
    that they cost. `count_tensors` counts live tensors where the device has no counter, for about 5 µs an operator.
    `prune` is the share of the visual tokens that is kept, `auto` to drop those that repeat, or `off`. With
    `refuse_out_of_domain` a video that the model cannot know, as it knows only drawn shapes, is an error.
    """

    model: str = "demo"
    device: str = "auto"
    attention: str = "auto"
    weights: str | None = None
    kv: str | None = None
    placement: "Placement | None" = None
    vision_chunk: int | None = None
    prefill_chunk: int | None = None
    vram_bytes: int | None = None
    reserve_bytes: int = 0
    quality: str = "balanced"
    max_wait_seconds: float | Literal["auto"] | None = "auto"
    conversation_tokens: int = 0
    batch: int = 1
    step_seconds: float | None = None
    cpu_threads: int | None = None
    remember: bool = True
    calibrate: bool = False
    count_tensors: bool = True
    isolate_decoder: bool = True
    decoder_deadline_seconds: float = DECODER_DEADLINE_SECONDS
    clip_deadline_seconds: float = CLIP_DEADLINE_SECONDS
    subtitle_share: float = SUBTITLE_SHARE
    prune: Literal["auto", "off"] | float = DEFAULT_PRUNE
    refuse_out_of_domain: bool = False


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the configuration file's path: $VIDQA_CONFIG, else `config.toml` in the user's config folder."""
    if named := environment.get("VIDQA_CONFIG"):
        return Path(named)
    import platformdirs  # imported late: slow

    return Path(platformdirs.user_config_dir("vidqa")) / "config.toml"


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the history and of measured peaks: $VIDQA_STATE, else the user's state folder."""
    if named := environment.get("VIDQA_STATE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_state_dir("vidqa"))


def compiled_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of compiled kernels: below $VIDQA_STATE, else below the user's cache folder."""
    if named := environment.get("VIDQA_STATE"):
        return Path(named) / "compiled"
    import platformdirs

    return Path(platformdirs.user_cache_dir("vidqa")) / "compiled"
