"""Parsing of the command line, and exit codes for errors. Imports the module of the named command only.

A VidqaError becomes one paragraph and its exit code, any other exception one line and code 1; `--debug` shows the
traceback.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import vidqa
from vidqa.cli.console import ExitCode, exit_code_for, quiet_closed_pipe, report_error
from vidqa.cli.video_argument import local_video
from vidqa.errors import UsageError, VidqaError

_EPILOG = """exit codes: 0 ok, 1 failed, 2 usage, 3 batch finished with failures, 4 does not fit,
5 model missing, 6 unreadable video, 130 interrupted, 143 terminated"""
_PROGRAM = "vidqa"
# The module below vidqa.cli that has the command's add_NAME_arguments, and the command's line in `vidqa --help`.
COMMANDS = {
    "tui": ("arguments", "open an interactive session (also: vidqa without a command)"),
    "ask": ("ask", "answer questions about a video"),
    "find": ("find", "find the moments of a video that a text points to"),
    "caption": ("caption", "caption folders of videos and images"),
    "plan": ("plan", "show how a question would run and its memory"),
    "frames": ("frames", "write the frames that the model would see as one picture"),
    "sweep": ("sweep", "measure memory and time over frame counts or sizes"),
    "profile": ("profile", "show where one question's memory and time go"),
    "doctor": ("doctor", "check the installation and this machine"),
    "warmup": ("warmup", "compile kernels for this GPU before the first question"),
    "models": ("models", "list the models on this machine"),
    "pull": ("models", "download a model"),
    "history": ("history_command", "list, search and export earlier conversations"),
    "config": ("config_command", "show the settings, check or write the configuration file"),
    "completion": ("completion", "print the code for completion in a shell"),
}


class _Parser(argparse.ArgumentParser):
    """argparse with one paragraph in place of a screen of usage, and a remedy for file names that look like options."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to see more; exit with the code of a wrong usage."""
        hint = ""
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            message = f"`{self.prog}` needs {missing[1]}"
        elif re.match(r"unrecognized arguments: [^-]", message):
            hint = " Put a text of several words in quotes."
        if any(word.startswith("-") and "." in word for word in sys.argv[1:]):
            hint += " For a name that starts with a dash write ./-name, or put -- before it."
        shown = "the commands" if self.prog == _PROGRAM else "its arguments"
        report_error(
            UsageError(f"{message}{'' if message.endswith('?') else '.'}{hint}", f"`{self.prog} --help` lists {shown}.")
        )
        self.exit(ExitCode.USAGE)


def build_parser(names: Collection[str | None] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Return the parser of the command line; only the commands in `names` get their options."""
    parser = _Parser(
        prog=_PROGRAM,
        description="Answers questions about videos with Qwen-VL models on your own GPU or CPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vidqa {vidqa.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    for name, (module, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line)
        if name in names:
            getattr(import_module(f"vidqa.cli.{module}"), f"add_{name}_arguments")(command)
            command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _unknown_command(word: str) -> str:
    """Return what to say about a command that does not exist: a similar one, or what to do with a file."""
    if os.path.exists(word):
        return f"{word!r} is no command. To ask about this file type `vidqa ask {word} QUESTION`, or `vidqa tui {word}`"
    similar = get_close_matches(word, COMMANDS, n=1)
    return f"There is no command {word!r}" + (f". Did you mean `{_PROGRAM} {similar[0]}`?" if similar else "")


def run(arguments: Sequence[str], open_session: Callable[[argparse.Namespace], int] | None = None) -> int:
    """Run a command line; returns its exit code.

    `open_session` runs the interactive session, which this package may not import. It is also what a terminal gets
    without a command.
    """
    if "_ARGCOMPLETE" in os.environ:  # started by a shell for completion
        from vidqa.cli.completion import complete

        complete(build_parser())
    is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if open_session and is_terminal and not arguments:
        arguments = ["tui"]
    named = next((word for word in arguments if not word.startswith("-")), None)  # no option before it has a value
    parser = build_parser([named])
    if named is not None and named not in COMMANDS:
        parser.error(_unknown_command(named))
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return ExitCode.OK
    try:
        with local_video(parsed):
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
