"""`vidqa frames VIDEO -o SHEET.png`: a contact sheet of the frames that `vidqa ask` gives the model."""

import argparse
from typing import TYPE_CHECKING

from vidqa.cli.arguments import (
    PLANNED_QUESTION_HELP,
    add_planned_video,
    make_config,
    make_planned_request,
    settings_for,
)
from vidqa.cli.console import ExitCode, StderrReporter, write_json
from vidqa.cli.model_offer import assumed_model
from vidqa.errors import ModelMissing

if TYPE_CHECKING:
    from vidqa.models.training_domain import TrainingDomain
    from vidqa.types import Request
    from vidqa.video.change_signal import ChangeSignal


def add_frames_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa frames`."""
    parser.description = "Writes the frames that a plan samples, at their size and with their times, as one PNG."
    add_planned_video(parser, question_help=PLANNED_QUESTION_HELP)
    parser.add_argument("-o", "--output", metavar="FILE", default="frames.png", help="default frames.png")
    parser.add_argument("--columns", type=int, metavar="N", help="frames side by side")
    parser.add_argument(
        "--json", action="store_true", help="print the plan and the video's change, if it was scanned, as JSON"
    )
    parser.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan, decode, resize and write the sheet; returns the exit code."""
    from vidqa.cli.json_output import SCHEMA_VERSION, domain_object, plan_object, signal_object
    from vidqa.engine.domain_check import is_out_of_domain
    from vidqa.engine.session import Session
    from vidqa.planner.explain import sampling_text
    from vidqa.utils.safe_text import safe_line
    from vidqa.video.contact_sheet import check_target, write_sheet
    from vidqa.video.signal_cache import SIGNALS
    from vidqa.video.signal_strip import SignalStrip

    check_target(arguments.output)
    settings = settings_for(arguments)
    request = make_planned_request(arguments, settings)
    reporter = StderrReporter(arguments.quiet)
    model = assumed_model(settings.model, make_config(arguments, settings, "auto"), reporter, request)
    config = make_config(arguments, settings, model)
    with Session(config) as session:
        plan, pictures = session.see(request, reporter.event)
    reporter.clear()
    signal = None if request.sample == "uniform" else SIGNALS.find(request, on_disk=config.remember)
    strip = None if signal is None else SignalStrip(signal, *_shown_span(request, signal))
    width, height = write_sheet(
        pictures, plan.timestamps_seconds, arguments.output, columns=arguments.columns, strip=strip
    )
    if arguments.json:
        domain = _known_domain(plan.model)
        unlike = None if domain is None else is_out_of_domain(domain, pictures)
        write_json(
            {"plan": plan_object(plan), "signal": None if signal is None else signal_object(signal)}
            | domain_object(unlike)
            | {"schema_version": SCHEMA_VERSION, "sheet": {"path": arguments.output, "width": width, "height": height}}
        )
    run_config = plan.run_config
    summary = f"{run_config.frames} frames of {run_config.width}×{run_config.height} in {width}×{height} pixels"
    reporter.say(f"{safe_line(arguments.output)}: {summary}")
    if plan.sampling is not None:
        reporter.say(sampling_text(plan, plan.sampling))
    if plan.candidates:
        reporter.say(
            f"a question would select its frames from {len(plan.candidates)}: these are the frames of a plan without "
            "--focus; vidqa find shows what a text points to"
        )
    return ExitCode.OK


def _known_domain(model: str) -> "TrainingDomain | None":
    """Return what a model that is on this machine knows, None if it knows real videos or is not here."""
    from vidqa.models.hub import resolve_model
    from vidqa.models.training_domain import read_domain

    try:
        return read_domain(resolve_model(model))
    except ModelMissing:
        return None


def _shown_span(request: "Request", signal: "ChangeSignal") -> tuple[float, float]:
    """Return the part of the video that a request is about, in seconds."""
    last = signal.seconds[-1] if signal.seconds else 0.0
    start, end = request.start_seconds or 0.0, request.end_seconds
    return start, last if end is None else min(end, last)
