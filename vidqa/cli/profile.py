"""`vidqa profile VIDEO`: where one question's memory and time went.

Renders what vidqa.profiling.profiler found as text or JSON, and draws its timeline. Measures
nothing itself.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.cli.arguments import add_planned_video, make_config, make_request, settings_for
from vidqa.cli.console import ExitCode, StderrReporter, write_json
from vidqa.utils.safe_text import safe_line, safe_text
from vidqa.utils.units import format_bytes

if TYPE_CHECKING:
    from vidqa.profiling.memory_trace import Total
    from vidqa.profiling.profiler import Profile

_ANSWER_TOKENS = 16
_SHOWN = 12
_UNFUSED_SCORE_BYTES = 8  # a float32 score and its float32 probability, as the math kernel keeps them


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "profile",
        help="show where one question's memory and time go",
        description="Answers one question under torch.profiler: memory and time by phase, by operator and by what the "
        "memory is for, cumulative beside peak. Writes a Chrome trace and a picture of living memory over time.",
    )
    add_planned_video(parser, max_tokens=_ANSWER_TOKENS)
    parser.add_argument("--baseline", action="store_true", help="profile plain transformers on the same frames instead")
    parser.add_argument("--out", metavar="FOLDER", default="vidqa-profile", help="default: vidqa-profile")
    parser.add_argument("--picture", choices=("png", "svg", "none"), help="default: png where matplotlib is installed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Profile, write the files, print; returns the exit code."""
    from vidqa.cli.default_model import choose_model
    from vidqa.planner.request_checks import check_config, check_request
    from vidqa.video.probe import check_file

    talk, settings = StderrReporter(arguments.quiet), settings_for(arguments)
    request = make_request(arguments, settings, arguments.question)
    check_request(request)
    check_file(request.video)
    config = make_config(arguments, settings, choose_model(settings.model, talk))
    check_config(config)
    folder, picture = _folder(arguments.out), _picture(arguments, talk)
    trace = folder / "trace.json"
    from vidqa.profiling import profiler  # torch: after everything that can be refused was

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
        sys.stdout.write(safe_text("\n".join(_table(profile))) + "\n")
    for kind, path in files.items():
        talk.say(f"{kind}: {safe_line(path)}")
    return ExitCode.OK


def _folder(name: str) -> Path:
    """The folder to write to, made if it is not there; raises UsageError where that cannot be."""
    from vidqa.errors import UsageError

    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name} cannot be written: {error.strerror}.", "Choose another --out folder.") from error
    return folder


def _picture(arguments: argparse.Namespace, talk: StderrReporter) -> str | None:
    """The picture's name, or None where none is drawn; raises UsageError for one that was asked and cannot be."""
    from vidqa.cli.charts import can_draw, check_target

    if arguments.picture == "none":
        return None
    if arguments.picture is None and not can_draw():
        talk.say('note: no picture without matplotlib; install it with pip install "vidqa[plot]"')
        return None
    name = f"memory.{arguments.picture or 'png'}"
    check_target(str(Path(arguments.out) / name))
    return name


def _title(profile: "Profile") -> str:
    asked = profile.asked
    return f"{asked.side}: {asked.frames} frames of {asked.width}×{asked.height}, {asked.prompt_tokens} tokens"


def _table(profile: "Profile") -> list[str]:
    asked = profile.asked
    lines = [
        f"question  {_title(profile)} on {asked.device}",
        f"answer    {safe_line(asked.answer)} ({asked.answer_tokens} tokens, first after "
        f"{asked.first_token_seconds:.2f} s, slowed by the profiler)",
        f"peak      {format_bytes(profile.peak_bytes)} of tensors, {format_bytes(asked.weights_bytes)} of it weights",
        "",
        f"{'phase':<28}{'seconds':>10}{'cumulative':>14}{'peak':>12}",
    ]
    lines += [
        f"{phase.name:<28}{phase.seconds:>10.3f}{format_bytes(phase.cumulative_bytes):>14}"
        f"{format_bytes(phase.peak_bytes):>12}"
        for phase in profile.phases
    ]
    lines += ["", *_totals("what it is", profile.kinds), "", *_totals("operator", profile.operators, timed=True)]
    lines += ["", "largest at the peak"]
    lines += [
        f"  {format_bytes(one.size_bytes):>10}  {one.words:<26}{safe_line(one.operator)} {one.shape}"
        for one in profile.at_peak[:_SHOWN]
    ]
    return [*lines, "", _compare(profile), *(f"note: {note}" for note in profile.notes)]


def _totals(head: str, totals: "Sequence[Total]", *, timed: bool = False) -> list[str]:
    """Cumulative beside peak; peak is what lived at once of what this row asked for."""
    width = 50 if timed else 38
    lines = [f"{head:<{width}}{'count':>7}{'cumulative':>14}{'peak':>12}" + (f"{'seconds':>10}" if timed else "")]
    for total in totals[:_SHOWN]:
        line = f"{safe_line(total.name):<{width}}{total.count:>7}{format_bytes(total.cumulative_bytes):>14}"
        lines.append(line + f"{format_bytes(total.peak_bytes):>12}" + (f"{total.seconds:>10.3f}" if timed else ""))
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
    """(cumulative, at once) bytes of the score matrices of one pass over the whole prompt."""
    from vidqa.profiling.allocation_classifier import cumulative_score_bytes, peak_score_bytes

    facts, tokens = profile.facts, profile.asked.prompt_tokens
    return (
        cumulative_score_bytes(facts.layers, facts.heads, tokens, _UNFUSED_SCORE_BYTES),
        peak_score_bytes(facts.heads, tokens, _UNFUSED_SCORE_BYTES),
    )


def _object(profile: "Profile", question: str, files: dict[str, str]) -> dict[str, Any]:
    """The one object of `--json` (README, "JSON")."""
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


def _timed(told: dict[str, Any]) -> dict[str, Any]:
    seconds = told.pop("seconds")
    return told | {"seconds": round(seconds, 6)}


def _without(told: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in names}
