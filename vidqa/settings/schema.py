"""The one list of what a user may set: type, choices, meaning and default of each.

Flags, refusals, `vidqa config` and the commented file are made from it. Knows values, and not
where they were written (vidqa.settings.load does).
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidqa.config import ATTENTION_CHOICES, KV_CHOICES, QUALITY_CHOICES, WEIGHT_CHOICES
from vidqa.errors import UsageError
from vidqa.utils.units import parse_bytes, parse_seconds

_IMAGE_CHOICES = ("auto", "kitty", "sixel", "half", "none")
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that may be set.

    `key` is its name in the file (`tui.theme`), `field` its name in Settings or TuiSettings.
    `read` turns what is written (a TOML value) into what is used; it raises ValueError or
    UsageError. `allowed` says in words what may be written, `choices` lists it where that is possible.
    `default` is written as a user would; None where it depends, and `unset` then says on what.
    """

    key: str
    field: str
    meaning: str
    read: Callable[[Any], Any]
    allowed: str
    default: str | int | bool | None
    flag: str
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    unset: str = ""

    @property
    def variable(self) -> str:
        """The environment's name for it: `VIDQA_TUI_THEME`."""
        return f"VIDQA_{self.key.upper().replace('.', '_')}"

    def use(self, value: Any, shown: str) -> Any:
        """The value as it is used; raises UsageError, which says what was `shown` and what is allowed."""
        try:
            return self.read(value)
        except (ValueError, UsageError) as error:
            near = difflib.get_close_matches(str(value), self.choices, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{shown} is not allowed.", f"Allowed: {self.allowed}.{meant}") from error

    def typed(self, text: str) -> str | int | bool:
        """What the file would say for a text of the environment or the command line, where that is possible."""
        if isinstance(self.default, bool):
            return _TRUTH.get(text.lower(), text)
        if isinstance(self.default, int) and text.isascii() and text.isdecimal():
            return int(text)
        return text

    @property
    def example(self) -> str | int | bool:
        """What a file may say: the default where there is one."""
        return "2b" if self.default is None else self.default

    @property
    def dest(self) -> str:
        """Its name inside its table, and argparse's for its flag."""
        return self.key.rpartition(".")[2]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(value)
    return value


def _one_of(choices: Sequence[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(value)
        return str(value)

    return read


def _device(value: Any) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", _text(value)):
        raise ValueError(value)
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return parse_bytes(_text(value))


def _span(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return parse_seconds(str(value) if is_number else _text(value))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(value)
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _none_for(word: str, read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value == word else read(value)


def listed(choices: Sequence[str]) -> str:
    """`a, b or c`."""
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _choice(key: str, meaning: str, choices: Sequence[str], default: str, flag: str = "") -> Setting:
    field, names = key.rpartition(".")[2], tuple(choices)
    return Setting(key, field, meaning, _one_of(names), listed(names), default, flag or f"--{field}", names)


ENGINE_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "model", "model", "which model answers", _text,
        "demo, 2b, 7b, auto, a Hugging Face repository, or a folder", None, "--model",
        unset="the first cached Qwen2-VL",
    ),
    Setting("device", "device", "what computes", _device, "auto, cpu, mps, cuda or cuda:1", "auto", "--device"),
    Setting(
        "vram", "vram_bytes", "plan for this much memory", _none_for("auto", _size),
        "a size such as 8GiB, or auto for what is free", "auto", "--vram", metavar="SIZE",
    ),
    Setting(
        "reserve", "reserve_bytes", "leave this much to others", _size, "a size such as 512MiB", "0MiB", "--reserve",
        metavar="SIZE",
    ),
    _choice("quality", "what to prefer where not everything fits", QUALITY_CHOICES, "balanced"),
    Setting(
        "max_wait", "max_wait_seconds", "longest time to an answer", _none_for("none", _span),
        "a time such as 20s or 2min, or none", "none", "--max-wait", metavar="TIME",
    ),
    _choice("weights", "precision of the weights", (*WEIGHT_CHOICES, "auto"), "auto"),
    _choice("kv", "precision of the KV cache", (*KV_CHOICES, "auto"), "auto"),
    _choice("attention", "attention kernel", ATTENTION_CHOICES, "auto", "--attn"),
    Setting(
        "max_tokens", "max_tokens", "longest answer, in tokens", _count, "a whole number from 1", 256, "--max-tokens",
        metavar="N",
    ),
)  # fmt: skip
TUI_SETTINGS: tuple[Setting, ...] = (
    Setting("tui.theme", "theme", "colours of the app", _text, "the name of a theme", "textual-dark", "--theme"),
    _choice("tui.images", "how the app draws pictures", _IMAGE_CHOICES, "half"),
    Setting("tui.history", "history", "keep conversations", _truth, "true or false", True, "--no-history"),
    Setting("tui.ascii", "ascii", "draw with ASCII characters alone", _truth, "true or false", False, "--ascii"),
)  # fmt: skip
SETTINGS = ENGINE_SETTINGS + TUI_SETTINGS
