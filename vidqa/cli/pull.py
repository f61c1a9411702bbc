"""`vidqa pull OWNER/NAME`: fetch a model into the Hugging Face cache."""

import argparse
import sys
from typing import Any

from vidqa.cli.console import ExitCode
from vidqa.utils.safe_text import safe_line


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "pull", help="fetch a model", description="Fetches a model with progress; run again to go on after a break."
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="for example Qwen/Qwen2-VL-2B-Instruct")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch; the folder is printed on stdout."""
    from vidqa.models.hub import pull_model

    sys.stdout.write(f"{safe_line(str(pull_model(arguments.repository)))}\n")
    return ExitCode.OK
