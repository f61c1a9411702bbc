"""The values in force and where each came from: flag > environment > file > default.

Unknown keys are refused with the nearest valid one. Reads text; opens no video and writes
nothing (vidqa.settings.edit does).
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.config import config_path
from vidqa.errors import UsageError
from vidqa.settings.schema import ENGINE_SETTINGS, SETTINGS, TUI_SETTINGS, Setting, listed
from vidqa.utils.safe_text import safe_line

_KEYS = "keys."


@dataclass(frozen=True, slots=True)
class TuiSettings:
    """How the app looks. `theme` is a name that the app knows, `images` how pictures are drawn.

    `history` says whether conversations are kept.
    """

    theme: str
    images: str
    history: bool
    ascii: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """Every value that is in force. `model` is None where nobody named one.

    `weights` and `kv` may be `auto`; `vram_bytes` is None for what is free, `max_wait_seconds`
    None for as long as it takes. `keys` maps the id of a key binding to keys, comma separated.
    """

    model: str | None
    device: str
    attention: str
    quality: str
    weights: str
    kv: str
    vram_bytes: int | None
    reserve_bytes: int
    max_wait_seconds: float | None
    max_tokens: int
    tui: TuiSettings
    keys: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SourcedSetting:
    """One value in force: `value` as it is used, `written` as the user (or SETTINGS) wrote it.

    `origin` is flag, environment, file or default; `where` the flag, the variable, or file and line.
    """

    key: str
    value: Any
    written: str | int | float | bool | None
    origin: str
    where: str


def load_settings(
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, str | bool] | None = None,
    key_ids: Sequence[str] | None = None,
) -> Settings:
    """Every value in force; raises UsageError for unknown keys and for values that cannot be.

    `flags` are values of the command line by key. `key_ids` are the ids that `[keys]` may name;
    None where the caller does not know them.
    """
    return _as_settings(sourced_settings(environment, flags, key_ids))


def default_settings() -> Settings:
    """What is in force where nobody said anything."""
    return _as_settings([_default(setting) for setting in SETTINGS])


def sourced_settings(
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, str | bool] | None = None,
    key_ids: Sequence[str] | None = None,
) -> tuple[SourcedSetting, ...]:
    """Every value in force with its origin, in the order of SETTINGS, then `keys.*`; raises UsageError."""
    path = config_path(environment)
    found = [*file_problems(path, key_ids), *environment_problems(environment)]
    if found:
        more = "" if len(found) == 1 else f" `vidqa config validate` lists {len(found) - 1} more."
        raise UsageError(found[0].what, found[0].remedy + more)
    file = _opened(path)
    values = [_in_force(setting, flags or {}, environment, file) for setting in SETTINGS]
    keys = [key for key in file.values if key.startswith(_KEYS)]
    return (
        *values,
        *(SourcedSetting(key, file.values[key], file.values[key], "file", file.place(key)) for key in keys),
    )


def file_problems(path: Path, key_ids: Sequence[str] | None = None) -> list[UsageError]:
    """Everything that is wrong with a configuration file; nothing is wrong with one that is not there."""
    try:
        file = _opened(path)
    except UsageError as error:
        return [error]
    problems = []
    for key, value in file.values.items():
        try:
            _check(key, value, f"{safe_line(key)} = {_as_toml(value)}", key_ids)
        except UsageError as error:
            problems.append(UsageError(f"{file.place(key)}: {error.what}", error.remedy))
    return problems


def environment_problems(environment: Mapping[str, str]) -> list[UsageError]:
    """Everything that is wrong with the environment's VIDQA_ values."""
    problems = []
    for setting in SETTINGS:
        try:
            if value := environment.get(setting.variable):
                setting.use(setting.typed(value), f"{setting.variable}={safe_line(value)}")
        except UsageError as error:
            problems.append(error)
    return problems


def _in_force(
    setting: Setting, flags: Mapping[str, str | bool], environment: Mapping[str, str], file: "_SettingsFile"
) -> SourcedSetting:
    """The value of the strongest origin that has one."""
    if (flag := flags.get(setting.key)) is not None:
        shown = f"{setting.flag} {safe_line(str(flag))}"
        return _sourced(setting, flag, shown, "flag", setting.flag)
    if variable := environment.get(setting.variable):
        return _sourced(setting, variable, setting.variable, "environment", setting.variable)
    if setting.key in file.values:
        written = file.values[setting.key]
        return SourcedSetting(setting.key, setting.read(written), written, "file", file.place(setting.key))
    return _default(setting)


def _sourced(setting: Setting, given: str | bool, shown: str, origin: str, where: str) -> SourcedSetting:
    written = setting.typed(given) if isinstance(given, str) else given
    return SourcedSetting(setting.key, setting.use(written, shown), written, origin, where)


def _default(setting: Setting) -> SourcedSetting:
    value = None if setting.default is None else setting.read(setting.default)
    return SourcedSetting(setting.key, value, setting.default, "default", "")


def _as_settings(values: Sequence[SourcedSetting]) -> Settings:
    used = {one.key: one.value for one in values}
    engine = {setting.field: used[setting.key] for setting in ENGINE_SETTINGS}
    look = {setting.field: used[setting.key] for setting in TUI_SETTINGS}
    keys = {key.removeprefix(_KEYS): value for key, value in used.items() if key.startswith(_KEYS)}
    return Settings(**engine, tui=TuiSettings(**look), keys=keys)


def check_value(key: str, value: Any) -> None:
    """Raise UsageError where `key = value` would be refused in a configuration file."""
    _check(key, value, f"{safe_line(key)} = {_as_toml(value)}", None)


def _check(key: str, value: Any, shown: str, key_ids: Sequence[str] | None) -> None:
    if key.startswith(_KEYS):
        _check_binding(key, value, shown, key_ids)
        return
    for setting in SETTINGS:
        if setting.key == key:
            setting.use(value, shown)
            return
    near = difflib.get_close_matches(key, [setting.key for setting in SETTINGS], n=1)
    raise UsageError(f"{shown}: there is no such setting.", _meant(key, near[0]) if near else _all_settings())


def _check_binding(key: str, value: Any, shown: str, key_ids: Sequence[str] | None) -> None:
    """One line of `[keys]`: an id that there is, and keys such as `ctrl+q,f10`."""
    name = key.removeprefix(_KEYS)
    if key_ids is not None and name not in key_ids:
        near = difflib.get_close_matches(name, key_ids, n=3) or key_ids
        raise UsageError(f"{shown}: no key binding has this id.", f"Did you mean {listed(near)}?")
    if not isinstance(value, str) or not all(re.fullmatch(r"\S+", one.strip()) for one in value.split(",")):
        raise UsageError(f"{shown} is not allowed.", 'Write keys in quotes, with commas between: "ctrl+r,f5".')


def _meant(key: str, near: str) -> str:
    table, _, name = near.rpartition(".")
    if table:
        return f"Did you mean {name!r} in the table [{table}]?"
    return f"Did you mean {near!r}{', above the first [table]' if '.' in key else ''}?"


def _all_settings() -> str:
    return f"There is {', '.join(setting.key for setting in SETTINGS)}, and the table [keys]."


def _as_toml(value: Any) -> str:
    """How a value looks in the file, on one line and safe to print."""
    return safe_line(json.dumps(value, ensure_ascii=False, default=str))


@dataclass(frozen=True, slots=True)
class _SettingsFile:
    """A configuration file as it was read: `values` by dotted key."""

    path: Path
    text: str
    values: dict[str, Any]

    def place(self, key: str) -> str:
        """`config.toml:7`: the file and the line where the key's value ends."""
        lines, name = self.text.splitlines(keepends=True), key.rpartition(".")[2]
        first = next((number for number, line in enumerate(lines, start=1) if name in line), len(lines) + 1)
        for number in range(first, len(lines) + 1):
            # Parsing the file up to here is exact for every way of writing TOML, and a file has few lines.
            if _has(key, "".join(lines[:number])):
                return f"{self.path}:{number}"
        return str(self.path)


def _opened(path: Path) -> _SettingsFile:
    """The file, empty where there is none; raises UsageError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        return _SettingsFile(path, text, dict(_flat(tomllib.loads(text))))
    except FileNotFoundError:
        return _SettingsFile(path, "", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The configuration file {path} cannot be read: {error}.", "Mend or remove it.") from error


def _has(key: str, text: str) -> bool:
    try:
        return key in dict(_flat(tomllib.loads(text)))
    except tomllib.TOMLDecodeError:
        return False


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; an empty table of an unknown name counts as a value."""
    for name, value in table.items():
        key = before + name
        if isinstance(value, dict) and (value or key in {"tui", "keys"}):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value
