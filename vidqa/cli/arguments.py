"""Options that several commands share, and their conversion into a Request, an EngineConfig and a model's name."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vidqa.cli.console import StderrReporter, is_terminal
from vidqa.config import CLIP_DEADLINE_SECONDS, EngineConfig
from vidqa.errors import UsageError
from vidqa.settings.load import Settings, load_settings
from vidqa.settings.schema import ENGINE_SETTINGS, SETTINGS, TUI_SETTINGS, Setting
from vidqa.utils.units import parse_size, parse_timestamp

if TYPE_CHECKING:
    from vidqa.types import Request

_VIDEO_HELP = "a video file, a folder of numbered pictures, a file:// address, or - for standard input"
_FPS_HELP = "sample F frames per second"
PLANNED_QUESTION_HELP = (
    "the question to plan for: one about text in the picture gets more pixels, and with --focus one about the whole "
    "video reads it evenly"
)
FOLDER_FPS_HELP = f"{_FPS_HELP}; for a folder of pictures: their rate, F pictures per second (default: 25)"


def add_video_options(parser: argparse.ArgumentParser, *, fps_help: str = _FPS_HELP) -> None:
    """Declare what is sampled of a video; `fps_help` explains `--fps`."""
    group = parser.add_argument_group("frames (what is not set is planned)")
    group.add_argument("--frames", type=int, metavar="N", help="sample N frames (even)")
    group.add_argument("--fps", type=float, metavar="F", help=fps_help)
    add_range_options(group)
    group.add_argument("--size", metavar="WxH", help="size of the frames in pixels")


def add_range_options(group: Any) -> None:
    """Declare the range of a video's time that is sampled."""
    group.add_argument("--start", metavar="TIME", help="start of the range: seconds or mm:ss")
    group.add_argument("--end", metavar="TIME", help="end of the range: seconds or mm:ss")


def add_stream_option(parser: argparse.ArgumentParser) -> None:
    """Declare the choice of a video stream."""
    parser.add_argument("--stream", type=int, metavar="N", help="index of the video stream, as FFmpeg counts streams")


def add_video_argument(parser: argparse.ArgumentParser, **keywords: Any) -> None:
    """Declare the video of a command; `keywords` are those of `add_argument`."""
    parser.add_argument("video", metavar="VIDEO", help=_VIDEO_HELP, **keywords)


def add_timestamps_option(parser: argparse.ArgumentParser) -> None:
    """Declare the file with the times of a folder's pictures."""
    parser.add_argument(
        "--timestamps", metavar="FILE",
        help="times of a folder's pictures, in seconds, one a line (default: the folder's timestamps.txt, if any)",
    )  # fmt: skip


def add_planned_video(parser: argparse.ArgumentParser, *, question_help: str, **defaults: object) -> None:
    """Declare a video, an optional question and the options of a plan; `defaults` as for add_setting_options."""
    add_video_argument(parser)
    parser.add_argument("--question", metavar="TEXT", help=question_help)
    add_video_options(parser, fps_help=FOLDER_FPS_HELP)
    add_stream_option(parser)
    add_timestamps_option(parser)
    add_plan_options(parser, **defaults)


def add_setting_options(group: Any, settings: Sequence[Setting], **defaults: object) -> None:
    """Declare a flag for each of these settings.

    `defaults` are values of the command, by the setting's name (`max_tokens`), that win over the user's configuration.
    """
    for setting in settings:
        default = defaults.get(setting.dest, setting.default)
        keywords: dict[str, Any] = {"dest": setting.dest, "default": defaults.get(setting.dest)}
        if isinstance(default, bool):
            keywords |= {"action": "store_const", "const": not default}
            keywords["help"] = f"do not {setting.meaning}" if default else setting.meaning
        else:
            allowed = "" if setting.choices else f": {setting.allowed}"
            shown = setting.unset if default is None else default
            keywords |= {"choices": setting.choices or None, "metavar": setting.metavar}
            keywords["help"] = f"{setting.meaning}{allowed} (default: {shown})"
        group.add_argument(setting.flag, **keywords)


def add_sampling_options(group: Any) -> None:
    """Declare how tokens are sampled."""
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default 1)")
    group.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare the choice of a model and a device."""
    add_setting_options(parser, [setting for setting in ENGINE_SETTINGS if setting.key in {"model", "device"}])


def add_plan_options(
    parser: argparse.ArgumentParser, settings: Sequence[Setting] = ENGINE_SETTINGS, /, **defaults: object
) -> None:
    """Declare the limits of a plan and how an engine runs; `defaults` as for add_setting_options."""
    group = parser.add_argument_group("plan")
    add_setting_options(group, settings, **defaults)
    group.add_argument("--vision-chunk", type=int, metavar="N", help="temporal slices per chunk of the vision tower")
    group.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens per chunk of the prefill")
    group.add_argument("--system", metavar="TEXT", help="system prompt")
    group.add_argument(
        "--decode-in-process", action="store_true", help="run FFmpeg in this process, without a deadline"
    )
    group.add_argument(
        "--deadline", type=float, default=CLIP_DEADLINE_SECONDS, metavar="S",
        help=f"longest time to decode a video, in seconds (default: {CLIP_DEADLINE_SECONDS:g})",
    )  # fmt: skip


def add_tui_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the interactive session, which `vidqa.__main__` opens."""
    parser.description = "Opens an interactive session: choose a video, see the plan, ask questions."
    parser.add_argument(
        "video", metavar="VIDEO", nargs="?", help="a video file, a folder of numbered pictures, or a file:// address"
    )
    parser.add_argument(
        "--fps", type=float, metavar="F", help="rate of a folder's pictures, F per second (default: 25)"
    )
    add_timestamps_option(parser)
    add_plan_options(parser)
    add_setting_options(parser.add_argument_group("appearance"), TUI_SETTINGS)
    parser.set_defaults(frames=None, start=None, end=None, size=None)


def given_flags(arguments: argparse.Namespace) -> dict[str, str | bool]:
    """Return the settings of the command line, by key."""
    flags = {setting.key: getattr(arguments, setting.dest, None) for setting in SETTINGS}
    return {key: value if isinstance(value, bool) else str(value) for key, value in flags.items() if value is not None}


def settings_for(arguments: argparse.Namespace) -> Settings:
    """Return the settings in force; raises UsageError for a value or key that is not allowed."""
    return load_settings(flags=given_flags(arguments))


def make_request(arguments: argparse.Namespace, settings: Settings, question: str) -> "Request":
    """Return the request of the arguments; raises UsageError for a time or size that cannot be read."""
    from vidqa.types import Request

    return Request(
        video=arguments.video,
        question=question,
        system=arguments.system,
        frames=arguments.frames,
        fps=arguments.fps,
        start_seconds=None if arguments.start is None else parse_timestamp(arguments.start),
        end_seconds=None if arguments.end is None else parse_timestamp(arguments.end),
        size=None if arguments.size is None else parse_size(arguments.size),
        max_tokens=settings.max_tokens,
        temperature=getattr(arguments, "temperature", 0.0),
        top_p=getattr(arguments, "top_p", 1.0),
        seed=getattr(arguments, "seed", None),
        stream=getattr(arguments, "stream", None),
        picture_fps=getattr(arguments, "picture_fps", None),
        timestamps=getattr(arguments, "timestamps", None),
        subs=settings.subs,
        sample=settings.sample,
        focus=settings.focus,
    )


def make_planned_request(arguments: argparse.Namespace, settings: Settings) -> "Request":
    """Return the request of a plan, whose question is empty if none was given; raises UsageError as `check_request`."""
    from vidqa.planner.request_checks import check_limits, check_request

    given: str | None = arguments.question
    request = make_request(arguments, settings, given or "")
    if given is None:
        check_limits(request)
    else:
        check_request(request)
    return request


def make_config(arguments: argparse.Namespace, settings: Settings, model: str) -> EngineConfig:
    """Return the engine's configuration; raises UsageError for a chunk below 1 or a deadline that is not above 0."""
    for name in ("vision_chunk", "prefill_chunk"):
        if (chunk := getattr(arguments, name)) is not None and chunk < 1:
            raise UsageError(f"--{name.replace('_', '-')} {chunk} is not 1 or more.", "Leave it to the planner.")
    if not arguments.deadline > 0:
        raise UsageError(
            f"--deadline {arguments.deadline:g} is not above 0.", "Give seconds, for example --deadline 600."
        )
    return EngineConfig(
        model=model,
        device=settings.device,
        attention=settings.attention,
        weights=_chosen(settings.weights),
        kv=_chosen(settings.kv),
        vision_chunk=arguments.vision_chunk,
        prefill_chunk=arguments.prefill_chunk,
        vram_bytes=settings.vram_bytes,
        reserve_bytes=settings.reserve_bytes,
        quality=settings.quality,
        max_wait_seconds=settings.max_wait_seconds,
        calibrate=settings.calibrate,
        isolate_decoder=not arguments.decode_in_process,
        clip_deadline_seconds=arguments.deadline,
        subtitle_share=settings.subtitle_share,
        prune=settings.prune,
    )


def _chosen(value: str) -> str | None:
    return None if value == "auto" else value


def choose_model(
    arguments: argparse.Namespace, settings: Settings, reporter: StderrReporter, request: "Request | None" = None
) -> str:
    """Return the named model, else the first cached one, else the choice of the person at the terminal.

    On a terminal a model that is not on this machine is fetched if the person wants it; what is offered is planned for
    the request's video, or for a typical one. Raises ModelMissing without a terminal, or where no choice is made.
    """
    if settings.model is not None and not is_terminal():
        return settings.model  # what is wrong with it, if anything, is said when it is opened
    from vidqa.cli.model_offer import offer_model

    return offer_model(settings.model, make_config(arguments, settings, "auto"), reporter, request)
