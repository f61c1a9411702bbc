"""JSON files of a checkpoint, and rules for their values.

A rule returns the checked value, or raises ValueError with what the value must be. `Values.checked` returns only keys
that have a rule.
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
from vidqa.utils.content_hash import open_without_blocking
from vidqa.utils.units import format_bytes

CONFIG_BYTES = 4 * 2**20  # the index of a model of 72 billion weights takes 0.1 MiB
FETCH_AGAIN = "Fetch the model again with `vidqa pull`, or correct the file."
MAX_VOCABULARY = 2**22
_REQUIRED = object()
_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlevel = 60, 2


class Rule(Protocol):
    """What a value must be. `default` is used where the key is absent or null."""

    @property
    def default(self) -> Any:
        """The value of an absent key."""

    def check(self, value: Any) -> Any:
        """Return the value as it is used; raise ValueError with what it must be."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number from `low` to `high`."""

    low: int
    high: int
    default: Any = _REQUIRED

    def check(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:  # isinstance would accept True
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
    """One of several strings."""

    options: tuple[str, ...]
    default: Any = _REQUIRED

    def check(self, value: Any) -> str:
        if type(value) is not str or value not in self.options:
            raise ValueError(f"must be {' or '.join(self.options)}")
        return value


@dataclass(frozen=True, slots=True)
class Text:
    """A string of 1 to `max_length` characters."""

    max_length: int
    default: Any = _REQUIRED

    def check(self, value: Any) -> str:
        if type(value) is not str or not 0 < len(value) <= self.max_length:
            raise ValueError(f"must be a text of 1 to {self.max_length} characters")
        return value


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of `min_items` to `max_items` values of one rule; `single` accepts one value without a list."""

    item: Rule
    min_items: int
    max_items: int
    default: Any = _REQUIRED
    single: bool = False

    def check(self, value: Any) -> tuple[Any, ...]:
        values = [value] if self.single and not isinstance(value, list) else value
        if not isinstance(values, list) or not self.min_items <= len(values) <= self.max_items:
            fixed = self.min_items == self.max_items
            count = self.max_items if fixed else f"{self.min_items} to {self.max_items}"
            raise ValueError(f"must be a list of {count} values")
        try:
            return tuple(map(self.item.check, values))
        except ValueError as error:
            raise ValueError(f"has a value that {error}") from error


@dataclass(frozen=True, slots=True)
class JsonSection:
    """An object, whose keys have other rules."""

    default: Any = _REQUIRED

    def check(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object")
        return value


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one object of a file. `section` is the dotted path to the object."""

    path: Path | str
    section: str
    values: Mapping[str, Any]

    def refuse(self, key: str, value: Any, must: str) -> NoReturn:
        """Raise ModelError with the file, the key, the value, and "it" followed by `must`."""
        raise ModelError(f"{self.path}: {self._path_of(key)} is {quoted(value)}; it {must}.", FETCH_AGAIN)

    def take(self, key: str, rule: Rule) -> Any:
        """Return the checked value of a key; raise ModelError."""
        value = self.values.get(key)
        if value is None and rule.default is not _REQUIRED:
            return rule.default
        if key not in self.values:
            raise ModelError(f"{self.path}: {self._path_of(key)} is missing.", FETCH_AGAIN)
        try:
            return rule.check(value)
        except ValueError as error:
            self.refuse(key, value, str(error))

    def checked(self, rules: Mapping[str, Rule]) -> dict[str, Any]:
        """Return the checked values of all keys that have a rule; raise ModelError."""
        return {key: self.take(key, rule) for key, rule in rules.items()}

    def inner(self, key: str, *, optional: bool = False) -> "Values":
        """Return the object at a key, an empty one if it is absent and `optional`; raise ModelError."""
        inner = self.take(key, JsonSection({}) if optional else JsonSection())
        return Values(self.path, self._path_of(key), inner)

    def _path_of(self, key: str) -> str:
        return f"{self.section}.{key}" if self.section else key


def quoted(value: Any) -> str:
    """Return a value of a file for a message: as JSON writes it, shortened if it is long."""
    if value is None or type(value) is bool:
        return json.dumps(value)
    return _REPR.repr(value)


def read_object(path: Path, max_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `max_bytes`; raise ModelError."""
    try:
        content = parse_json(_read_bytes(path, max_bytes))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}.", FETCH_AGAIN) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object.", FETCH_AGAIN)
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """Read UTF-8 text from a file of at most `max_bytes`; raise ModelError."""
    try:
        return _read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} cannot be read: {error}.", FETCH_AGAIN) from error


def parse_json(content: bytes) -> Any:
    """Parse UTF-8 JSON; raise ValueError, also for NaN and Infinity (not JSON) and for too deep nesting."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a regular file, or a link to one as in the Hugging Face cache; raise ModelError."""
    try:
        with open(path, "rb", opener=open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path} is not a regular file.", FETCH_AGAIN)
            if status.st_size > max_bytes:
                limit = format_bytes(max_bytes)
                raise ModelError(f"{path} has {format_bytes(status.st_size)}; at most {limit} are read.", FETCH_AGAIN)
            return file.read(max_bytes)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.", FETCH_AGAIN) from error


def token_ids(values: Values, key: str, vocabulary: int) -> tuple[int, ...]:
    """Return the token id or ids at a key, none if it is absent; raise ModelError."""
    ids: tuple[int, ...] = values.take(key, ListOf(Integer(0, vocabulary - 1), 0, 256, (), single=True))
    return ids
