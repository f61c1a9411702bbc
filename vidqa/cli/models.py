"""`vidqa models`: which models are here, with their size."""

import argparse
import sys
from typing import Any

from vidqa.cli.console import ExitCode, write_json
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("models", help="list the models on this machine", description="Lists cached models.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line per model; returns the exit code."""
    from vidqa.models.hub import DEMO, cache_folder, cached_models, demo_folder

    demo_bytes = sum(path.stat().st_size for path in demo_folder().iterdir())
    rows = [(DEMO, "qwen2_vl", demo_bytes, "coloured shapes only")]
    for model in cached_models():
        rows.append((model.repository, model.model_type, model.size_bytes, "" if model.runnable else "not runnable"))
    if arguments.json:
        names = ("name", "type", "size_bytes", "note")
        models = [dict(zip(names, row, strict=True)) for row in rows]
        write_json({"schema_version": 1, "cache": str(cache_folder()), "models": models})
        return ExitCode.OK
    width = max(len(name) for name, *_ in rows)
    for name, kind, size, note in rows:
        sys.stdout.write(
            f"{safe_line(name):{width}}  {format_bytes(size):>9}  {safe_line(kind)}  {note}".rstrip() + "\n"
        )
    return ExitCode.OK
