"""Settings: what the user wrote once (a TOML file, the environment) and what an engine needs.

Later sources win: file, then environment, then flags. Unknown keys are refused with the
nearest valid one. This file reads text; it loads no model and opens no video.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from vidqa.errors import UsageError
from vidqa.types import Placement

ATTENTION_CHOICES = ("auto", "flash", "cudnn", "efficient", "flex", "tiled")
QUALITY_CHOICES = ("fast", "balanced", "best")
WEIGHT_CHOICES = ("fp32", "bf16", "fp16", "int8", "nf4", "nf4-dq", "fp8")
PLANNED_ONLY = ("fp8",)
COMPILE_CHOICES = ("auto", "on", "off")
KV_CHOICES = ("native", "int8")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a Session loads and runs its model.

    What is None the planner chooses. `weights` is a precision, `kv` `native` or `int8`;
    `vision_chunk` is in temporal slices, `prefill_chunk` in tokens. `vram_bytes` is a budget
    to plan for instead of what is free, `reserve_bytes` is left to others. `isolate_decoder`
    runs FFmpeg in a process that can be killed; `conversation_tokens` is room in the KV cache for the
    questions and answers that follow the first; `compile` is for the decode step on CUDA (`auto`:
    where `vidqa warmup` has compiled it); `batch` is how many requests memory is planned for;
    `cpu_threads` is how many cores torch computes on, for a face that draws meanwhile: a setting of the whole
    process; `remember` keeps planned and measured peaks in the user's state folder.
    """

    model: str = "demo"
    device: str = "auto"
    attention: str = "auto"
    weights: str | None = None
    kv: str | None = None
    placement: Placement | None = None
    vision_chunk: int | None = None
    prefill_chunk: int | None = None
    vram_bytes: int | None = None
    reserve_bytes: int = 0
    quality: str = "balanced"
    max_wait_seconds: float | None = None
    conversation_tokens: int = 0
    compile: str = "auto"
    batch: int = 1
    cpu_threads: int | None = None
    remember: bool = True
    isolate_decoder: bool = True
    decoder_deadline_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration file may say; None where it says nothing."""

    model: str | None = None
    device: str | None = None
    attention: str | None = None
    quality: str | None = None


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the configuration file is looked for: $VIDQA_CONFIG, else the user's config folder."""
    if named := environment.get("VIDQA_CONFIG"):
        return Path(named)
    import platformdirs  # only where no path was given: keeps `vidqa --help` quick

    return Path(platformdirs.user_config_dir("vidqa")) / "config.toml"


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration file (if any), then let VIDQA_MODEL, VIDQA_DEVICE... win.

    Raises UsageError for unknown keys and for values of the wrong kind.
    """
    path = config_path(environment)
    table = _read_table(path)
    known = [setting.name for setting in fields(Settings)]
    for key, entry in table.items():
        _check_entry(path, key, entry, known)
    for name in known:
        if override := environment.get(f"VIDQA_{name.upper()}"):
            table[name] = override
    return Settings(**table)


def _read_table(path: Path) -> dict[str, str]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The configuration file {path} cannot be read: {error}.", "Mend or remove it.") from error


def _check_entry(path: Path, key: str, value: object, known: list[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1) or known
        raise UsageError(f"{path} has the unknown key {key!r}.", f"Did you mean {' or '.join(map(repr, near))}?")
    if not isinstance(value, str):
        raise UsageError(f"{path}: {key} must be a string, not {value!r}.", f'Write {key} = "...".')
