"""`vidqa models` and `vidqa pull MODEL`: list the models of this machine, and fetch one."""

import argparse
import sys

from vidqa.cli.console import ExitCode, StderrReporter, format_table, write_json
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes, format_decimal_bytes


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa models`."""
    parser.description = "Lists the demo model and the models in the Hugging Face cache."
    parser.add_argument("--known", action="store_true", help="list the released models that vidqa knows instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=list_models)


def list_models(arguments: argparse.Namespace) -> int:
    """Print a line for each model; returns the exit code."""
    if arguments.known:
        return _list_known(arguments.json)
    from vidqa.models.checkpoint import read_spec
    from vidqa.models.hub import DEMO, cache_folder, cached_models, demo_folder

    demo_bytes = sum(path.stat().st_size for path in demo_folder().iterdir())
    models = [(DEMO, read_spec(demo_folder()).model_type, demo_bytes, "coloured shapes only")]
    for model in cached_models():
        models.append((model.repository, model.model_type, model.size_bytes, "" if model.runnable else "not runnable"))
    if arguments.json:
        rows = [dict(zip(("name", "type", "size_bytes", "note"), model, strict=True)) for model in models]
        write_json({"schema_version": 1, "cache": str(cache_folder()), "models": rows})
    else:
        cells = [(safe_line(name), format_bytes(size), safe_line(kind), note) for name, kind, size, note in models]
        sys.stdout.write("\n".join(format_table(cells, "<><<")) + "\n")
    return ExitCode.OK


def _list_known(as_json: bool) -> int:
    """Print the released models with what they download, need and score."""
    from dataclasses import asdict

    from vidqa.planner.model_choice import released_models

    models = released_models()
    if as_json:
        rows = [asdict(model) | {"score": round(model.score, 1)} for model in models]
        write_json({"schema_version": 1, "known": rows})
        return ExitCode.OK
    heads = ("--model", "family", "download", "needs at least", "expected score", "repository", "source of the score")
    cells = [
        (model.short_name, model.family, format_decimal_bytes(model.download_bytes), format_bytes(model.least_bytes),
         f"{model.score:.1f}", model.repository, safe_line(model.score_source))
        for model in models
    ]  # fmt: skip
    notes = [
        "",
        "Needs: of GPU memory, for a minute of video. Scores: points of Video-MME without subtitles, in 16 bit.",
    ]
    notes += [f"{model.short_name} can be planned and not run." for model in models if not model.runs]
    sys.stdout.write("\n".join([*format_table([heads, *cells], "<<>>><<"), *notes]) + "\n")
    return ExitCode.OK


def add_pull_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the argument of `vidqa pull`."""
    parser.description = "Downloads a model into the Hugging Face cache; run it again to resume."
    parser.add_argument(
        "repository", metavar="MODEL", help="for example Qwen/Qwen2-VL-2B-Instruct, or a short name: 2b"
    )
    parser.set_defaults(run=pull)


def pull(arguments: argparse.Namespace) -> int:
    """Fetch a model into the Hugging Face cache and print its folder; returns the exit code.

    The name means what it means to `--model`; of the demo model or a folder nothing is fetched.
    """
    from vidqa.cli.model_offer import fetch
    from vidqa.models.hub import is_repository, resolve_model
    from vidqa.models.registry import full_name

    reporter, name = StderrReporter(False), full_name(arguments.repository)
    if is_repository(name):
        folder = fetch(name, reporter)
    else:
        folder = resolve_model(name)
        reporter.say("this model is on this machine: nothing is fetched")
    sys.stdout.write(f"{safe_line(str(folder))}\n")
    return ExitCode.OK
