"""`vidqa find VIDEO TEXT`: the moments of a video that a text points to, the best first."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidqa.cli import ask
from vidqa.cli.arguments import (
    add_plan_options,
    add_range_options,
    add_setting_options,
    add_stream_option,
    add_timestamps_option,
    add_video_argument,
    choose_model,
    make_config,
    make_request,
    settings_for,
)
from vidqa.cli.console import ExitCode, StderrReporter, handle_signals, interrupt, write_json
from vidqa.cli.video_argument import as_named
from vidqa.errors import Interrupted, UsageError
from vidqa.messages import degraded_text, out_of_domain_text, usage_text
from vidqa.settings.schema import ENGINE_SETTINGS
from vidqa.types import Plan, Request
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_timestamp

if TYPE_CHECKING:
    from vidqa.engine.session import Session
    from vidqa.engine.slice_selection import Moment
    from vidqa.events import Event, Found

_OF_QUESTIONS = ("max_tokens", "subs", "subs_share", "prune", "focus")  # settings that a search does not use


def add_find_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa find`."""
    parser.description = (
        "Prints the moments of a video that a text points to, the best first: start, end and score (1 is what every "
        "part would get of an even division of the model's attention)."
    )
    from vidqa.engine.slice_selection import MOST_MOMENTS

    add_video_argument(parser)
    parser.add_argument("text", metavar="TEXT", help='for example "a red circle"')
    group = parser.add_argument_group("frames (what is not set is planned)")
    add_range_options(group)
    group.add_argument("--size", metavar="WxH", help="size of the frames in pixels")
    group.add_argument(
        "--fps", type=float, metavar="F", dest="picture_fps",
        help="for a folder of pictures: their rate, F pictures per second (default: 25)",
    )  # fmt: skip
    add_stream_option(parser)
    add_timestamps_option(parser)
    add_plan_options(parser, [setting for setting in ENGINE_SETTINGS if setting.key not in _OF_QUESTIONS])
    group = parser.add_argument_group("result")
    group.add_argument(
        "--moments", type=int, default=MOST_MOMENTS, metavar="N", help=f"most moments to print (default {MOST_MOMENTS})"
    )
    group.add_argument("-o", "--output", metavar="FILE", help="write a picture of each moment to one PNG")
    group.add_argument("--json", action="store_true", help="print JSON instead of text")
    group.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    group = parser.add_argument_group("further question (what the search itself does not use)")
    group.add_argument("--then", metavar="QUESTION", help="ask a question about the best moment")
    add_setting_options(group, [setting for setting in ENGINE_SETTINGS if setting.key in _OF_QUESTIONS])
    parser.set_defaults(run=run, frames=None, fps=None)


def run(arguments: argparse.Namespace) -> int:
    """Search, print and write the moments, and ask about the best one; returns the exit code."""
    from vidqa.cli.json_output import answer_object, find_object
    from vidqa.engine.session import Session
    from vidqa.engine.slice_selection import find_moments
    from vidqa.planner.request_checks import check_request, check_search
    from vidqa.video.contact_sheet import check_target
    from vidqa.video.reader import check_file
    from vidqa.video.subtitle_files import OFF

    if arguments.moments < 1:
        raise UsageError(f"--moments {arguments.moments} is not 1 or more.", "Leave it away for 5.")
    settings = settings_for(arguments)
    request = make_request(arguments, settings, arguments.text)
    check_file(request.video)
    check_search(request)
    if arguments.then is None:
        request = replace(request, subs=OFF)
    else:
        check_request(replace(request, question=arguments.then))
    if arguments.output:
        check_target(arguments.output)
    reporter = StderrReporter(arguments.quiet)
    _note_unused(arguments, reporter)
    config = make_config(arguments, settings, choose_model(arguments, settings, reporter, request))
    with Session(config) as session, handle_signals(session.cancel, again=interrupt) as received:
        try:
            found = _search(session.find(request), reporter)
            selection = found.plan.selection
            assert selection is not None
            moments = find_moments(
                selection.scores, selection.seconds, arguments.moments, found.plan.candidate_seconds[-1]
            )
            if arguments.json:
                named = replace(found, video=as_named(found.video, arguments))
                write_json(find_object(named, arguments.text, moments))
            else:
                sys.stdout.writelines(f"{_line(moment)}\n" for moment in moments)
            if arguments.output:
                _write_sheet(session, request, found.plan, moments, arguments.output, reporter)
            if arguments.then is None:
                return ExitCode.OK
            events = session.ask(_about(request, moments[0], arguments.then))
            answer = ask.render(events, reporter, arguments.json, introduce=True)
            if arguments.json:
                write_json(answer_object(replace(answer, video=as_named(answer.video, arguments))))
            reporter.say(usage_text(answer))
            if answer.finish_reason == "cancelled":
                return received.exit_code()
        except Interrupted as stopped:
            reporter.say(str(stopped))
            return received.exit_code()
    return ExitCode.OK


def _note_unused(arguments: argparse.Namespace, reporter: StderrReporter) -> None:
    """Say which options of the command line do nothing, as no further question is asked."""
    if arguments.then is not None:
        return
    for setting in ENGINE_SETTINGS:
        if setting.key in _OF_QUESTIONS and getattr(arguments, setting.dest) is not None:
            reporter.say(f"note: {setting.flag} does nothing without --then: a search does not use it")


def _line(moment: "Moment") -> str:
    return f"{format_timestamp(moment.start_seconds)}-{format_timestamp(moment.end_seconds)}  {moment.score:.2f}"


def _about(request: Request, moment: "Moment", question: str) -> Request:
    """Return a question about a moment, with some time around a very short one."""
    from vidqa.engine.slice_selection import range_around

    start, end = range_around(moment, request.start_seconds, request.end_seconds)
    return replace(request, question=question, start_seconds=start, end_seconds=end)


def _search(events: "Iterator[Event]", reporter: StderrReporter) -> "Found":
    """Report the events of a search; returns the last."""
    from vidqa.events import Degraded, Found, Noted, OutOfDomain, Planned, StageProgress, StageStarted

    for event in events:
        match event:
            case Planned(_, plan):
                for limit in plan.limits:
                    reporter.say(f"limit: {limit}")
                for choice in plan.choices:
                    reporter.say(choice)
            case Degraded(phase, step, plan):
                reporter.say(degraded_text(phase, step, plan))
            case StageStarted() | StageProgress():
                reporter.progress(event)
            case Noted(text):
                reporter.say(f"note: {text}")
            case OutOfDomain(knows, advice):
                reporter.say(f"warning: {out_of_domain_text(knows, advice)}")
            case Found():
                reporter.clear()
                return event
    raise RuntimeError("the session ended without a result")


def _write_sheet(
    session: "Session", request: Request, plan: Plan, moments: "Sequence[Moment]", path: str, reporter: StderrReporter
) -> None:
    """Write the frame in the middle of each moment, the best first, with its range and score."""
    from vidqa.video.contact_sheet import write_sheet

    seconds: Any = plan.candidate_seconds
    middles = [(moment.start_seconds + moment.end_seconds) / 2 for moment in moments]
    places = [min(range(len(plan.candidates)), key=lambda place: abs(seconds[place] - middle)) for middle in middles]
    by_time = sorted(range(len(moments)), key=lambda rank: places[rank])
    indices = tuple(plan.candidates[places[rank]] for rank in by_time)
    times = tuple(seconds[places[rank]] for rank in by_time)
    _, pictures = session.pictures(request, replace(plan, indices=indices, timestamps_seconds=times))
    decoded = dict(zip(by_time, pictures, strict=False))  # of a damaged video, fewer
    ranks = sorted(decoded)
    captions = [f"#{rank + 1}  {_line(moments[rank])}" for rank in ranks]
    shown = [middles[rank] for rank in ranks]
    width, height = write_sheet([decoded[rank] for rank in ranks], shown, path, captions=captions)
    count = f"{len(ranks)} moment{'s' * (len(ranks) != 1)}"
    reporter.say(f"{safe_line(path)}: {count} in {width}×{height} pixels")
