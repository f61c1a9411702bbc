"""Arguments to a subcommand, errors to exit codes. Imports nothing heavy.

One of the two borders where exceptions end: a VidqaError becomes one paragraph and a
code, anything else one line and code 1 (`--debug` shows the traceback).
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import vidqa
from vidqa.cli import (
    ask,
    caption,
    completion,
    config_command,
    doctor,
    frames,
    models,
    plan,
    profile,
    pull,
    sweep,
    tui,
    warmup,
)
from vidqa.cli.console import ExitCode, exit_code_for, quiet_closed_pipe, report_error
from vidqa.errors import VidqaError

_EPILOG = """exit codes: 0 ok, 1 failed, 2 usage, 3 batch finished with failures, 4 does not fit,
5 model missing, 6 unreadable video, 130 interrupted, 143 terminated"""


class _Parser(argparse.ArgumentParser):
    """argparse with the remedy for file names that look like options."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        hint = " For a name that starts with a dash write ./-name, or put -- before it."
        dashed = any(word.startswith("-") and "." in word for word in sys.argv[1:])
        self.exit(ExitCode.USAGE, f"vidqa: {message}.{hint if dashed else ''}\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="vidqa",
        description="Answers questions about videos with Qwen2-VL on your own GPU or CPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vidqa {vidqa.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    for command in (
        tui,
        ask,
        caption,
        plan,
        frames,
        sweep,
        profile,
        doctor,
        warmup,
        models,
        pull,
        config_command,
        completion,
    ):
        command.add_parser(commands)
    for subparser in commands.choices.values():
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: Sequence[str], open_session: Callable[[argparse.Namespace], int] | None = None) -> int:
    """Parse, run, and turn whatever happened into an exit code.

    `open_session` opens the interactive session, which this side must not know; a terminal gets it
    where no command is given.
    """
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for words
        completion.complete(parser)
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        if open_session is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
            parser.print_help()
            return ExitCode.OK
        parsed = parser.parse_args(["tui"])
    try:
        code: int = open_session(parsed) if open_session and parsed.command == "tui" else parsed.run(parsed)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        quiet_closed_pipe(sys.stdout)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except VidqaError as error:
        if parsed.debug:
            raise
        report_error(error)
        return exit_code_for(error)
    except Exception as error:
        if parsed.debug:
            raise
        what = f"Something unexpected went wrong: {type(error).__name__}: {error}."
        report_error(VidqaError(what, "Run again with --debug and report the traceback."))
        return ExitCode.FAILED
