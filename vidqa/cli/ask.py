"""`vidqa ask VIDEO QUESTION [--then QUESTION]`: an answer on stdout for every question."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vidqa.cli.arguments import (
    FOLDER_FPS_HELP,
    add_plan_options,
    add_sampling_options,
    add_setting_options,
    add_stream_option,
    add_timestamps_option,
    add_video_argument,
    add_video_options,
    choose_model,
    make_config,
    make_request,
    settings_for,
)
from vidqa.cli.ask_history import recorded, saved_conversation
from vidqa.cli.console import ExitCode, StderrReporter, handle_signals, interrupt, write_json
from vidqa.cli.video_argument import as_named, is_piped
from vidqa.errors import Interrupted
from vidqa.messages import degraded_text, model_label, out_of_domain_text, time_text, usage_text, visual_tokens_text
from vidqa.settings.schema import TUI_SETTINGS
from vidqa.types import Answer, Plan, Turn, VideoInfo
from vidqa.utils.safe_text import safe_text
from vidqa.utils.units import format_bytes, format_timestamp


def add_ask_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vidqa ask`."""
    parser.description = "Answers a question about a video, and further ones with --then."
    add_video_argument(parser)
    parser.add_argument("question", metavar="QUESTION", help='for example "what happens?"')
    add_video_options(parser, fps_help=FOLDER_FPS_HELP)
    add_stream_option(parser)
    add_timestamps_option(parser)
    add_plan_options(parser)
    group = parser.add_argument_group("answer")
    add_sampling_options(group)
    group.add_argument(
        "--then", action="append", default=[], metavar="QUESTION",
        help="a further question about the same video; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--json", action="store_true", help="print one JSON object per line and question instead of text"
    )
    group.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    add_setting_options(group, [setting for setting in TUI_SETTINGS if setting.key == "tui.history"])
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer the questions; returns the exit code."""
    from vidqa.cli.json_output import answer_object
    from vidqa.engine.session import Session
    from vidqa.planner.problem import most_turn_tokens
    from vidqa.planner.request_checks import check_request
    from vidqa.video.reader import check_file

    settings = settings_for(arguments)
    requests = [make_request(arguments, settings, question) for question in (arguments.question, *arguments.then)]
    check_file(requests[0].video)  # before a question about the model
    for request in requests:
        check_request(request)
    reporter = StderrReporter(arguments.quiet)
    config = make_config(arguments, settings, choose_model(arguments, settings, reporter, requests[0]))
    config = replace(config, conversation_tokens=sum(map(most_turn_tokens, requests[1:])))
    history: tuple[Turn, ...] = ()
    with (
        saved_conversation(reporter, keep=settings.tui.history and not is_piped(arguments)) as conversation,
        Session(config) as session,
        handle_signals(session.cancel, again=interrupt) as received,
    ):
        for request in requests:
            try:
                events = recorded(session.ask(replace(request, history=history)), conversation, request)
                answer = render(events, reporter, arguments.json, introduce=not history)
            except Interrupted as stopped:
                reporter.say(str(stopped))
                return received.exit_code()
            if arguments.json:
                write_json(answer_object(replace(answer, video=as_named(answer.video, arguments))))
            reporter.say(usage_text(answer))
            if answer.finish_reason == "cancelled":
                return received.exit_code()
            history += (Turn(request.question, answer.text),)
    return ExitCode.OK


def render(events: Iterator[Any], reporter: StderrReporter, as_object: bool, *, introduce: bool = False) -> Answer:
    """Print the events as they come; returns the answer."""
    from vidqa.events import (
        Answered,
        Degraded,
        MemorySampled,
        Noted,
        OutOfDomain,
        Planned,
        StageProgress,
        StageStarted,
        TextDelta,
    )

    streamed, planned_bytes, planned_tensors, warning = False, 0, 0, ""
    for event in events:
        match event:
            case Planned(video, plan):
                if introduce and not planned_bytes:
                    _introduce(video, plan, reporter)
                planned_bytes, planned_tensors = plan.predicted_peak_bytes, plan.tensor_bytes
            case MemorySampled():
                reporter.memory(event, planned_bytes, planned_tensors)
            case Degraded(phase, step, plan):
                reporter.say(("\n" if streamed else "") + degraded_text(phase, step, plan))
            case StageStarted() | StageProgress():
                if not (event.stage == "decode" and not as_object):
                    reporter.progress(event)
            case Noted(text):
                reporter.say(f"note: {text}")
            case OutOfDomain(knows, advice):
                warning = f"warning: {out_of_domain_text(knows)}"
                reporter.say(f"warning: {out_of_domain_text(knows, advice)}")
            case TextDelta(text) if not as_object:
                reporter.clear()
                shown = safe_text(text if streamed else text.lstrip())
                streamed = streamed or bool(shown)
                sys.stdout.write(shown)
                sys.stdout.flush()
            case Answered(answer):
                reporter.clear()
                if streamed:
                    sys.stdout.write("\n")
                    sys.stdout.flush()
                if warning:
                    reporter.say(warning)
                return answer
    raise RuntimeError("the session ended without an answer")


def _introduce(video: VideoInfo, plan: Plan, reporter: StderrReporter) -> None:
    """Print the plan, its limits, and how its frames are chosen."""
    reporter.say(_model_line(plan))
    reporter.say(_plan_line(video, plan))
    reporter.say(f"time: {time_text(plan)}")
    for limit in plan.limits:
        reporter.say(f"limit: {limit}")
    for choice in plan.choices:
        reporter.say(choice)


def _model_line(plan: Plan) -> str:
    label = model_label(plan.model) if plan.model == "demo" else f"model: {model_label(plan.model)}"
    run_config = plan.run_config
    return f"{label} · {plan.device} {run_config.weights} · {run_config.attention} attention"


def _memory_text(plan: Plan) -> str:
    """Return the planned memory; on a CPU that of tensors and of the process, which holds the interpreter, apart."""
    budget, margin = format_bytes(plan.budget_bytes), format_bytes(plan.margin_bytes)
    if plan.device != "cpu":
        return f"\nmemory: {format_bytes(plan.predicted_peak_bytes)} + {margin} margin, of {budget}"
    tensors, process = format_bytes(plan.tensor_bytes), format_bytes(plan.runtime_bytes)
    return (
        f"\nmemory: {tensors} of tensors + {process} runtime (Python and its libraries) + {margin} margin, of {budget}"
    )


def _plan_line(video: VideoInfo, plan: Plan) -> str:
    first, last = plan.timestamps_seconds[0], plan.timestamps_seconds[-1]
    return (
        f"video: {video.width}×{video.height} {video.codec}, {format_timestamp(video.duration_seconds)}\n"
        f"plan: {plan.run_config.frames} frames of {plan.run_config.width}×{plan.run_config.height} "
        f"from {format_timestamp(first)} to "
        f"{format_timestamp(last)} · {visual_tokens_text(plan)} + {plan.prompt_tokens - plan.visual_tokens} text "
        f"tokens{_memory_text(plan)}"
    )
