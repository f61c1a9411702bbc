"""`vidqa ask VIDEO QUESTION`: one question, one answer on stdout.

Arguments become a Request and an EngineConfig; the session's events become text or JSON.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from vidqa.cli.output import ExitCode, Talk, write_json
from vidqa.errors import Interrupted
from vidqa.text import safe_line, safe_text
from vidqa.types import Answer, Plan, VideoInfo
from vidqa.units import format_bytes, format_timestamp, parse_size, parse_timestamp

SCHEMA_VERSION = 1


def add_parser(commands: Any) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "ask", help="answer one question about one video", description="Answers one question about one video."
    )
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument("question", metavar="QUESTION", help='for example "what happens?"')
    parser.add_argument("--model", help="demo, a Hugging Face repository, or a folder")
    parser.add_argument("--device", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument("--attn", choices=("auto", "sdpa", "flex"), help="attention kernel")
    parser.add_argument("--frames", type=int, metavar="N", help="sample N frames (even; default: 2 per second)")
    parser.add_argument("--fps", type=float, metavar="F", help="sample F frames per second")
    parser.add_argument("--start", metavar="TIME", help="first moment to look at: seconds or mm:ss")
    parser.add_argument("--end", metavar="TIME", help="last moment to look at: seconds or mm:ss")
    parser.add_argument("--size", metavar="WxH", help="size to give the frames, in pixels")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling (default 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")
    parser.add_argument(
        "--decode-in-process", action="store_true", help="no separate process for FFmpeg (faster start)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer; returns the exit code."""
    from vidqa.cli.default_model import choose_model
    from vidqa.config import EngineConfig, load_settings
    from vidqa.engine.session import Session
    from vidqa.video.probe import check_file

    request = _request(arguments)
    check_file(request.video)  # before anybody is asked which model to fetch
    settings = load_settings()
    talk = Talk(arguments.quiet)
    model = choose_model(arguments.model or settings.model, talk)
    config = EngineConfig(
        model=model,
        device=arguments.device or settings.device or "auto",
        attention=arguments.attn or settings.attention or "auto",
        isolate_decoder=not arguments.decode_in_process,
    )
    with Session(config) as session, _signals(session) as received:
        try:
            answer = _render(session.ask(request), talk, arguments.json)
        except Interrupted as stopped:
            talk.say(str(stopped))
            return received.exit_code()
    if arguments.json:
        write_json(as_json(answer))
    talk.say(_usage(answer))
    return received.exit_code() if answer.finish_reason == "cancelled" else ExitCode.OK


def _request(arguments: argparse.Namespace) -> Any:
    from vidqa.types import Request

    return Request(
        video=arguments.video,
        question=arguments.question,
        system=arguments.system,
        frames=arguments.frames,
        fps=arguments.fps,
        start_seconds=None if arguments.start is None else parse_timestamp(arguments.start),
        end_seconds=None if arguments.end is None else parse_timestamp(arguments.end),
        size=None if arguments.size is None else parse_size(arguments.size),
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )


@dataclass(slots=True)
class _Received:
    """Which signal asked to stop, if any."""

    number: int | None = None

    def exit_code(self) -> int:
        return ExitCode.TERMINATED if self.number == signal.SIGTERM else ExitCode.INTERRUPTED


@contextmanager
def _signals(session: Any) -> Iterator[_Received]:
    """The first Ctrl-C or SIGTERM stops the answer and keeps its text; the second stops at once."""
    received = _Received()

    def stop(number: int, frame: FrameType | None) -> None:
        if received.number is not None:
            raise KeyboardInterrupt
        received.number = number
        session.cancel()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _render(events: Iterator[Any], talk: Talk, as_object: bool) -> Answer:
    """Show the events as they come; returns the answer."""
    from vidqa.events import Answered, Noted, Planned, StageProgress, StageStarted, TextDelta

    streamed = False
    for event in events:
        match event:
            case Planned(video, plan):
                talk.say(_model_line(plan))
                talk.say(_plan_line(video, plan))
            case StageStarted() | StageProgress():
                if not (event.stage == "decode" and not as_object):
                    talk.progress(event)
            case Noted(text):
                talk.say(f"note: {text}")
            case TextDelta(text) if not as_object:
                talk.clear()
                shown = safe_text(text if streamed else text.lstrip())
                streamed = streamed or bool(shown)
                sys.stdout.write(shown)
                sys.stdout.flush()
            case Answered(answer):
                talk.clear()
                if streamed:
                    sys.stdout.write("\n")
                    sys.stdout.flush()
                return answer
    raise RuntimeError("the session ended without an answer")


def _model_line(plan: Plan) -> str:
    label = "demo model: coloured shapes only" if plan.model == "demo" else f"model: {safe_line(plan.model)}"
    return f"{label} · {plan.device} {plan.dtype} · {plan.attention} attention"


def _plan_line(video: VideoInfo, plan: Plan) -> str:
    first, last = plan.timestamps_seconds[0], plan.timestamps_seconds[-1]
    return (
        f"video: {video.width}×{video.height} {video.codec}, {format_timestamp(video.duration_seconds)}\n"
        f"plan: {plan.frames} frames of {plan.width}×{plan.height} from {format_timestamp(first)} to "
        f"{format_timestamp(last)} · {plan.visual_tokens} visual + {plan.prompt_tokens - plan.visual_tokens} text "
        f"tokens · KV cache {format_bytes(plan.kv_bytes)}"
    )


def _usage(answer: Answer) -> str:
    timing = answer.timing
    stopped = {"length": " (stopped at --max-tokens)", "cancelled": " (stopped)"}.get(answer.finish_reason, "")
    return (
        f"{timing.tokens} tokens{stopped} · first after {timing.first_token_seconds:.2f} s · "
        f"{timing.tokens_per_second:.0f} tokens/s · peak memory {format_bytes(answer.memory.host_peak_bytes)}"
    )


def as_json(answer: Answer) -> dict[str, Any]:
    """The documented object of `--json` (README, "JSON")."""
    return {
        "schema_version": SCHEMA_VERSION,
        "video": _video_json(answer.video),
        "question": answer.question,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "plan": _plan_json(answer.plan),
        "memory": _memory_json(answer),
        "timing": _timing_json(answer),
        "notes": list(answer.notes),
    }


def _video_json(video: VideoInfo) -> dict[str, Any]:
    return {
        "path": video.path,
        "container": video.container,
        "codec": video.codec,
        "duration_s": round(video.duration_seconds, 6),
        "start_s": round(video.start_seconds, 6),
        "width": video.width,
        "height": video.height,
        "fps": round(video.fps, 6),
        "frames": video.frame_count,
        "rotation": video.rotation_degrees,
        "pixel_aspect": round(video.pixel_aspect, 6),
        "sources": dict(video.sources),
    }


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model,
        "device": plan.device,
        "dtype": plan.dtype,
        "frames": plan.frames,
        "height": plan.height,
        "width": plan.width,
        "visual_tokens": plan.visual_tokens,
        "prompt_tokens": plan.prompt_tokens,
        "timestamps_s": [round(seconds, 6) for seconds in plan.timestamps_seconds],
        "attention": plan.attention,
        "prefill_chunk": plan.prefill_chunk,
        "vision_chunk": plan.vision_chunk,
        "kv_capacity_tokens": plan.kv_capacity_tokens,
    }


def _memory_json(answer: Answer) -> dict[str, Any]:
    memory = answer.memory
    return {
        "weights_bytes": memory.weights_bytes,
        "kv_bytes": memory.kv_bytes,
        "host_peak_bytes": memory.host_peak_bytes,
        "device_peak_bytes": memory.device_peak_bytes,
    }


def _timing_json(answer: Answer) -> dict[str, Any]:
    timing = answer.timing
    return {
        "load_s": round(timing.load_seconds, 6),
        "video_s": round(timing.video_seconds, 6),
        "vision_s": round(timing.vision_seconds, 6),
        "prefill_s": round(timing.prefill_seconds, 6),
        "first_token_s": round(timing.first_token_seconds, 6),
        "decode_s": round(timing.decode_seconds, 6),
        "tokens": timing.tokens,
        "tokens_per_s": round(timing.tokens_per_second, 3),
    }
