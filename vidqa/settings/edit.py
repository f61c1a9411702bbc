"""Writing the configuration file: a new one with every default, or one value in the user's own.

What is written is checked by vidqa.settings.load first. Prints nothing.
"""

import textwrap
from pathlib import Path
from typing import Any

from vidqa.errors import UsageError, VidqaError
from vidqa.settings.load import check_value, file_problems
from vidqa.settings.schema import ENGINE_SETTINGS, TUI_SETTINGS, Setting
from vidqa.utils.atomic_write import write_whole

_HEAD = """\
# Settings of vidqa. Every line here is the default: take the # away from one to change it.
# The environment (VIDQA_MODEL and so on) wins over this file, and flags win over both.
# `vidqa config show` says what is in force and why, `vidqa config validate` what is wrong here.
"""
_TUI_HEAD = "# The app."
_KEYS_HEAD = """\
# Keys of the app: the id of a binding and its keys, with commas between. The app's help (F1) names the ids.
# [keys]
# "app.leave" = "ctrl+q,f10"
"""


def template() -> str:
    """A configuration file that says every default in comments."""
    engine = "\n".join(_commented(setting, setting.key) for setting in ENGINE_SETTINGS)
    look = "\n".join(_commented(setting, setting.dest) for setting in TUI_SETTINGS)
    return f"{_HEAD}\n{engine}\n{_TUI_HEAD}\n[tui]\n{look}\n{_KEYS_HEAD}"


def _commented(setting: Setting, name: str) -> str:
    told = f"{setting.meaning} ({setting.flag}, {setting.variable}): {setting.allowed}"
    told += f"; default: {setting.unset}" if setting.default is None else ""
    lines = [f"# {line}" for line in textwrap.wrap(told, 112, break_on_hyphens=False)]
    return "\n".join([*lines, f"# {name} = {_toml(setting.example)}", ""])


def _toml(value: str | int | bool) -> str:
    import tomlkit

    return tomlkit.item(value).as_string()


def create(path: Path, *, force: bool) -> None:
    """Write the template; raises UsageError where a file is there already (unless `force`)."""
    if path.exists() and not force:
        raise UsageError(f"{path} is there already.", "Nothing was written; --force replaces it.")
    _write(path, template())


def remember_setting(path: Path, key: str, value: Any) -> None:
    """Set one value (`tui.theme`) in the file and keep everything else in it, comments too.

    Raises UsageError where the key or the value would be refused or the file has problems already,
    VidqaError where it cannot be written.
    """
    import tomlkit

    check_value(key, value)
    for problem in file_problems(path):
        raise problem  # what is in the file already is the user's to mend
    table, _, name = key.partition(".") if "." in key else ("", "", key)
    text = path.read_bytes().decode("utf-8") if path.exists() else ""  # as bytes: a file keeps its line ends
    document: Any = tomlkit.parse(text)
    place = document.setdefault(table, tomlkit.table()) if table else document
    place[name] = value
    _write(path, document.as_string())


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        remedy = "Check its permissions, or name another file in VIDQA_CONFIG."
        raise VidqaError(f"The configuration file {path} cannot be written: {error}.", remedy) from error
