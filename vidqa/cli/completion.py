"""`vidqa completion bash|zsh|fish`: code for shell completion, and the completion itself.

The shell runs `vidqa` with _ARGCOMPLETE set; argcomplete reads commands and options from the parser, and the completers
below add videos, models, devices and GPUs.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from vidqa.cli.console import ExitCode

_SHELLS = ("bash", "zsh", "fish")
_FILE_DESTS = ("output", "out", "plot", "file", "files_from", "timestamps")


def add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa completion`."""
    parser.description = (
        'Prints shell code. bash: eval "$(vidqa completion bash)" in ~/.bashrc; zsh: the same with zsh, '
        "after compinit, in ~/.zshrc; fish: vidqa completion fish > ~/.config/fish/completions/vidqa.fish"
    )
    parser.add_argument("shell", choices=_SHELLS, help="the shell")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the shell's code; returns the exit code."""
    from argcomplete.shell_integration import shellcode

    # No fallback to bash's own completion, which would complete file names for every argument.
    code = shellcode(["vidqa"], shell=arguments.shell, complete_arguments=["-o", "nospace"])
    sys.stdout.write(code.strip() + "\n")
    return ExitCode.OK


def complete(parser: argparse.ArgumentParser) -> None:
    """Print the completions for the shell that set _ARGCOMPLETE, and exit."""
    import argcomplete
    from argcomplete.completers import SuppressCompleter

    completers = {
        "video": _videos, "paths": _videos_and_images, "model": _models, "repository": _repositories,
        "device": _devices, "gpu": _gpus,
    }  # fmt: skip
    completers |= dict.fromkeys(_FILE_DESTS, _files)
    for action in _actions(parser):
        if action.dest in completers and not action.choices:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=SuppressCompleter())


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield every option and argument of a parser and its subparsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)
        yield action


def _videos(prefix: str, **_: Any) -> list[str]:
    from vidqa.video.path_completion import complete_path

    return complete_path(prefix)


def _videos_and_images(prefix: str, **_: Any) -> list[str]:
    from vidqa.video.path_completion import complete_path, is_image_name, is_video_name

    return complete_path(prefix, lambda name: is_video_name(name) or is_image_name(name))


def _files(prefix: str, **_: Any) -> list[str]:
    from vidqa.video.path_completion import complete_path

    return complete_path(prefix, lambda name: True)


def _models(prefix: str, **_: Any) -> list[str]:
    """Return short names and cached repositories, and folders for the beginning of a path."""
    from vidqa.models.hub import DEMO, cached_names
    from vidqa.models.registry import AUTO
    from vidqa.video.path_completion import complete_path

    names = [DEMO, AUTO, *_short_names(), *cached_names()]
    return names + (complete_path(prefix, lambda name: False) if prefix.startswith((".", "/", "~")) else [])


def _repositories(**_: Any) -> list[str]:
    from vidqa.models.registry import runnable_models

    return [*runnable_models(), *_short_names()]


def _short_names() -> list[str]:
    """Return the short names of models that run."""
    from vidqa.models.registry import runnable_models, short_names

    return [short for short, name in short_names().items() if name in runnable_models()]


def _devices(**_: Any) -> list[str]:
    return ["auto", "cpu", "cuda", "mps"]


def _gpus(**_: Any) -> list[str]:
    from vidqa.devices.gpu_catalog import CATALOG

    return ["all", *(gpu.key for gpu in CATALOG)]
