"""`vidqa plan VIDEO`: the plan of a question as text or JSON, or of a catalog of GPUs as a matrix. Loads no weights."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidqa.cli.arguments import (
    PLANNED_QUESTION_HELP,
    add_planned_video,
    make_config,
    make_planned_request,
    settings_for,
)
from vidqa.cli.console import ExitCode, StderrReporter, format_table, write_json
from vidqa.cli.json_output import SCHEMA_VERSION, plan_object, video_object
from vidqa.cli.model_offer import assumed_model
from vidqa.cli.plan_gpus import print_gpus
from vidqa.cli.video_argument import as_named
from vidqa.messages import visual_tokens_text
from vidqa.planner.memory_model import SHARES, memory_share, memory_shares
from vidqa.types import Plan, VideoInfo
from vidqa.utils.safe_text import safe_line, safe_text
from vidqa.utils.units import format_bytes, format_span, format_timestamp

if TYPE_CHECKING:
    from vidqa.config import EngineConfig
    from vidqa.planner.alternatives import Alternative
    from vidqa.planner.planner import Forecast
    from vidqa.planner.problem import PlanningProblem
    from vidqa.types import Device, Request
    from vidqa.video.change_signal import ChangeSignal

_BAR_CELLS = 60
_TIMES_SHOWN = 24
_SHADES = "█▓▒░·"


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa plan`."""
    parser.description = (
        "Shows frames, resolution, precision and chunks that fit, with the arithmetic. Loads no weights."
    )
    add_planned_video(parser, question_help=PLANNED_QUESTION_HELP)
    parser.add_argument(
        "--gpu", metavar="NAME",
        help="plan for another GPU, for example t4; `all` prints a table, with `--model all` of every known model",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan and print; returns the exit code."""
    from vidqa.devices.device import find_device
    from vidqa.devices.gpu_catalog import as_device, find_gpu
    from vidqa.models.checkpoint import suggested_model
    from vidqa.models.registry import find_checkpoints
    from vidqa.planner.alternatives import alternatives
    from vidqa.planner.model_choice import forecast
    from vidqa.planner.problem import planning_problems
    from vidqa.planner.search import needs_scan
    from vidqa.video.reader import probe_facts

    settings = settings_for(arguments)
    request = make_planned_request(arguments, settings)
    video = as_named(probe_facts(request.video, request.stream, request.picture_times, request.subs), arguments)
    if arguments.gpu == "all":
        config = make_config(arguments, settings, settings.model or suggested_model())
        return print_gpus(arguments.json, config, video, request, named=settings.model is not None)
    device = as_device(find_gpu(arguments.gpu)) if arguments.gpu else find_device(settings.device)
    config = make_config(arguments, settings, "auto")
    config = replace(config, model=assumed_model(settings.model, config, StderrReporter(False), request, device))
    checkpoints = find_checkpoints(config.model, local=False)
    found = forecast(planning_problems(checkpoints, video, request, config, device))
    if request.sample != "uniform" and (found.plan is None or needs_scan(found.problem, found.plan)):
        signal = _scanned(request, config, device, found)
        found = forecast(planning_problems(checkpoints, video, request, config, device, signal))
    plan = found.required_plan()
    others = alternatives(found.problem, plan)
    if arguments.json:
        write_json(_object(video, plan, others))
    else:
        sys.stdout.write(safe_text("\n".join(_text_lines(found.problem, plan, others))) + "\n")
    return ExitCode.OK


def _scanned(request: "Request", config: "EngineConfig", device: "Device", even: "Forecast") -> "ChangeSignal":
    """Return the video's change signal, from an earlier scan or a new one; `even` is the plan without it."""
    from vidqa.engine.scan_stage import known_or_scanned
    from vidqa.planner.problem import scan_limit_seconds

    seconds = even.plan.seconds if even.plan else None
    first = seconds.first_token_seconds - seconds.scan_seconds if seconds else 0.0
    reporter = StderrReporter(False)
    signal = known_or_scanned(request, config, scan_limit_seconds(device, config, first), reporter.event)
    reporter.clear()
    return signal


def _object(video: VideoInfo, plan: Plan, others: "tuple[Alternative, ...]") -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "video": video_object(video),
        "plan": plan_object(plan),
        "alternatives": [
            {
                "kind": other.kind,
                "fits": not other.held_back_by,
                "held_back_by": other.held_back_by,
                "plan": plan_object(other.plan),
            }
            for other in others
        ],
    }


def _text_lines(problem: "PlanningProblem", plan: Plan, others: "tuple[Alternative, ...]") -> list[str]:
    """Return the plan, its memory and its alternatives as text."""
    from vidqa.planner.explain import sampling_gap_note, sampling_text, subtitle_note, unheard_note
    from vidqa.video.change_signal import sparkline

    video, run_config = problem.video, plan.run_config
    lines = [
        f"video     {safe_line(video.path)}: {video.width}×{video.height} {video.codec}, "
        f"{format_timestamp(video.duration_seconds)}",
        f"model     {safe_line(plan.model)}, {run_config.weights} weights, {run_config.kv} KV cache, "
        f"{run_config.attention} attention",
        f"device    {safe_line(problem.device.name)} ({plan.device}), budget {format_bytes(plan.budget_bytes)}",
        f"plan      {_size(plan)}, {visual_tokens_text(plan)} + {plan.prompt_tokens - plan.visual_tokens} text "
        f"tokens, {run_config.max_tokens} for the answer",
        f"chunks    {run_config.vision_chunk} slices in the vision tower, "
        f"{run_config.prefill_chunk} tokens in the prefill",
        f"time      {_seconds(plan)}",
        f"answer    {_decoding(plan)}",
        "",
        f"memory at its peak, in the {plan.peak_phase} phase",
    ]
    total = ("total", "", format_bytes(plan.required_bytes), f"of {format_bytes(plan.budget_bytes)}")
    lines += [f"  {line}" for line in format_table([*_parts(plan), total], "<<><")]
    phases = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.phase_bytes.items())
    lines += [f"  {_bar(plan)}", "", f"phases    {phases}"]
    lines += _compared(problem, plan)
    lines += [f"limit     {limit}" for limit in plan.limits]
    if plan.sampling is not None and plan.sampling.kind == "uniform" and not plan.sampling.still:
        lines.append(f"sampling  {sampling_text(plan, plan.sampling)}")
    lines += map(_choice, plan.choices)
    if problem.signal is not None:
        lines.append(f"change    {sparkline(problem.signal, video.duration_seconds)}")
    lines += [
        f"note      {note}"
        for note in (
            *problem.video.notes, *subtitle_note(plan), *unheard_note(problem.video, problem.request),
            *problem.device.notes, *sampling_gap_note(plan, problem.request),
        )
    ]  # fmt: skip
    lines += [f"{other.kind:<10}{_alternative(other)}" for other in others]
    return [*lines, f"frames at {_times(plan)}"]


def _choice(text: str) -> str:
    """Return a sentence on how the frames are chosen as a line, named after the option that chooses so."""
    return f"focus     {text.removeprefix('focus: ')}" if text.startswith("focus: ") else f"sampling  {text}"


def _parts(plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    """Yield the lines of the memory, in the order and with the names of the bar's legend."""
    for share in SHARES:
        for line in plan.lines:
            if memory_share(line) == share:
                name = line.name.removeprefix(share).removeprefix(": ")
                yield share, name, format_bytes(line.bytes), line.formula


def _compared(problem: "PlanningProblem", plan: Plan) -> list[str]:
    """Return the plan beside one pass of plain transformers, both with runtime and margin; and each one's most."""
    from vidqa.planner.transformers_memory import compare

    found, size = compare(problem, plan), f"{plan.run_config.width}×{plan.run_config.height}"
    return [
        f"compare   {format_bytes(plan.required_bytes)} here, {format_bytes(found.plain_bytes)} in one pass with "
        "unfused attention: same weights and frames, both with runtime and margin",
        f"most      {found.most_frames} frames of {size} fit here in {format_bytes(found.most_bytes)}; one pass would "
        f"need {format_bytes(found.plain_most_bytes)} for them, and holds {found.plain_frames or 'none'}",
    ]


def _times(plan: Plan) -> str:
    """Return the frames' times; of more than 24 the first and the last 12."""
    times = [format_timestamp(seconds) for seconds in plan.timestamps_seconds]
    if len(times) > _TIMES_SHOWN:
        half = _TIMES_SHOWN // 2
        times = [*times[:half], "…", *times[-half:], "(--json lists them all)"]
    return " ".join(times)


def _size(plan: Plan) -> str:
    by_change = plan.sampling is not None and plan.sampling.kind == "change"
    every = f" every {plan.interval_seconds:.2f} s" if plan.interval_seconds else ""
    every = " by change" if by_change else every
    return f"{plan.run_config.frames} frames of {plan.run_config.width}×{plan.run_config.height}{every}"


def _seconds(plan: Plan) -> str:
    seconds = plan.seconds
    start = f"start {seconds.start_seconds:.1f}"
    start += f", scan {seconds.scan_seconds:.1f}" if seconds.scan_seconds else ""
    return (
        f"first word in about {format_span(seconds.first_token_seconds)}: {start}, video "
        f"{seconds.video_seconds:.1f}, vision {seconds.vision_seconds:.1f}, prefill {seconds.prefill_seconds:.1f} "
        f"({seconds.source}, loading not counted)"
    )


def _decoding(plan: Plan) -> str:
    tokens, seconds = plan.run_config.max_tokens, plan.seconds.decode_seconds
    return f"then {tokens / seconds:.1f} tokens/s, {format_span(seconds)} for the longest"


def _alternative(other: "Alternative") -> str:
    plan = other.plan
    held_back = f"; not taken: {other.held_back_by}" if other.held_back_by else ""
    wait = format_span(plan.seconds.first_token_seconds)
    return (
        f"{_size(plan)}: {format_bytes(plan.required_bytes)}, first word in {wait}, score {plan.score:.1f}{held_back}"
    )


def _bar(plan: Plan) -> str:
    """Return the budget as a bar in which each share of the memory has a shade."""
    shares = memory_shares(plan)
    whole = max(plan.budget_bytes, plan.required_bytes)
    drawn = "".join(
        shade * round(size / whole * _BAR_CELLS) for shade, size in zip(_SHADES, shares.values(), strict=True)
    )
    legend = ", ".join(
        f"{shade} {name} {format_bytes(size)}" for shade, (name, size) in zip(_SHADES, shares.items(), strict=True)
    )
    return f"[{drawn[:_BAR_CELLS]:<{_BAR_CELLS}}] {legend}"
