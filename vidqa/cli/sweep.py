"""`vidqa sweep VIDEO`: measured memory and time over frame counts or sizes, as a table, JSON and a plot.

Each run is a process, so this one imports no torch.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vidqa.cli.arguments import (
    add_plan_options,
    add_range_options,
    add_video_argument,
    choose_model,
    make_config,
    make_request,
    settings_for,
)
from vidqa.cli.console import ExitCode, StderrReporter, format_table, handle_signals, interrupt, write_json
from vidqa.cli.video_argument import as_named
from vidqa.errors import UsageError
from vidqa.utils.safe_text import safe_line, safe_text
from vidqa.utils.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vidqa.profiling.sweep_points import SweepRow
    from vidqa.profiling.sweep_runner import Sweep

_DEFAULT_COUNTS = "2,4,8,16,32"
_DEFAULT_FRAMES_OF_SIZES = "8"
_ANSWER_TOKENS = 16
_OUTCOMES = {"out_of_memory": "out of memory", "does_not_fit": "does not fit", "failed": "failed"}


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa sweep`."""
    parser.description = (
        "Answers one question at several frame counts (or sizes), each in a separate process, and compares "
        "measured with planned peaks. Running out of memory is a result, not an error."
    )
    add_video_argument(parser)
    parser.add_argument("--question", metavar="TEXT", default="what happens?", help="default: what happens?")
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--frames", dest="counts", metavar="N,N,...",
        help=f"frame counts; odd ones become even (default: {_DEFAULT_COUNTS})",
    )  # fmt: skip
    group.add_argument("--size", metavar="WxH", help="size of the frames (default: the reference's for each count)")
    group.add_argument(
        "--sizes", metavar="WxH,...",
        help="sweep sizes instead, each with as many tokens as --frames N (default 8) of the largest size",
    )  # fmt: skip
    add_range_options(group)
    group.add_argument("--baseline", action="store_true", help="run plain transformers too")
    group.add_argument(
        "--limit", metavar="SIZE",
        help="memory limit of each run, for example 14.56GiB: of the GPU's allocator; on a CPU of the process",
    )  # fmt: skip
    group.add_argument("--plot", metavar="FILE", help="plot the rows as .png or .svg (needs matplotlib)")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    group.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    add_plan_options(parser, max_tokens=_ANSWER_TOKENS, subs="off", sample="uniform")
    parser.set_defaults(run=run, frames=None, fps=None)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns the exit code. Ctrl-C and SIGTERM end the current run; finished runs are printed."""
    from vidqa.cli.charts import check_target, draw_sweep
    from vidqa.profiling.sweep_points import SIDES
    from vidqa.profiling.sweep_runner import run_sweep

    if arguments.plot:
        check_target(arguments.plot)
    reporter = StderrReporter(arguments.quiet)
    series = _series(arguments, reporter)
    for note in series.notes:
        reporter.say(f"note: {note}")
    sides = SIDES if arguments.baseline else SIDES[:1]
    rows: list[SweepRow] = []
    total, interrupted = len(series.points) * len(sides), False
    with handle_signals(interrupt, again=interrupt):
        try:
            for row in run_sweep(series, sides):
                rows.append(row)
                reporter.say(f"[{len(rows)}/{total}] {_line(row)}")
        except KeyboardInterrupt:
            interrupted = True
            reporter.say(f"stopped after {len(rows)} of {total} runs")
    if arguments.json:
        write_json(_object(series, rows, over_sizes=bool(arguments.sizes), interrupted=interrupted))
    elif rows:
        sys.stdout.write(safe_text("\n".join(_text_lines(series, rows))) + "\n")
    if arguments.plot and rows:
        over_sizes = bool(arguments.sizes)
        draw_sweep(rows, _title(series), arguments.plot, over_sizes=over_sizes, limit_bytes=series.limit_bytes)
        reporter.say(f"drawn: {safe_line(arguments.plot)}")
    if interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED if all(row.outcome == "failed" for row in rows) else ExitCode.OK


def _series(arguments: argparse.Namespace, reporter: StderrReporter) -> "Sweep":
    """Return the runs of the arguments; raises VidqaError before anything runs."""
    from vidqa.planner.request_checks import check_config, check_request
    from vidqa.profiling.sweep_points import parse_counts, parse_sizes
    from vidqa.profiling.sweep_runner import prepare
    from vidqa.video.reader import probe_facts

    settings = settings_for(arguments)
    request = make_request(arguments, settings, arguments.question)
    check_request(request)
    sizes = parse_sizes(arguments.sizes) if arguments.sizes is not None else ()
    counts = parse_counts(arguments.counts or (_DEFAULT_FRAMES_OF_SIZES if sizes else _DEFAULT_COUNTS))
    if sizes and len(counts) > 1:
        raise UsageError("--sizes sweeps sizes, and --frames names several counts.", "Give --frames one count.")
    if sizes and request.size:
        raise UsageError("--size and --sizes exclude each other.", "Give one of them.")
    video = as_named(probe_facts(request.video, request.stream, request.picture_times), arguments)
    config = make_config(arguments, settings, choose_model(arguments, settings, reporter, request))
    check_config(config)
    limit = None if arguments.limit is None else parse_bytes(arguments.limit)
    return prepare(video, request, config, counts, sizes, limit)


def _title(series: "Sweep") -> str:
    return f"{series.checkpoint.name} on {series.device.name}"


def _line(row: "SweepRow") -> str:
    """Return a run as one line for stderr."""
    line = f"{row.side}, {row.frames} frames of {row.width}×{row.height}, {row.visual_tokens:,} visual tokens: "
    if row.outcome != "ok":
        return line + f"{_OUTCOMES[row.outcome]} ({safe_line(row.detail)})"
    assert row.peak_bytes is not None and row.first_token_seconds is not None
    line += f"peak {format_bytes(row.peak_bytes)}, first token after {row.first_token_seconds:.2f} s"
    return line + "".join(f"; {safe_line(note)}" for note in row.notes if note.startswith("degraded"))


def _text_lines(series: "Sweep", rows: "Sequence[SweepRow]") -> list[str]:
    """Return a table with a row for each frame count or size, and a summary."""
    sides = list(dict.fromkeys(row.side for row in rows))
    runs: dict[tuple[int, int, int], dict[str, SweepRow]] = {}
    for row in rows:
        runs.setdefault((row.asked, row.width, row.height), {})[row.side] = row
    table = [["", "", "", *(cell for side in sides for cell in (side, "", ""))], ["frames", "size", "tokens"]]
    for side in sides:
        table[1] += ["peak", "planned" if side == "vidqa" else "unfused*", "first token"]
    for (asked, width, height), run_of in runs.items():
        any_run = next(iter(run_of.values()))
        frames = f"{any_run.frames}" if any_run.frames == asked else f"({asked}) {any_run.frames}"
        cells = [cell for side in sides for cell in _cells(run_of.get(side))]
        table.append([frames, f"{width}×{height}", f"{any_run.visual_tokens:,}", *cells])
    return [
        f"video     {safe_line(series.video.path)}",
        f"model     {safe_line(series.checkpoint.name)} on {safe_line(series.device.name)}",
        "",
        *format_table(table, ">" * len(table[0])),
        "",
        *_summary_lines(series, rows),
    ]


def _cells(row: "SweepRow | None") -> tuple[str, str, str]:
    """Return the peak (or why there is none), the predicted peak and the seconds to the first token of a run."""
    if row is None:
        return "–", "–", "–"
    peak = _OUTCOMES.get(row.outcome) or format_bytes(row.peak_bytes or 0)
    predicted = "–" if row.predicted_peak_bytes is None else format_bytes(row.predicted_peak_bytes)
    seconds = "–" if row.first_token_seconds is None else f"{row.first_token_seconds:.2f} s"
    return peak, predicted, seconds


def _summary_lines(series: "Sweep", rows: "Sequence[SweepRow]") -> list[str]:
    from vidqa.profiling.sweep_points import summarise

    summary = summarise(rows, series.kv_bytes_per_token)
    lines = [(side, _side_summary(values, series.kv_bytes_per_token)) for side, values in summary["sides"].items()]
    runtime = next((row.runtime_bytes for row in rows if row.runtime_bytes), None)
    if runtime is not None:
        lines.append(("runtime", f"{format_bytes(runtime)} of every peak were in use before any tensor"))
    if summary["same_answers"] is not None:
        lines.append(("answers", "the same on both sides" if summary["same_answers"] else "differ; see --json"))
    # Notes on runs that were degraded, and on rules in which transformers differs; each once.
    notes = (note for row in rows for note in row.notes if row.side == "transformers" or note.startswith("degraded"))
    lines += [("note", safe_line(note)) for note in dict.fromkeys(notes)]
    text = [f"{name:<14}{value}" for name, value in lines]
    if any(row.side == "transformers" for row in rows):
        text.append("* predicted for attention without a fused kernel, as on a T4")
    return text


def _side_summary(values: dict[str, Any], kv_bytes_per_token: int) -> str:
    parts = [f"{values['measured']} measured"]
    if (slope := values["bytes_per_token"]) is not None:
        sign = "-" if slope < 0 else ""
        kv = format_bytes(kv_bytes_per_token)
        parts.append(f"{sign}{format_bytes(abs(round(slope)))} per visual token (KV cache: {kv})")
    if values["peak_spread"] is not None:
        alone = values["peak_spread_without_runtime"]
        without_runtime = "" if alone is None else f" ({alone:.1%} without the runtime)"
        parts.append(f"peaks within {values['peak_spread']:.1%}{without_runtime}")
    if values["out_of_memory_from_frames"] is not None:
        parts.append(f"out of memory from {values['out_of_memory_from_frames']} frames on")
    return ", ".join(parts)


def _object(series: "Sweep", rows: "Sequence[SweepRow]", *, over_sizes: bool, interrupted: bool) -> dict[str, Any]:
    """Return the object of `--json` (docs/reference/json.md)."""
    from vidqa.cli.json_output import SCHEMA_VERSION, video_object
    from vidqa.profiling.sweep_points import summarise

    return {
        "schema_version": SCHEMA_VERSION,
        "video": video_object(series.video),
        "question": series.request.question,
        "model": series.checkpoint.name,
        "device": {"name": series.device.name, "kind": series.device.kind, "total_bytes": series.device.total_bytes},
        "swept": "sizes" if over_sizes else "frames",
        "limit_bytes": series.limit_bytes,
        "rows": [_row_object(row) for row in rows],
        "summary": summarise(rows, series.kv_bytes_per_token),
        "notes": list(series.notes),
        "interrupted": interrupted,
    }


def _row_object(row: "SweepRow") -> dict[str, Any]:
    values = asdict(row)
    seconds = values.pop("first_token_seconds")
    return values | {"first_token_s": None if seconds is None else round(seconds, 6), "notes": list(row.notes)}
