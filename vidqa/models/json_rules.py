"""JSON files of a checkpoint, and rules for their values. Every value is checked before it is used.

A rule returns the checked value or raises ValueError with what the value must be; `Values.checked` keeps only the
keys that have a rule. Knows files and JSON; knows no model.
"""

import json
import os
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from vidqa.errors import ModelError
from vidqa.utils.units import format_bytes

CONFIG_BYTES = 4 * 2**20  # the index of a model of 72 billion weights takes 0.1 MiB
AGAIN = "Fetch the model again with `vidqa pull`, or correct the file."
_REQUIRED = object()
_SHOWN = reprlib.Repr()
_SHOWN.maxstring, _SHOWN.maxlevel = 60, 2

MOST_VOCABULARY = 2**22


class Rule(Protocol):
    """What a value must be. `default` stands where the key is absent or null."""

    @property
    def default(self) -> Any:
        """The value of an absent key."""

    def check(self, value: Any) -> Any:
        """The value as it is used; raises ValueError with what it must be."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number from `low` to `high`."""

    low: int
    high: int
    default: Any = _REQUIRED

    def check(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:  # True is an int to isinstance
            raise ValueError(f"must be a whole number from {self.low} to {self.high}")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number from `low` to `high`."""

    low: float
    high: float
    default: Any = _REQUIRED

    def check(self, value: Any) -> float:
        if type(value) not in (int, float) or not self.low <= value <= self.high:
            raise ValueError(f"must be a number from {self.low:g} to {self.high:g}")
        return float(value)


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false, or `only` one of them."""

    default: Any = _REQUIRED
    only: bool | None = None

    def check(self, value: Any) -> bool:
        if type(value) is not bool or self.only not in (None, value):
            raise ValueError("must be true or false" if self.only is None else f"must be {json.dumps(self.only)}")
        return value


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of several texts."""

    options: tuple[str, ...]
    default: Any = _REQUIRED

    def check(self, value: Any) -> str:
        if type(value) is not str or value not in self.options:
            raise ValueError(f"must be {' or '.join(self.options)}")
        return value


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most `longest` characters."""

    longest: int
    default: Any = _REQUIRED

    def check(self, value: Any) -> str:
        if type(value) is not str or not 0 < len(value) <= self.longest:
            raise ValueError(f"must be a text of 1 to {self.longest} characters")
        return value


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of `fewest` to `most` values that follow one rule; `single`: one of them may stand without a list."""

    each: Rule
    fewest: int
    most: int
    default: Any = _REQUIRED
    single: bool = False

    def check(self, value: Any) -> tuple[Any, ...]:
        values = [value] if self.single and not isinstance(value, list) else value
        if not isinstance(values, list) or not self.fewest <= len(values) <= self.most:
            count = self.most if self.fewest == self.most else f"{self.fewest} to {self.most}"
            raise ValueError(f"must be a list of {count} values")
        try:
            return tuple(map(self.each.check, values))
        except ValueError as error:
            raise ValueError(f"has a value that {error}") from error


@dataclass(frozen=True, slots=True)
class JsonSection:
    """An object whose keys follow rules of their own; absent, it is an empty one."""

    default: Any = _REQUIRED

    def check(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object")
        return value


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one object of a file: `section` is the way to it."""

    path: Path | str
    section: str
    values: Mapping[str, Any]

    def refuse(self, key: str, value: Any, must: str) -> NoReturn:
        """Raise ModelError that names the file, the key and the value; `must` goes on behind "it"."""
        name = f"{self.section}.{key}" if self.section else key
        raise ModelError(f"{self.path}: {name} is {shown(value)}; it {must}.", AGAIN)

    def take(self, key: str, rule: Rule) -> Any:
        """The checked value of a key; raises ModelError."""
        value = self.values.get(key)
        if value is None and rule.default is not _REQUIRED:
            return rule.default
        if key not in self.values:
            name = f"{self.section}.{key}" if self.section else key
            raise ModelError(f"{self.path}: {name} is missing.", AGAIN)
        try:
            return rule.check(value)
        except ValueError as error:
            self.refuse(key, value, str(error))

    def checked(self, rules: Mapping[str, Rule]) -> dict[str, Any]:
        """The checked values of all keys that have a rule; raises ModelError."""
        return {key: self.take(key, rule) for key, rule in rules.items()}

    def inner(self, key: str, *, optional: bool = False) -> "Values":
        """The object below a key; raises ModelError where there is none and it is not `optional`."""
        inner = self.take(key, JsonSection({}) if optional else JsonSection())
        return Values(self.path, f"{self.section}.{key}" if self.section else key, inner)


def shown(value: Any) -> str:
    """A value of a file as a message shows it: JSON's words, cut where it is long."""
    if value is None or type(value) is bool:
        return json.dumps(value)
    return _SHOWN.repr(value)


def read_object(path: Path, most_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `most_bytes`; raises ModelError for anything else."""
    try:
        content = parse_json(read_whole(path, most_bytes))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}.", AGAIN) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object.", AGAIN)
    return content


def parse_json(content: bytes) -> Any:
    """Parse UTF-8 JSON; raises ValueError, also for NaN and Infinity, which are not JSON, and for endless nesting."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def read_whole(path: Path, most_bytes: int) -> bytes:
    """Bytes of a regular file (a link to one too, as the Hugging Face cache has); raises ModelError."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path} is not a regular file.", AGAIN)
            if status.st_size > most_bytes:
                raise ModelError(
                    f"{path} has {format_bytes(status.st_size)}; at most {format_bytes(most_bytes)} are read.", AGAIN
                )
            return file.read(most_bytes)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.", AGAIN) from error


def _open_at_once(path: str, flags: int) -> int:
    """A named pipe in a file's place would be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: Path, most_bytes: int) -> str:
    """UTF-8 text of a regular file; raises ModelError."""
    try:
        return read_whole(path, most_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} cannot be read: {error}.", AGAIN) from error


def token_ids(values: Values, key: str, vocabulary: int) -> tuple[int, ...]:
    """The token or tokens that a key names, none where it is absent; raises ModelError."""
    ids: tuple[int, ...] = values.take(key, ListOf(Integer(0, vocabulary - 1), 0, 256, (), single=True))
    return ids
