"""`vidqa frames VIDEO -o SHEET.png`: a contact sheet of the frames that `vidqa ask` gives the model."""

import argparse

from vidqa.cli.arguments import add_planned_video, make_config, make_request, planned_model, settings_for
from vidqa.cli.console import ExitCode, StderrReporter


def add_frames_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa frames`."""
    parser.description = "Writes the frames that a plan samples, at their size and with their times, as one PNG."
    add_planned_video(parser)
    parser.add_argument("-o", "--output", metavar="FILE", default="frames.png", help="default frames.png")
    parser.add_argument("--columns", type=int, metavar="N", help="frames side by side")
    parser.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan, decode, resize and write the sheet; returns the exit code."""
    from vidqa.engine.session import Session
    from vidqa.utils.safe_text import safe_line
    from vidqa.video.contact_sheet import check_target, write_sheet

    check_target(arguments.output)
    settings = settings_for(arguments)
    request = make_request(arguments, settings, arguments.question)
    config = make_config(arguments, settings, settings.model or planned_model())
    with Session(config) as session:
        plan, pictures = session.see(request)
    width, height = write_sheet(pictures, plan.timestamps_seconds, arguments.output, columns=arguments.columns)
    run_config = plan.run_config
    summary = f"{run_config.frames} frames of {run_config.width}×{run_config.height} in {width}×{height} pixels"
    StderrReporter(arguments.quiet).say(f"{safe_line(arguments.output)}: {summary}")
    return ExitCode.OK
