#!/usr/bin/env python3
"""Time to the first token of a first and a second question about one video, in a Session.

A random-weight checkpoint with Qwen2-VL-2B's head layout (few layers; `--full` for all), a generated clip, and about
16K visual tokens. The second question has the first one and its answer as history. Between rounds the session forgets
the video. Results go to benchmarks/results/. Needs PyAV; scripts/gpu_check.py measures the same without it.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import av
import numpy as np

from benchlib.accelerator import Cuda
from benchlib.models import FULL, reduced, write_random_model
from benchlib.rows import RESULTS, Bar, Samples, environment, write_result
from vidqa import EngineConfig, Request, Session
from vidqa.events import Answered, StageStarted
from vidqa.types import Answer, Turn

BAR = Bar(0.10, "<=")
QUESTIONS = ("what happens?", "which way does it move?")
_ANSWER_TOKENS = 16


def write_clip(path: Path, frames: int, size: int) -> None:
    """Write a clip of a bright square that moves over a pattern, at 25 frames per second."""
    down, across = np.mgrid[0:size, 0:size]
    pattern = np.stack([down * 2 % 256, across * 3 % 256, (down + across) % 256], axis=-1).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for number in range(frames):
            picture, place = pattern.copy(), 3 * number % (size - 64)
            picture[place : place + 64, place : place + 64] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def answered(session: Session, request: Request) -> tuple[Answer, list[str]]:
    """Return the answer and the stages that ran for it."""
    events = list(session.ask(request))
    assert isinstance(events[-1], Answered)
    return events[-1].answer, [event.stage for event in events if isinstance(event, StageStarted)]


def measure(session: Session, first: Request, rounds: int) -> Iterator[tuple[Answer, Answer]]:
    """Yield both answers of each round; raises RuntimeError if the second question encoded the video again."""
    for _ in range(rounds):
        session.forget()
        one, _ = answered(session, first)
        turn = Turn(first.question, one.text)
        second = Request(
            first.video, QUESTIONS[1], history=(turn,), frames=first.frames, size=first.size, max_tokens=_ANSWER_TOKENS
        )
        two, stages = answered(session, second)
        if "vision" in stages:
            raise RuntimeError("the second question encoded the video again")
        print(f"first token: {one.timing.first_token_seconds:.3f} s, then {two.timing.first_token_seconds:.3f} s")
        yield one, two


def report(pairs: list[tuple[Answer, Answer]], device: str, model: str) -> dict[str, Any]:
    """Return the result as it is written."""
    first = [one.timing.first_token_seconds for one, _ in pairs]
    second = [two.timing.first_token_seconds for _, two in pairs]
    plan, ratio = pairs[0][0].plan, Samples.of(second).p50 / Samples.of(first).p50
    return {
        "kind": "follow-up", "environment": environment(Cuda().name if device == "cuda" else ""), "model": model,
        "visual_tokens": plan.visual_tokens, "frames": plan.run_config.frames,
        "height": plan.run_config.height, "width": plan.run_config.width, "attention": plan.run_config.attention,
        "new_tokens": pairs[0][1].plan.prompt_tokens - plan.prompt_tokens,
        "first_token_s": {"first": asdict(Samples.of(first)), "second": asdict(Samples.of(second))},
        "ratio": ratio, "bar": BAR.value, "ok": BAR.met_by(ratio),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--full", action="store_true", help="all of Qwen2-VL-2B instead of a part")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--size", type=int, default=448, help="pixels a side, a multiple of 28")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/follow-up-DEVICE.json")
    arguments = parser.parse_args()
    spec = FULL["2b"] if arguments.full else reduced("2b", arguments.layers, arguments.width)
    size = (arguments.size, arguments.size)
    with tempfile.TemporaryDirectory() as temporary:
        folder, clip = Path(temporary) / "model", Path(temporary) / "clip.mp4"
        write_random_model(spec, folder)
        write_clip(clip, 2 * arguments.frames, arguments.size)
        weights = "bf16" if arguments.device == "cuda" else "fp32"
        config = EngineConfig(
            model=str(folder), device=arguments.device, weights=weights, conversation_tokens=1024, remember=False
        )
        request = Request(str(clip), QUESTIONS[0], frames=arguments.frames, size=size, max_tokens=_ANSWER_TOKENS)
        with Session(config) as session:
            pairs = list(measure(session, request, arguments.rounds))
    shape = f"random Qwen2-VL, {spec.layers} layers of {spec.hidden}, {spec.heads}/{spec.kv_heads} heads"
    result = report(pairs, arguments.device, shape)
    write_result(arguments.output or RESULTS / f"follow-up-{arguments.device}.json", result)
    print(f"{result['visual_tokens']} visual tokens, {result['new_tokens']} new ones in the second question")
    print(f"second / first: {result['ratio']:.2%} (bar {BAR.sense} {BAR.value:.0%})")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
