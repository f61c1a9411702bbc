"""The options that several commands share, and what they become: a Request and an EngineConfig.

Declares and converts arguments; imports nothing heavy.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vidqa.config import CLIP_DEADLINE_SECONDS, EngineConfig
from vidqa.errors import UsageError
from vidqa.settings.load import Settings, load_settings
from vidqa.settings.schema import ENGINE_SETTINGS, SETTINGS, Setting
from vidqa.utils.units import parse_size, parse_timestamp

if TYPE_CHECKING:
    from vidqa.types import Request


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """What of the video is looked at."""
    group = parser.add_argument_group("what is looked at (the rest is planned)")
    group.add_argument("--frames", type=int, metavar="N", help="sample N frames (even)")
    group.add_argument("--fps", type=float, metavar="F", help="sample F frames per second")
    group.add_argument("--start", metavar="TIME", help="first moment to look at: seconds or mm:ss")
    group.add_argument("--end", metavar="TIME", help="last moment to look at: seconds or mm:ss")
    group.add_argument("--size", metavar="WxH", help="size to give the frames, in pixels")


def add_stream_option(parser: argparse.ArgumentParser) -> None:
    """Which of a file's pictures is looked at."""
    parser.add_argument("--stream", type=int, metavar="N", help="the video stream to look at, as FFmpeg counts them")


def add_planned_video(parser: argparse.ArgumentParser, **own: object) -> None:
    """A video that is planned without being asked about; `own` as for add_setting_options."""
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument(
        "--question", metavar="TEXT", default="what happens?",
        help="a question about text in the picture keeps the pixels it needs",
    )  # fmt: skip
    add_video_options(parser)
    add_stream_option(parser)
    add_plan_options(parser, **own)


def add_setting_options(group: Any, settings: Sequence[Setting], **own: object) -> None:
    """A flag for each of these settings; `own` are values that a command prefers to the user's (`max_tokens`)."""
    for setting in settings:
        default = own.get(setting.dest, setting.default)
        how = {"dest": setting.dest, "default": own.get(setting.dest)}
        if isinstance(default, bool):
            group.add_argument(setting.flag, action="store_const", const=not default, help=setting.meaning, **how)
            continue
        told = f"default: {setting.unset if default is None else default}"
        allowed = "" if setting.choices else f": {setting.allowed}"
        help_text, choices = f"{setting.meaning}{allowed} ({told})", setting.choices or None
        group.add_argument(setting.flag, choices=choices, metavar=setting.metavar, help=help_text, **how)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, on which device."""
    add_setting_options(parser, [setting for setting in ENGINE_SETTINGS if setting.key in {"model", "device"}])


def add_plan_options(parser: argparse.ArgumentParser, **own: object) -> None:
    """What the planner keeps to; `own` as for add_setting_options."""
    group = parser.add_argument_group("plan")
    add_setting_options(group, ENGINE_SETTINGS, **own)
    group.add_argument("--vision-chunk", type=int, metavar="N", help="temporal slices to encode together")
    group.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens to prefill together")
    group.add_argument("--system", metavar="TEXT", help="system prompt")
    group.add_argument("--decode-in-process", action="store_true", help="no separate process for FFmpeg, no deadline")
    group.add_argument(
        "--deadline", type=float, default=CLIP_DEADLINE_SECONDS, metavar="S",
        help=f"seconds that decoding one video may take ({CLIP_DEADLINE_SECONDS:g})",
    )  # fmt: skip


def given_flags(arguments: argparse.Namespace) -> dict[str, str | bool]:
    """The settings that were given on the command line, by key."""
    flags = {setting.key: getattr(arguments, setting.dest, None) for setting in SETTINGS}
    return {key: value if isinstance(value, bool) else str(value) for key, value in flags.items() if value is not None}


def settings_for(arguments: argparse.Namespace) -> Settings:
    """Flags over environment over file over defaults; raises UsageError for what cannot be."""
    return load_settings(flags=given_flags(arguments))


def make_request(arguments: argparse.Namespace, settings: Settings, question: str) -> "Request":
    """What is asked; raises UsageError for what cannot be read."""
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
    )


def make_config(arguments: argparse.Namespace, settings: Settings, model: str) -> EngineConfig:
    """How it is run; raises UsageError for what cannot be."""
    for name in ("vision_chunk", "prefill_chunk"):
        if (given := getattr(arguments, name)) is not None and given < 1:
            raise UsageError(f"--{name.replace('_', '-')} {given} is not 1 or more.", "Leave it to the planner.")
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
        isolate_decoder=not arguments.decode_in_process,
        clip_deadline_seconds=arguments.deadline,
    )


def _chosen(value: str) -> str | None:
    return None if value == "auto" else value
