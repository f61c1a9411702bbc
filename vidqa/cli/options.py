"""The options that several commands share, and what they become: a Request and an EngineConfig.

Declares and converts arguments; imports nothing heavy.
"""

import argparse
from typing import TYPE_CHECKING, Any

from vidqa.config import ATTENTION_CHOICES, COMPILE_CHOICES, KV_CHOICES, QUALITY_CHOICES, WEIGHT_CHOICES
from vidqa.units import parse_bytes, parse_seconds, parse_size, parse_timestamp

if TYPE_CHECKING:
    from vidqa.config import EngineConfig, Settings
    from vidqa.types import Request


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """What of the video is looked at."""
    group = parser.add_argument_group("what is looked at (the rest is planned)")
    group.add_argument("--frames", type=int, metavar="N", help="sample N frames (even)")
    group.add_argument("--fps", type=float, metavar="F", help="sample F frames per second")
    group.add_argument("--start", metavar="TIME", help="first moment to look at: seconds or mm:ss")
    group.add_argument("--end", metavar="TIME", help="last moment to look at: seconds or mm:ss")
    group.add_argument("--size", metavar="WxH", help="size to give the frames, in pixels")


def add_planned_video(parser: argparse.ArgumentParser) -> None:
    """A video that is planned without being asked about."""
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument(
        "--question", metavar="TEXT", default="what happens?",
        help="a question about text in the picture keeps the pixels it needs",
    )  # fmt: skip
    add_video_options(parser)
    add_plan_options(parser)


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """What the planner keeps to."""
    group = parser.add_argument_group("plan")
    group.add_argument("--model", help="demo, 2b, 7b, auto, a Hugging Face repository, or a folder")
    group.add_argument("--device", help="auto (default), cpu, cuda, cuda:1, mps")
    group.add_argument("--vram", metavar="SIZE", help="plan for this much memory, for example 8GiB (default: free now)")
    group.add_argument("--reserve", metavar="SIZE", help="leave this much to others")
    group.add_argument("--quality", choices=QUALITY_CHOICES, help="fast, balanced (default) or best")
    group.add_argument("--max-wait", metavar="TIME", help="longest time to an answer, for example 20s")
    group.add_argument("--weights", choices=(*WEIGHT_CHOICES, "auto"), help="precision of the weights")
    group.add_argument("--kv", choices=(*KV_CHOICES, "auto"), help="precision of the KV cache")
    group.add_argument("--attn", choices=ATTENTION_CHOICES, help="attention kernel")
    group.add_argument(
        "--compile", choices=COMPILE_CHOICES, default="auto",
        help="compile the decode step on a GPU (auto: once `vidqa warmup` has)",
    )  # fmt: skip
    group.add_argument("--vision-chunk", type=int, metavar="N", help="temporal slices to encode together")
    group.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens to prefill together")
    group.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default %(default)s)")
    group.add_argument("--system", metavar="TEXT", help="system prompt")
    group.add_argument("--decode-in-process", action="store_true", help="no separate process for FFmpeg")


def make_request(arguments: argparse.Namespace, question: str) -> "Request":
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
        max_tokens=arguments.max_tokens,
        temperature=getattr(arguments, "temperature", 0.0),
        top_p=getattr(arguments, "top_p", 1.0),
        seed=getattr(arguments, "seed", None),
    )


def make_config(arguments: argparse.Namespace, settings: "Settings", model: str) -> "EngineConfig":
    """How it is run: flags over settings over defaults; raises UsageError for what cannot be."""
    from vidqa.config import EngineConfig
    from vidqa.errors import UsageError

    for name in ("vision_chunk", "prefill_chunk"):
        if (given := getattr(arguments, name)) is not None and given < 1:
            raise UsageError(f"--{name.replace('_', '-')} {given} is not 1 or more.", "Leave it to the planner.")
    return EngineConfig(
        model=model,
        device=arguments.device or settings.device or "auto",
        attention=arguments.attn or settings.attention or "auto",
        weights=_chosen(arguments.weights),
        kv=_chosen(arguments.kv),
        compile=arguments.compile,
        vision_chunk=arguments.vision_chunk,
        prefill_chunk=arguments.prefill_chunk,
        vram_bytes=None if arguments.vram is None else parse_bytes(arguments.vram),
        reserve_bytes=0 if arguments.reserve is None else parse_bytes(arguments.reserve),
        quality=arguments.quality or settings.quality or "balanced",
        max_wait_seconds=None if arguments.max_wait is None else parse_seconds(arguments.max_wait),
        isolate_decoder=not arguments.decode_in_process,
    )


def _chosen(value: Any) -> str | None:
    return None if value in (None, "auto") else str(value)
