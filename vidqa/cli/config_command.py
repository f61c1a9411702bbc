"""`vidqa config show|path|init|validate`: what is set, where it was set, and what is wrong with it.

Renders what vidqa.settings.load finds; decides no value itself.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.cli.arguments import add_setting_options, given_flags
from vidqa.cli.console import ExitCode, StderrReporter, report_error, write_json
from vidqa.settings.schema import SETTINGS
from vidqa.utils.safe_text import safe_line

if TYPE_CHECKING:
    from vidqa.settings.load import Sourced


def add_parser(commands: Any) -> None:
    """Declare the command and its four parts."""
    parser = commands.add_parser(
        "config",
        help="show, check or start the configuration file",
        description="Settings come from flags, the environment, the configuration file and defaults; the first of "
        "these that says something wins.",
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True, title="parts")
    show = parts.add_parser("show", help="every value in force, and where it comes from")
    show.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_setting_options(show.add_argument_group("flags to look at as if they were given"), SETTINGS)
    show.set_defaults(run=_show)
    parts.add_parser("path", help="where the configuration file is looked for").set_defaults(run=_path)
    init = parts.add_parser("init", help="write a configuration file with every default, commented out")
    init.add_argument("--force", action="store_true", help="replace a file that is there")
    init.set_defaults(run=_init)
    validate = parts.add_parser("validate", help="list everything that is wrong with the settings")
    validate.add_argument("file", metavar="FILE", nargs="?", help="default: the one in use, and the environment")
    validate.set_defaults(run=_validate)
    for part in parts.choices.values():  # also behind the part; one before it is not taken back
        part.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")


def _show(arguments: argparse.Namespace) -> int:
    from vidqa.config import config_path
    from vidqa.settings.load import sourced_settings

    path, values = config_path(), sourced_settings(flags=given_flags(arguments))
    if arguments.json:
        write_json(_object(path, values))
        return ExitCode.OK
    told = [(one.key, _written(one), f"{one.origin} {one.where}".rstrip()) for one in values]
    widths = [max(len(row[column]) for row in told) for column in (0, 1)]
    lines = [f"{key:{widths[0]}}  {written:{widths[1]}}  {origin}" for key, written, origin in told]
    there = "" if path.exists() else " (not there; `vidqa config init` writes one)"
    sys.stdout.write("\n".join([f"file: {safe_line(str(path))}{there}", "", *map(safe_line, lines)]) + "\n")
    return ExitCode.OK


def _written(one: "Sourced") -> str:
    if one.written is None:
        return next(f"({setting.unset})" for setting in SETTINGS if setting.key == one.key)
    return str(one.written).lower() if isinstance(one.written, bool) else safe_line(str(one.written))


def _object(path: Path, values: "tuple[Sourced, ...]") -> dict[str, Any]:
    """The one object of `--json`."""
    from vidqa.cli.json_output import SCHEMA_VERSION

    rows = [{"key": one.key, "value": one.written, "origin": one.origin, "where": one.where} for one in values]
    return {"schema_version": SCHEMA_VERSION, "file": str(path), "exists": path.exists(), "settings": rows}


def _path(arguments: argparse.Namespace) -> int:
    from vidqa.config import config_path

    sys.stdout.write(safe_line(str(config_path())) + "\n")
    return ExitCode.OK


def _init(arguments: argparse.Namespace) -> int:
    from vidqa.config import config_path
    from vidqa.settings.edit import create

    path = config_path()
    create(path, force=arguments.force)
    sys.stdout.write(safe_line(str(path)) + "\n")
    return ExitCode.OK


def _validate(arguments: argparse.Namespace) -> int:
    """Every problem on stderr, one paragraph each."""
    from vidqa.config import config_path
    from vidqa.errors import UsageError
    from vidqa.settings.load import environment_problems, file_problems

    path = Path(arguments.file) if arguments.file else config_path()
    if arguments.file and not path.exists():
        raise UsageError(f"There is no file {path}.", "Leave the name out to look at the one in use.")
    problems = file_problems(path) + ([] if arguments.file else environment_problems(os.environ))
    for problem in problems:
        report_error(problem)
    if problems:
        return ExitCode.USAGE
    told = "nothing is wrong" if path.exists() else "there is no file, and nothing is wrong with the environment"
    StderrReporter(quiet=False).say(f"{safe_line(str(path))}: {told}")
    return ExitCode.OK
