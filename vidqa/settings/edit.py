"""Writing of the configuration file: a new one with all defaults, or one value of an existing one."""

import json
import textwrap
from pathlib import Path
from typing import Any

from vidqa.errors import UsageError, VidqaError
from vidqa.settings.load import check_value, file_problems
from vidqa.settings.schema import ENGINE_SETTINGS, TUI_SETTINGS, Setting
from vidqa.utils.atomic_write import write_whole

_HEAD = """\
# Settings of vidqa. Every line is a default: remove its # to change it.
# Environment variables (VIDQA_MODEL and so on) override this file, and flags override both.
# `vidqa config show` shows the settings in force, `vidqa config validate` the problems of this file.
"""
_KEYS_HEAD = """\
# Keys of the app: the id of a binding and its keys, separated by commas. docs/reference/keys.md lists the ids.
# [keys]
# "app.leave" = "ctrl+q,f10"
"""


def template() -> str:
    """Return a configuration file with all defaults in comments."""
    engine = "\n".join(_commented(setting, setting.key) for setting in ENGINE_SETTINGS)
    tui = "\n".join(_commented(setting, setting.dest) for setting in TUI_SETTINGS)
    return f"{_HEAD}\n{engine}\n# The app.\n[tui]\n{tui}\n{_KEYS_HEAD}"


def _commented(setting: Setting, name: str) -> str:
    comment = f"{setting.meaning} ({setting.flag}, {setting.variable}): {setting.allowed}"
    comment += f"; default: {setting.unset}" if setting.default is None else ""
    lines = [f"# {line}" for line in textwrap.wrap(comment, 112, break_on_hyphens=False)]
    example = "2b" if setting.default is None else setting.default
    return "\n".join([*lines, f"# {name} = {json.dumps(example)}", ""])  # JSON's scalars are TOML's too


def create(path: Path, *, force: bool) -> None:
    """Write the template; raises UsageError for an existing file unless `force`."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists already.", "Nothing was written; --force replaces it.")
    _write(path, template())


def remember_setting(path: Path, key: str, value: Any) -> None:
    """Set one value (`tui.theme`) and keep everything else in the file, comments too.

    Raises UsageError if the key or the value is not allowed or the file has problems already, VidqaError if it cannot
    be written.
    """
    import tomlkit

    check_value(key, value)
    for problem in file_problems(path):
        raise problem
    table, _, name = key.partition(".") if "." in key else ("", "", key)
    text = path.read_bytes().decode("utf-8") if path.exists() else ""  # as bytes, to keep line ends
    document: Any = tomlkit.parse(text)
    (document.setdefault(table, tomlkit.table()) if table else document)[name] = value
    _write(path, document.as_string())


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        remedy = "Check its permissions, or name another file in VIDQA_CONFIG."
        raise VidqaError(f"The configuration file {path} cannot be written: {error}.", remedy) from error
