"""`vidqa completion bash|zsh|fish`: the code that makes a shell complete vidqa's words.

The shell then starts vidqa itself to learn the words (main hands over to `complete`): argcomplete
reads the parser, and this file knows what the parser cannot: videos, models, devices.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

from vidqa.cli.console import ExitCode

_SHELLS = ("bash", "zsh", "fish")
_FILE_DESTS = ("output", "out", "plot", "file")


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete vidqa's words",
        description='Prints shell code. bash: eval "$(vidqa completion bash)" in ~/.bashrc; zsh: the same with zsh, '
        "after compinit, in ~/.zshrc; fish: vidqa completion fish > ~/.config/fish/completions/vidqa.fish",
    )
    parser.add_argument("shell", choices=_SHELLS, help="which shell reads it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the code; returns the exit code."""
    from argcomplete.shell_integration import shellcode

    # Without bash's own fallback: file names are offered only where a file is meant.
    code = shellcode(["vidqa"], shell=arguments.shell, complete_arguments=["-o", "nospace"])
    sys.stdout.write(code.strip() + "\n")
    return ExitCode.OK


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that set _ARGCOMPLETE, and end the process."""
    import argcomplete
    from argcomplete.completers import SuppressCompleter

    known: dict[str, Callable[..., Any]] = {"video": _videos, "model": _models, "repository": _to_fetch}
    known |= {"device": _devices, "gpu": _gpus} | dict.fromkeys(_FILE_DESTS, _files)
    for action in _actions(parser):
        if action.dest in known and not action.choices:
            action.completer = known[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=SuppressCompleter())


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of the parser and of all below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        yield action


def _videos(prefix: str, **_: Any) -> list[str]:
    from vidqa.video.path_completion import complete_path

    return complete_path(prefix)


def _files(prefix: str, **_: Any) -> list[str]:
    from vidqa.video.path_completion import complete_path

    return complete_path(prefix, lambda name: True)


def _models(prefix: str, **_: Any) -> list[str]:
    """Short names and cached repositories; folders where a path was begun."""
    from vidqa.models.hub import DEMO, cached_names
    from vidqa.models.registry import AUTO, short_names
    from vidqa.video.path_completion import complete_path

    names = [DEMO, AUTO, *short_names(), *cached_names()]
    return names + (complete_path(prefix, lambda name: False) if prefix.startswith((".", "/", "~")) else [])


def _to_fetch(**_: Any) -> list[str]:
    from vidqa.models.registry import short_names

    return list(short_names().values())


def _devices(**_: Any) -> list[str]:
    return ["auto", "cpu", "cuda", "mps"]


def _gpus(**_: Any) -> list[str]:
    from vidqa.devices.gpu_catalog import CATALOG

    return ["all", *(gpu.key for gpu in CATALOG)]
