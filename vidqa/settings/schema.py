"""The settings: key, type, allowed values, default and meaning of each. Flags, checks and the commented file use it."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidqa.config import (
    ATTENTION_CHOICES,
    DEFAULT_FOCUS,
    DEFAULT_PRUNE,
    DEFAULT_SAMPLE,
    FOCUS_CHOICES,
    KV_CHOICES,
    QUALITY_CHOICES,
    SAMPLE_CHOICES,
    WEIGHT_CHOICES,
)
from vidqa.errors import UsageError
from vidqa.utils.units import parse_bytes, parse_seconds

_IMAGE_CHOICES = ("auto", "kitty", "sixel", "half", "none")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting.

    `key` is its name in the file (`tui.theme`), `field` its name in Settings or TuiSettings. `parse` converts a TOML
    value into the value that vidqa uses; it raises ValueError or UsageError. `allowed` describes what may be written,
    `choices` lists it where it can be listed. `default` is as a user would write it; where it is None, `unset` says
    what is used.
    """

    key: str
    field: str
    meaning: str
    parse: Callable[[Any], Any]
    allowed: str
    default: str | int | bool | None
    flag: str
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    unset: str = ""

    @property
    def variable(self) -> str:
        """The environment variable: `VIDQA_TUI_THEME`."""
        return f"VIDQA_{self.key.upper().replace('.', '_')}"

    @property
    def dest(self) -> str:
        """Its name in its table of the file, and argparse's for its flag."""
        return self.key.rpartition(".")[2]

    def use(self, value: Any, shown: str) -> Any:
        """Return the parsed value; raises UsageError with `shown`, the setting as the user wrote it."""
        try:
            return self.parse(value)
        except (ValueError, UsageError) as error:
            near = difflib.get_close_matches(str(value), self.choices, n=1)
            suggestion = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{shown} is not allowed.", f"Allowed: {self.allowed}.{suggestion}") from error

    def typed(self, value: str | bool) -> str | int | bool:
        """Return the TOML value for a text of the environment or the command line, where there is one."""
        if isinstance(self.default, bool):
            return _BOOLEANS.get(str(value).lower(), value)
        if isinstance(self.default, int) and isinstance(value, str) and value.isascii() and value.isdecimal():
            return int(value)
        return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(value)
    return value


def _device(value: Any) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", _text(value)):
        raise ValueError(value)
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return parse_bytes(_text(value))


def _duration(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return parse_seconds(str(value) if is_number else _text(value))


def _wait(value: Any) -> float | str | None:
    if value in ("none", "auto"):  # a tuple: a value of the file may be a list, which has no hash
        return None if value == "none" else "auto"
    return _duration(value)


def _prune(value: Any) -> str | float:
    if value in ("auto", "off"):
        return str(value)
    if isinstance(value, bool):
        raise ValueError(value)
    text = str(value)
    share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < share <= 1:
        raise ValueError(value)
    return share


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(value)
    return value


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not 0 < (share := float(value)) < 1:
        raise ValueError(value)
    return share


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _one_of(choices: Sequence[str]) -> Callable[[Any], str]:
    return lambda value: choices[choices.index(value)]  # ValueError for another


def _none_for(word: str, parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value == word else parse(value)


def listed(choices: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _choice(key: str, meaning: str, choices: Sequence[str], default: str, flag: str = "") -> Setting:
    name, names = key.rpartition(".")[2], tuple(choices)
    return Setting(key, name, meaning, _one_of(names), listed(names), default, flag or f"--{name}", names)


ENGINE_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "model", "model", "the model", _text,
        "demo, 2b, 7b, auto, a Hugging Face repository, or a folder", None, "--model",
        unset="the first cached model that runs",
    ),
    Setting("device", "device", "the device", _device, "auto, cpu, mps, cuda or cuda:1", "auto", "--device"),
    Setting(
        "vram", "vram_bytes", "memory to plan for", _none_for("auto", _size),
        "a size such as 8GiB, or auto for what is free", "auto", "--vram", metavar="SIZE",
    ),
    Setting(
        "reserve", "reserve_bytes", "memory to leave free", _size, "a size such as 512MiB", "0MiB", "--reserve",
        metavar="SIZE",
    ),
    _choice("quality", "what to prefer if not everything fits", QUALITY_CHOICES, "balanced"),
    Setting(
        "max_wait", "max_wait_seconds", "longest time to the first word, with the model loaded", _wait,
        "a time such as 20s or 2min, auto (30 s on a GPU, 90 s on a CPU, none with the quality best) or none", "auto",
        "--max-wait", metavar="TIME",
    ),
    Setting(
        "calibrate", "calibrate", "measure this machine's speed once, and plan by it", _boolean, "true or false", True,
        "--no-calibrate",
    ),
    _choice("weights", "precision of the weights", (*WEIGHT_CHOICES, "auto"), "auto"),
    _choice("kv", "precision of the KV cache", (*KV_CHOICES, "auto"), "auto"),
    _choice("attention", "attention kernel", ATTENTION_CHOICES, "auto", "--attn"),
    Setting(
        "max_tokens", "max_tokens", "longest answer, in tokens", _count, "a whole number from 1", 256, "--max-tokens",
        metavar="N",
    ),
    Setting(
        "subs", "subs", "subtitles that the model reads", _text,
        "auto (a file beside the video, else a stream in it), embedded (a stream in it), off, or a file",
        "auto", "--subs", metavar="auto|off|FILE",
    ),
    Setting(
        "subs_share", "subtitle_share",
        "largest part of the context that subtitles take, and of the frames' tokens that they cost", _share,
        "a share above 0 and below 1", "0.25", "--subs-share", metavar="SHARE",
    ),
    Setting(
        "prune", "prune", "drop visual tokens that repeat, before they are read", _prune,
        "auto for true repeats, off, or the share to keep such as 0.25", DEFAULT_PRUNE, "--prune",
        metavar="auto|off|SHARE",
    ),
    _choice(
        "sample", "where frames lie: evenly, where the video changes (it is scanned once), or there if it changes "
        "unevenly (auto)", SAMPLE_CHOICES, DEFAULT_SAMPLE,
    ),
    _choice(
        "focus", "whether the question selects the frames of a video that is too long to read: many more are encoded "
        "once, and those that it points to are read (auto)", FOCUS_CHOICES, DEFAULT_FOCUS,
    ),
)  # fmt: skip
TUI_SETTINGS: tuple[Setting, ...] = (
    Setting("tui.theme", "theme", "theme of the app", _text, "the name of a theme", "textual-dark", "--theme"),
    _choice("tui.images", "how the app draws images", _IMAGE_CHOICES, "auto"),
    Setting("tui.history", "history", "save conversations", _boolean, "true or false", True, "--no-history"),
    Setting("tui.ascii", "ascii", "draw with ASCII characters only", _boolean, "true or false", False, "--ascii"),
)  # fmt: skip
SETTINGS = ENGINE_SETTINGS + TUI_SETTINGS
