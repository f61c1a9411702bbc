"""`vidqa config show|set|path|init|validate`: the settings in force with their origins, and the configuration file."""

import argparse
import difflib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vidqa.cli.arguments import add_setting_options, given_flags
from vidqa.cli.console import ExitCode, StderrReporter, format_table, report_error, write_json
from vidqa.config import config_path
from vidqa.errors import UsageError
from vidqa.settings.schema import SETTINGS
from vidqa.utils.safe_text import safe_line

if TYPE_CHECKING:
    from vidqa.settings.load import SourcedSetting


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the parts of `vidqa config` and their options."""
    parser.description = (
        "A setting comes from a flag, else from the environment, else from the configuration file, else from "
        "its default."
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True, title="parts")
    show = parts.add_parser("show", help="show every setting in force and its origin")
    show.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_setting_options(show.add_argument_group("settings to show as if they were given"), SETTINGS)
    show.set_defaults(run=_show)
    change = parts.add_parser("set", help="set one value in the configuration file; its comments stay")
    change.add_argument("key", metavar="KEY", help="as `vidqa config show` lists it, for example model or tui.theme")
    change.add_argument("value", metavar="VALUE", help="checked before it is written")
    change.set_defaults(run=_set)
    parts.add_parser("path", help="print the path of the configuration file").set_defaults(run=_path)
    init = parts.add_parser("init", help="write a configuration file with every default, commented out")
    init.add_argument("--force", action="store_true", help="replace an existing file")
    init.set_defaults(run=_init)
    validate = parts.add_parser("validate", help="list every problem of the settings")
    validate.add_argument("file", metavar="FILE", nargs="?", help="default: the configuration file and the environment")
    validate.set_defaults(run=_validate)
    for part in parts.choices.values():  # also behind the part; one before it is not taken back
        part.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")


def _show(arguments: argparse.Namespace) -> int:
    from vidqa.settings.load import sourced_settings

    path, settings = config_path(), sourced_settings(flags=given_flags(arguments))
    if arguments.json:
        rows = [{"key": one.key, "value": one.written, "origin": one.origin, "where": one.where} for one in settings]
        write_json({"schema_version": 1, "file": str(path), "exists": path.exists(), "settings": rows})
        return ExitCode.OK
    cells = [[safe_line(text) for text in (one.key, _written(one), f"{one.origin} {one.where}")] for one in settings]
    missing = "" if path.exists() else " (missing; `vidqa config init` writes one)"
    lines = [f"file: {safe_line(str(path))}{missing}", "", *format_table(cells, "<<<")]
    sys.stdout.write("\n".join(lines) + "\n")
    return ExitCode.OK


def _written(setting: "SourcedSetting") -> str:
    if setting.written is None:
        return next(f"({known.unset})" for known in SETTINGS if known.key == setting.key)
    return str(setting.written).lower() if isinstance(setting.written, bool) else str(setting.written)


def _set(arguments: argparse.Namespace) -> int:
    from vidqa.settings.edit import remember_setting

    key, path = arguments.key, config_path()
    known = next((setting for setting in SETTINGS if setting.key == key), None)
    if known is None and not key.startswith("keys."):
        raise _no_such_setting(key)
    value = arguments.value if known is None else known.typed(arguments.value)
    remember_setting(path, key, value)
    reporter = StderrReporter(quiet=False)
    reporter.say(f"{safe_line(str(path))}: {safe_line(key)} = {safe_line(json.dumps(value, ensure_ascii=False))}")
    if known is not None and os.environ.get(known.variable):
        reporter.say(f"note: {known.variable} is set in the environment and wins over the file.")
    return ExitCode.OK


def _no_such_setting(key: str) -> UsageError:
    keys = [setting.key for setting in SETTINGS]
    ends = [known for known in keys if known.rpartition(".")[2] == key]
    near = ends or difflib.get_close_matches(key, keys, n=1)
    remedy = f"Did you mean {near[0]}?" if near else f"There is {', '.join(keys)}, and keys.ID for a key."
    return UsageError(f"There is no setting {safe_line(key)}.", remedy)


def _path(arguments: argparse.Namespace) -> int:
    sys.stdout.write(safe_line(str(config_path())) + "\n")
    return ExitCode.OK


def _init(arguments: argparse.Namespace) -> int:
    from vidqa.settings.edit import create

    path = config_path()
    create(path, force=arguments.force)
    sys.stdout.write(safe_line(str(path)) + "\n")
    return ExitCode.OK


def _validate(arguments: argparse.Namespace) -> int:
    """Print every problem of the settings on stderr, a paragraph each; returns the exit code."""
    from vidqa.settings.load import environment_problems, file_problems

    path = Path(arguments.file) if arguments.file else config_path()
    if arguments.file and not path.exists():
        raise UsageError(f"There is no file {path}.", "Leave the name out to check the configuration file.")
    problems = file_problems(path) + ([] if arguments.file else environment_problems(os.environ))
    for problem in problems:
        report_error(problem)
    if problems:
        return ExitCode.USAGE
    result = "nothing is wrong" if path.exists() else "there is no file, and nothing is wrong with the environment"
    StderrReporter(quiet=False).say(f"{safe_line(str(path))}: {result}")
    return ExitCode.OK
