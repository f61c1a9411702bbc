"""`vidqa sweep VIDEO`: peak memory, tokens and time to the first token over frame counts or sizes.

Renders the rows of `profiling` as a table, JSON and a plot. Measures nothing itself; each
run is a process of its own, so this one stays light.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any

from vidqa.cli.arguments import add_plan_options, make_config, make_request, settings_for
from vidqa.cli.console import ExitCode, StderrReporter, write_json
from vidqa.utils.safe_text import safe_line, safe_text
from vidqa.utils.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vidqa.profiling.sweep_points import SweepRow
    from vidqa.profiling.sweep_runner import Series

_DEFAULT_COUNTS = "2,4,8,16,32"
_DEFAULT_FRAMES_OF_SIZES = "8"
_ANSWER_TOKENS = 16
_WORDS = {"out_of_memory": "out of memory", "does_not_fit": "does not fit", "failed": "failed"}


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "sweep",
        help="measure memory and time over frame counts or sizes",
        description="Runs one question over several frame counts (or sizes), each in a process of its own, and sets "
        "the measured peak beside the planned one. Running out of memory is a result.",
    )
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument("--question", metavar="TEXT", default="what happens?", help="default: what happens?")
    group = parser.add_argument_group("what is swept")
    group.add_argument(
        "--frames", dest="counts", metavar="N,N,...",
        help=f"frame counts, odd ones floored to even as the reference does (default {_DEFAULT_COUNTS})",
    )  # fmt: skip
    group.add_argument("--size", metavar="WxH", help="size of the frames (default: the reference's for each count)")
    group.add_argument(
        "--sizes", metavar="WxH,...",
        help="sweep sizes instead, at the tokens of --frames N (default 8) frames of the largest",
    )  # fmt: skip
    group.add_argument("--start", metavar="TIME", help="first moment to look at: seconds or mm:ss")
    group.add_argument("--end", metavar="TIME", help="last moment to look at: seconds or mm:ss")
    group.add_argument("--baseline", action="store_true", help="run plain transformers beside vidqa")
    group.add_argument(
        "--limit", metavar="SIZE",
        help="let no run take more, for example 14.56GiB: the GPU's allocator, or a process's data on a CPU",
    )  # fmt: skip
    group.add_argument("--plot", metavar="FILE", help="draw the rows: .png or .svg (needs matplotlib)")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    group.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    add_plan_options(parser, max_tokens=_ANSWER_TOKENS)
    parser.set_defaults(run=run, frames=None, fps=None)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns the exit code. What was measured is printed after Ctrl-C too."""
    from vidqa.cli.charts import check_target, draw_sweep
    from vidqa.profiling.sweep_points import SIDES
    from vidqa.profiling.sweep_runner import run_series

    if arguments.plot:
        check_target(arguments.plot)
    talk = StderrReporter(arguments.quiet)
    series = _series(arguments, talk)
    for note in series.notes:
        talk.say(f"note: {note}")
    sides = SIDES if arguments.baseline else SIDES[:1]
    rows: list[SweepRow] = []
    total, interrupted = len(series.points) * len(sides), False
    with _terminated_as_interrupted():
        try:
            for row in run_series(series, sides):
                rows.append(row)
                talk.say(f"[{len(rows)}/{total}] {_line(row)}")
        except KeyboardInterrupt:
            interrupted = True
            talk.say(f"stopped after {len(rows)} of {total} runs")
    if arguments.json:
        write_json(_object(series, rows, over_sizes=bool(arguments.sizes), interrupted=interrupted))
    elif rows:
        sys.stdout.write(safe_text("\n".join(_table(series, rows))) + "\n")
    if arguments.plot and rows:
        over_sizes = bool(arguments.sizes)
        draw_sweep(rows, _title(series), arguments.plot, over_sizes=over_sizes, limit_bytes=series.limit_bytes)
        talk.say(f"drawn: {safe_line(arguments.plot)}")
    if interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED if all(row.outcome == "failed" for row in rows) else ExitCode.OK


def _series(arguments: argparse.Namespace, talk: StderrReporter) -> "Series":
    """What the arguments ask for, checked before anything runs."""
    from vidqa.cli.default_model import choose_model
    from vidqa.errors import UsageError
    from vidqa.planner.request_checks import check_config, check_request
    from vidqa.profiling.sweep_points import parse_counts, parse_sizes
    from vidqa.profiling.sweep_runner import prepare
    from vidqa.video.open import probe_facts

    settings = settings_for(arguments)
    request = make_request(arguments, settings, arguments.question)
    check_request(request)
    sizes = parse_sizes(arguments.sizes) if arguments.sizes is not None else ()
    counts = parse_counts(arguments.counts or (_DEFAULT_FRAMES_OF_SIZES if sizes else _DEFAULT_COUNTS))
    if sizes and len(counts) > 1:
        raise UsageError("--sizes sweeps sizes, and --frames names several counts.", "Give --frames one count.")
    if sizes and request.size:
        raise UsageError("--size and --sizes exclude each other.", "Give one of them.")
    video = probe_facts(request.video, request.stream)
    config = make_config(arguments, settings, choose_model(settings.model, talk))
    check_config(config)
    limit = None if arguments.limit is None else parse_bytes(arguments.limit)
    return prepare(video, request, config, counts, sizes, limit)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does: the run in progress is ended and the rows are printed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _title(series: "Series") -> str:
    return f"{series.checkpoint.name} on {series.device.name}"


def _line(row: "SweepRow") -> str:
    """One run for the progress on stderr."""
    told = f"{row.side}, {row.frames} frames of {row.width}×{row.height}, {row.visual_tokens:,} visual tokens: "
    if row.outcome != "ok":
        return told + f"{_WORDS[row.outcome]} ({safe_line(row.detail)})"
    assert row.peak_bytes is not None and row.first_token_seconds is not None
    told += f"peak {format_bytes(row.peak_bytes)}, first token after {row.first_token_seconds:.2f} s"
    return told + "".join(f"; {safe_line(note)}" for note in row.notes if note.startswith("degraded"))


def _table(series: "Series", rows: "Sequence[SweepRow]") -> list[str]:
    """Rows side by side, and what they say together."""
    sides = list(dict.fromkeys(row.side for row in rows))
    groups: dict[tuple[int, int, int], dict[str, SweepRow]] = {}
    for row in rows:
        groups.setdefault((row.asked, row.width, row.height), {})[row.side] = row
    head = f"{'frames':>9}{'size':>11}{'tokens':>9}"
    lines = [
        f"video     {safe_line(series.video.path)}",
        f"model     {safe_line(series.checkpoint.name)} on {safe_line(series.device.name)}",
        "",
        " " * len(head) + "".join(f"  {side:<36}" for side in sides).rstrip(),
        head + "".join(f"  {'peak':>10}{_predicted_word(side):>12}{'first token':>14}" for side in sides),
    ]
    for (asked, width, height), row_of in groups.items():
        one = next(iter(row_of.values()))
        frames = f"{one.frames}" if one.frames == asked else f"({asked}) {one.frames}"
        cells = "".join(f"  {_cell(row_of.get(side)):>36}" for side in sides)
        lines.append(f"{frames:>9}{f'{width}×{height}':>11}{one.visual_tokens:>9,}{cells}")
    return [*lines, "", *_summary_lines(series, rows)]


def _predicted_word(side: str) -> str:
    return "planned" if side == "vidqa" else "unfused*"


def _cell(row: "SweepRow | None") -> str:
    """Peak, prediction and seconds of one run, or why there are none; 36 wide."""
    if row is None:
        return "–"
    predicted = "–" if row.predicted_peak_bytes is None else format_bytes(row.predicted_peak_bytes)
    if row.outcome != "ok":
        return f"{_WORDS[row.outcome]:>13}{predicted:>9}{'–':>14}"
    assert row.peak_bytes is not None and row.first_token_seconds is not None
    return f"{format_bytes(row.peak_bytes):>10}{predicted:>12}{f'{row.first_token_seconds:.2f} s':>14}"


def _summary_lines(series: "Series", rows: "Sequence[SweepRow]") -> list[str]:
    from vidqa.profiling.sweep_points import summarise

    summary = summarise(rows, series.kv_bytes_per_token)
    lines = []
    for side, told in summary["sides"].items():
        parts = [f"{told['measured']} measured"]
        if told["bytes_per_token"] is not None:
            kv = format_bytes(series.kv_bytes_per_token)
            parts.append(f"{_signed(told['bytes_per_token'])} per visual token (KV cache: {kv})")
        if told["peak_spread"] is not None:
            alone = told["peak_spread_without_runtime"]
            beside = "" if alone is None else f" ({alone:.1%} without the runtime)"
            parts.append(f"peaks within {told['peak_spread']:.1%}{beside}")
        if told["out_of_memory_from_frames"] is not None:
            parts.append(f"out of memory from {told['out_of_memory_from_frames']} frames on")
        lines.append(f"{side:<14}{', '.join(parts)}")
    runtime = next((row.runtime_bytes for row in rows if row.runtime_bytes), None)
    if runtime is not None:
        lines.append(f"{'runtime':<14}{format_bytes(runtime)} of every peak were there before any tensor")
    if summary["same_answers"] is not None:
        lines.append(f"{'answers':<14}{'the same on both sides' if summary['same_answers'] else 'differ; see --json'}")
    lines += [f"{'note':<14}{safe_line(note)}" for note in _told_notes(rows)]
    if any(row.side == "transformers" for row in rows):
        lines.append("* predicted for attention without a fused kernel, as on a T4")
    return lines


def _told_notes(rows: "Sequence[SweepRow]") -> list[str]:
    """What made a run another one than was asked, and where transformers follows another rule; each once."""
    told = (note for row in rows for note in row.notes if row.side == "transformers" or note.startswith("degraded"))
    return list(dict.fromkeys(told))


def _signed(size: float) -> str:
    return f"{'-' if size < 0 else ''}{format_bytes(abs(round(size)))}"


def _object(series: "Series", rows: "Sequence[SweepRow]", *, over_sizes: bool, interrupted: bool) -> dict[str, Any]:
    """The one object of `--json` (README, "JSON")."""
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
    told = asdict(row)
    seconds = told.pop("first_token_seconds")
    return told | {"first_token_s": None if seconds is None else round(seconds, 6), "notes": list(row.notes)}
