"""What an engine needs to know, the words it may be told in, and where the user's files lie.

What the user wrote in them is read by `vidqa.settings.load`. Opens nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.types import Placement

ATTENTION_CHOICES = ("auto", "flash", "cudnn", "efficient", "flex", "tiled")
QUALITY_CHOICES = ("fast", "balanced", "best")
WEIGHT_CHOICES = ("fp32", "bf16", "fp16", "int8", "nf4", "nf4-dq", "fp8")
PLANNED_ONLY = ("fp8",)
KV_CHOICES = ("native", "int8")
DECODER_DEADLINE_SECONDS = 60.0  # for one reply of the decoding process
CLIP_DEADLINE_SECONDS = 600.0  # for all replies about one video


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a Session loads and runs its model.

    What is None the planner chooses. `weights` is a precision, `kv` `native` or `int8`;
    `vision_chunk` is in temporal slices, `prefill_chunk` in tokens. `vram_bytes` is a budget
    to plan for instead of what is free, `reserve_bytes` is left to others. `isolate_decoder`
    runs FFmpeg in a process that can be killed, `decoder_deadline_seconds` is how long a reply of it may take, and
    `clip_deadline_seconds` how long all replies about one video may take; `conversation_tokens` is room in the
    KV cache for the questions and answers that follow the first; `batch` is how many requests memory is planned for;
    `step_seconds` is how long it may take at most until the engine looks whether to stop, as it does after a chunk
    and on a CPU after a layer: chunks become smaller, down to a slice and 16 tokens, but those that are set stay;
    `cpu_threads` is how many cores torch computes on, for a face that draws meanwhile: a setting of the whole
    process; `remember` keeps planned and measured peaks in the user's state folder; `count_tensors` counts living
    tensors where the device has no counter, for about 5 µs an operator.
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
    max_wait_seconds: float | None = None
    conversation_tokens: int = 0
    batch: int = 1
    step_seconds: float | None = None
    cpu_threads: int | None = None
    remember: bool = True
    count_tensors: bool = True
    isolate_decoder: bool = True
    decoder_deadline_seconds: float = DECODER_DEADLINE_SECONDS
    clip_deadline_seconds: float = CLIP_DEADLINE_SECONDS


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the configuration file is looked for: $VIDQA_CONFIG, else the user's config folder."""
    if named := environment.get("VIDQA_CONFIG"):
        return Path(named)
    import platformdirs  # only where no path was given: keeps `vidqa --help` quick

    return Path(platformdirs.user_config_dir("vidqa")) / "config.toml"


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where vidqa keeps what it learns and what was asked: $VIDQA_STATE, else the user's state folder."""
    if named := environment.get("VIDQA_STATE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_state_dir("vidqa"))


def compiled_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where torch's compiled kernels are kept: below $VIDQA_STATE, else below the user's cache folder."""
    if named := environment.get("VIDQA_STATE"):
        return Path(named) / "compiled"
    import platformdirs

    return Path(platformdirs.user_cache_dir("vidqa")) / "compiled"
