"""`vidqa profile VIDEO`: the result of vidqa.profiling.profiler as text or JSON, and as a plot over time."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.cli.arguments import add_planned_video, choose_model, make_config, make_request, settings_for
from vidqa.cli.console import ExitCode, StderrReporter, format_table, write_json
from vidqa.errors import UsageError
from vidqa.utils.safe_text import safe_line, safe_text
from vidqa.utils.units import format_bytes

if TYPE_CHECKING:
    from vidqa.profiling.memory_trace import Total
    from vidqa.profiling.profiler import Profile

_ANSWER_TOKENS = 16
_SHOWN = 12
_UNFUSED_SCORE_BYTES = 8  # a float32 score and its float32 probability, as the math kernel keeps them


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa profile`."""
    parser.description = (
        "Answers one question under torch.profiler: cumulative and peak memory and time by phase, operator and "
        "kind of tensor. Writes a Chrome trace and a plot of allocated memory over time."
    )
    add_planned_video(
        parser, question_help="default: what happens?", max_tokens=_ANSWER_TOKENS, subs="off", sample="uniform"
    )
    parser.set_defaults(question="what happens?")
    parser.add_argument("--baseline", action="store_true", help="profile plain transformers on the same frames instead")
    parser.add_argument("--out", metavar="FOLDER", default="vidqa-profile", help="default: vidqa-profile")
    parser.add_argument("--picture", choices=("png", "svg", "none"), help="default: png where matplotlib is installed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Profile, write the files, print; returns the exit code."""
    from vidqa.planner.request_checks import check_config, check_request
    from vidqa.video.reader import check_file

    reporter, settings = StderrReporter(arguments.quiet), settings_for(arguments)
    request = make_request(arguments, settings, arguments.question)
    check_request(request)
    check_file(request.video)
    config = make_config(arguments, settings, choose_model(arguments, settings, reporter, request))
    check_config(config)
    folder, picture = _folder(arguments.out), _picture(arguments, reporter)
    trace = folder / "trace.json"
    from vidqa.profiling import profiler  # imports torch: after the checks

    measure = profiler.profile_transformers if arguments.baseline else profiler.profile_vidqa
    profile = measure(config, request, trace)
    files = {"trace": str(trace)}
    if picture:
        from vidqa.cli.charts import draw_timeline

        files["picture"] = str(folder / picture)
        draw_timeline(profile.timeline, _title(profile), files["picture"])
    if arguments.json:
        write_json(_object(profile, request.question, files))
    else:
        sys.stdout.write(safe_text("\n".join(_text_lines(profile))) + "\n")
    for kind, path in files.items():
        reporter.say(f"{kind}: {safe_line(path)}")
    return ExitCode.OK


def _folder(name: str) -> Path:
    """Make the folder for the files; raises UsageError if that fails."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name} cannot be written: {error.strerror}.", "Choose another --out folder.") from error
    return folder


def _picture(arguments: argparse.Namespace, reporter: StderrReporter) -> str | None:
    """Return the plot's file name, None for no plot; raises UsageError for one that cannot be drawn."""
    from vidqa.cli.charts import can_draw, check_target

    if arguments.picture == "none":
        return None
    if arguments.picture is None and not can_draw():
        reporter.say('note: no picture without matplotlib; install it with pip install "vidqa[plot]"')
        return None
    name = f"memory.{arguments.picture or 'png'}"
    check_target(str(Path(arguments.out) / name))
    return name


def _title(profile: "Profile") -> str:
    asked = profile.asked
    return f"{asked.side}: {asked.frames} frames of {asked.width}×{asked.height}, {asked.prompt_tokens} tokens"


def _text_lines(profile: "Profile") -> list[str]:
    asked = profile.asked
    lines = [
        f"question  {_title(profile)} on {asked.device}",
        f"answer    {safe_line(asked.answer)} ({asked.answer_tokens} tokens, first after "
        f"{asked.first_token_seconds:.2f} s, slowed by the profiler)",
        f"peak      {format_bytes(profile.peak_bytes)} of tensors, {format_bytes(asked.weights_bytes)} of it weights",
        "",
    ]
    rows = [
        (phase.name, f"{phase.seconds:.3f}", format_bytes(phase.cumulative_bytes), format_bytes(phase.peak_bytes))
        for phase in profile.phases
    ]
    lines += format_table([("phase", "seconds", "cumulative", "peak"), *rows], "<>>>")
    lines += ["", *_totals("what it is", profile.kinds), "", *_totals("operator", profile.operators, timed=True)]
    largest = [
        (format_bytes(one.size_bytes), one.words, f"{safe_line(one.operator)} {one.shape}")
        for one in profile.at_peak[:_SHOWN]
    ]
    lines += ["", "largest at the peak", *(f"  {line}" for line in format_table(largest, "><<"))]
    return [*lines, "", _compare(profile), *(f"note: {note}" for note in profile.notes)]


def _totals(head: str, totals: "Sequence[Total]", *, timed: bool = False) -> list[str]:
    """Return a table of allocated bytes, cumulative and at the row's own peak."""
    columns = 5 if timed else 4
    rows = [(head, "count", "cumulative", "peak", "seconds")[:columns]]
    for total in totals[:_SHOWN]:
        sizes = (format_bytes(total.cumulative_bytes), format_bytes(total.peak_bytes))
        rows.append((safe_line(total.name), str(total.count), *sizes, f"{total.seconds:.3f}")[:columns])
    lines = format_table(rows, "<>>>>"[:columns])
    if len(totals) > _SHOWN:
        lines.append(f"and {len(totals) - _SHOWN} more in --json")
    return lines


def _compare(profile: "Profile") -> str:
    cumulative, peak = _unfused(profile)
    return (
        f"unfused attention would ask for {format_bytes(cumulative)} of score matrices over "
        f"{profile.facts.layers} layers, {format_bytes(peak)} at once: cumulative is not peak"
    )


def _unfused(profile: "Profile") -> tuple[int, int]:
    """Return the bytes of the score matrices of one pass over the whole prompt: of all layers, and of one."""
    from vidqa.profiling.allocation_classifier import cumulative_score_bytes, peak_score_bytes

    facts, tokens = profile.facts, profile.asked.prompt_tokens
    return (
        cumulative_score_bytes(facts.layers, facts.heads, tokens, _UNFUSED_SCORE_BYTES),
        peak_score_bytes(facts.heads, tokens, _UNFUSED_SCORE_BYTES),
    )


def _object(profile: "Profile", question: str, files: dict[str, str]) -> dict[str, Any]:
    """Return the object of `--json` (docs/reference/json.md)."""
    from vidqa.cli.json_output import SCHEMA_VERSION

    asked = asdict(profile.asked)
    asked.pop("seconds")
    asked["first_token_s"] = round(asked.pop("first_token_seconds"), 6)
    cumulative, peak = _unfused(profile)
    device_seconds = profile.device_seconds
    return {
        "schema_version": SCHEMA_VERSION,
        "question": question,
        "asked": asked,
        "peak_bytes": profile.peak_bytes,
        "phases": [_timed(asdict(phase)) for phase in profile.phases],
        "kinds": [_without(asdict(total), "seconds") for total in profile.kinds],
        "operators": [
            _timed(asdict(total)) | {"device_s": round(device_seconds.get(total.name, 0.0), 6)}
            for total in profile.operators
        ],
        "at_peak": [_without(asdict(one), "begin", "end") for one in profile.at_peak[: 4 * _SHOWN]],
        "unfused_scores": {"cumulative_bytes": cumulative, "peak_bytes": peak},
        "files": files,
        "notes": list(profile.notes),
    }


def _timed(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"seconds": round(row["seconds"], 6)}


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
