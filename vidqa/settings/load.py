"""The settings in force and the origin of each: flag, else environment, else configuration file, else default."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vidqa.config import config_path
from vidqa.errors import UsageError
from vidqa.settings.schema import ENGINE_SETTINGS, SETTINGS, TUI_SETTINGS, Setting, listed
from vidqa.utils.safe_text import safe_line

_KEYS = "keys."


@dataclass(frozen=True, slots=True)
class TuiSettings:
    """Settings of the interactive session: a theme's name, how images are drawn, whether conversations are saved."""

    theme: str
    images: str
    history: bool
    ascii: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings in force.

    `model` is None without a choice. `weights` and `kv` may be `auto`; `vram_bytes` is None for all free memory,
    `max_wait_seconds` None for no limit or `auto`.
    `subs` is a choice of subtitles or a file's path. `keys` maps the id of a key binding to keys, separated by commas.
    """

    model: str | None
    device: str
    attention: str
    quality: str
    weights: str
    kv: str
    vram_bytes: int | None
    reserve_bytes: int
    max_wait_seconds: float | Literal["auto"] | None
    calibrate: bool
    max_tokens: int
    subs: str
    subtitle_share: float
    prune: Literal["auto", "off"] | float
    sample: Literal["uniform", "change", "auto"]
    focus: Literal["auto", "off"]
    tui: TuiSettings
    keys: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SourcedSetting:
    """A setting with its origin: `value` as vidqa uses it, `written` as the user or the schema wrote it.

    `origin` is flag, environment, file or default; `where` is the flag, the variable, or file and line.
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
    """Return the settings in force; raises UsageError for an unknown key or a value that is not allowed.

    `flags` are values of the command line by key. `key_ids` are the ids that `[keys]` may name; None allows any.
    """
    used = {one.key: one.value for one in sourced_settings(environment, flags, key_ids)}
    engine = {setting.field: used[setting.key] for setting in ENGINE_SETTINGS}
    tui = {setting.field: used[setting.key] for setting in TUI_SETTINGS}
    keys = {key.removeprefix(_KEYS): value for key, value in used.items() if key.startswith(_KEYS)}
    return Settings(**engine, tui=TuiSettings(**tui), keys=keys)


def sourced_settings(
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, str | bool] | None = None,
    key_ids: Sequence[str] | None = None,
) -> list[SourcedSetting]:
    """Return the settings in force with their origins, in the order of SETTINGS, then `keys.*`; raises UsageError."""
    path = config_path(environment)
    problems = [*file_problems(path, key_ids), *environment_problems(environment)]
    if problems:
        more = "" if len(problems) == 1 else f" `vidqa config validate` lists {len(problems) - 1} more."
        raise UsageError(problems[0].what, problems[0].remedy + more)
    file = _read(path)
    bindings = {key: value for key, value in file.values.items() if key.startswith(_KEYS)}
    return [
        *(_sourced(setting, flags or {}, environment, file) for setting in SETTINGS),
        *(SourcedSetting(key, value, value, "file", file.place(key)) for key, value in bindings.items()),
    ]


def _sourced(
    setting: Setting, flags: Mapping[str, str | bool], environment: Mapping[str, str], file: "_SettingsFile"
) -> SourcedSetting:
    written, origin, where = setting.default, "default", ""
    if (flag := flags.get(setting.key)) is not None:
        written, origin, where = setting.typed(flag), "flag", setting.flag
    elif variable := environment.get(setting.variable):
        written, origin, where = setting.typed(variable), "environment", setting.variable
    elif setting.key in file.values:
        written, origin, where = file.values[setting.key], "file", file.place(setting.key)
    value = None if written is None else setting.use(written, f"{where} {safe_line(str(written))}")
    return SourcedSetting(setting.key, value, written, origin, where)


def file_problems(path: Path, key_ids: Sequence[str] | None = None) -> list[UsageError]:
    """Return an error for each problem of a configuration file; a missing file has none."""
    try:
        file = _read(path)
    except UsageError as error:
        return [error]
    problems = []
    for key, value in file.values.items():
        try:
            check_value(key, value, key_ids)
        except UsageError as error:
            problems.append(UsageError(f"{file.place(key)}: {error.what}", error.remedy))
    return problems


def environment_problems(environment: Mapping[str, str]) -> list[UsageError]:
    """Return an error for each VIDQA_ variable with a value that is not allowed."""
    problems = []
    for setting in SETTINGS:
        try:
            if value := environment.get(setting.variable):
                setting.use(setting.typed(value), f"{setting.variable}={safe_line(value)}")
        except UsageError as error:
            problems.append(error)
    return problems


def check_value(key: str, value: Any, key_ids: Sequence[str] | None = None) -> None:
    """Raise UsageError if a configuration file may not have `key = value`."""
    shown = f"{safe_line(key)} = {safe_line(json.dumps(value, ensure_ascii=False, default=str))}"
    if key.startswith(_KEYS):
        _check_binding(key.removeprefix(_KEYS), value, shown, key_ids)
        return
    settings = {setting.key: setting for setting in SETTINGS}
    if key in settings:
        settings[key].use(value, shown)
        return
    near = difflib.get_close_matches(key, settings, n=1)
    remedy = _suggestion(key, near[0]) if near else f"There is {', '.join(settings)}, and the table [keys]."
    raise UsageError(f"{shown}: there is no such setting.", remedy)


def _check_binding(name: str, value: Any, shown: str, key_ids: Sequence[str] | None) -> None:
    """Check a line of `[keys]`: a known id, and keys such as `ctrl+q,f10`."""
    if key_ids is not None and name not in key_ids:
        near = difflib.get_close_matches(name, key_ids, n=3) or key_ids
        raise UsageError(f"{shown}: no key binding has this id.", f"Did you mean {listed(near)}?")
    if not isinstance(value, str) or not all(re.fullmatch(r"\S+", one.strip()) for one in value.split(",")):
        raise UsageError(f"{shown} is not allowed.", 'Write keys in quotes, with commas between: "ctrl+r,f5".')


def _suggestion(key: str, near: str) -> str:
    table, _, name = near.rpartition(".")
    if table:
        return f"Did you mean {name!r} in the table [{table}]?"
    return f"Did you mean {near!r}{', above the first [table]' if '.' in key else ''}?"


@dataclass(frozen=True, slots=True)
class _SettingsFile:
    """A configuration file: its text, and its values by dotted key."""

    path: Path
    text: str
    values: dict[str, Any]

    def place(self, key: str) -> str:
        """Return file and line of a value's end (`config.toml:7`): the shortest beginning that parses and has the key.

        This is exact for every syntax of TOML; files are short.
        """
        name, beginning = key.rpartition(".")[2], ""
        for number, line in enumerate(self.text.splitlines(keepends=True), start=1):
            beginning += line
            if name in beginning and _has(key, beginning):
                return f"{self.path}:{number}"
        return str(self.path)


def _read(path: Path) -> _SettingsFile:
    """Read a configuration file, empty if there is none; raises UsageError if it cannot be read or parsed."""
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


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its dotted key; an empty table with an unknown name counts as a value."""
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and (value or key in {"tui", "keys"}):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value
