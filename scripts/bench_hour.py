#!/usr/bin/env python3
"""First token of an hour at 1080p, read by 64 frames: with frames by change, the scan included, against even frames.

Rounds alternate between the two; each begins with an empty state folder, so that every scan is a first one. The clip is
H.264 with a keyframe every ten seconds, sensor noise and three short events. Bar: at most 1.5 times the time of even
frames. Then, of ten minutes at 360 lines with `--focus auto`: a question that selects frames, and another one, which
selects anew from the same embeddings. Bar: half of the first one's time. Results go to benchmarks/results/. Needs about
a gigabyte of disk; run it on a quiet machine.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, Bar, Row, report, seconds_row
from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from demo_world.world import Actor, Scene
from vidqa import EngineConfig, Request, Session
from vidqa.events import StageProgress, StageStarted, TextDelta

BARS = {
    "hour: first token, auto over uniform": Bar(1.5, "<="),
    "focus: first token, another question over the first": Bar(0.5, "<="),
}
Sample = Literal["uniform", "auto"]
SAMPLES: tuple[Sample, ...] = ("uniform", "auto")
_QUESTION = "what happens?"
_SELECTING = ("what color is the square?", "when does the red square appear?")
_FOCUS_SECONDS, _FOCUS_HEIGHT, _FOCUS_FRAMES = 600.0, 360, 32
_RED = Actor("appears", "square", "red", "red", "right", 0.3, 0.5, 0.5, 0.5, 0.5, 0.0, 2.0, 0.0, 1.0, 2.0, 0.0)


def write_hour(path: Path, seconds: float, height: int) -> None:
    """Write the clip."""
    events = tuple(LongEvent(Scene((_RED,), "plain", 0), seconds * share, 0.8) for share in (0.21, 0.52, 0.83))
    width = height * 16 // 9 // 2 * 2
    write_long_clip(LongClip(seconds, events, noise=3.0, seed=1, fps=25, width=width, height=height), path)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from the question to the first word, and of the scan in it; the stages that ran."""

    first_word: float
    scan: float
    stages: frozenset[str] = frozenset()


def measure(clip: Path, sample: Sample, frames: int, model: str, state: Path) -> Times:
    """Ask once, with the model loaded, in a new process and without a state folder: the scan is a first one."""
    shutil.rmtree(state, ignore_errors=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        times = pool.submit(ask, clip, sample, frames, model).result()
    if (sample == "auto") != (times.scan > 0):
        raise RuntimeError(f"--sample {sample} scanned for {times.scan:.2f} s")
    return times


def _config(model: str) -> EngineConfig:
    return EngineConfig(model=model, remember=False, calibrate=False, max_wait_seconds=None)


def ask(clip: Path, sample: Sample, frames: int, model: str) -> Times:
    """Load the model, ask, and return the times to the first word."""
    with Session(_config(model)) as session:
        deque(session.load(Request(str(clip), _QUESTION, frames=2, sample="uniform")), maxlen=0)
        return until_first_word(session, Request(str(clip), _QUESTION, frames=frames, sample=sample, max_tokens=2))


def until_first_word(session: Session, request: Request) -> Times:
    """Ask; return the times to the first word."""
    begin, scan, scanning, stages = time.perf_counter(), 0.0, None, set[str]()
    for event in session.ask(request):
        now = time.perf_counter()
        if scanning is not None and not isinstance(event, StageProgress):
            scan, scanning = now - scanning, None
        if isinstance(event, StageStarted):
            stages.add(event.stage)
            scanning = now if event.stage == "scan" else None
        if isinstance(event, TextDelta):
            return Times(now - begin, scan, frozenset(stages))
    raise RuntimeError(f"{request.video}: the answer has no text")


def select_twice(clip: Path, frames: int, model: str, rounds: int) -> Iterator[tuple[Times, Times]]:
    """Yield the times of a question that selects frames and of another one; RuntimeError if that read the video."""
    first, second = (Request(str(clip), text, frames=frames, focus="auto", max_tokens=2) for text in _SELECTING)
    with Session(_config(model)) as session:
        deque(session.load(Request(str(clip), _QUESTION, frames=2)), maxlen=0)
        for _ in range(rounds):
            session.forget()
            one, other = until_first_word(session, first), until_first_word(session, second)
            if not one.stages - other.stages >= {"video", "vision"} or "focus" not in other.stages:
                raise RuntimeError(f"the stages were {sorted(one.stages)}, then {sorted(other.stages)}")
            yield one, other


def focus_rows(clip: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the times of two questions that select frames, and their ratio."""
    write_hour(clip, _FOCUS_SECONDS, _FOCUS_HEIGHT)
    pairs = list(select_twice(clip, _FOCUS_FRAMES, arguments.model, arguments.rounds))
    what = f"{_FOCUS_FRAMES} frames of {_FOCUS_SECONDS:.0f} s at {_FOCUS_HEIGHT} lines"
    first, other = ([pair[place].first_word for pair in pairs] for place in (0, 1))
    yield seconds_row("focus", "first token, first question", first, what)
    yield seconds_row("focus", "first token, another question", other, what)
    yield Row("focus", "first token, another question over the first", median(other) / median(first), "×", "medians")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the times of both ways and their ratio, then those of questions that select frames."""
    with tempfile.TemporaryDirectory() as temporary:
        state = Path(temporary) / "state"
        os.environ["VIDQA_STATE"] = str(state)
        clip = arguments.clip or Path(temporary) / "hour.mp4"
        if not clip.exists():
            write_hour(clip, arguments.seconds, arguments.height)
        found: dict[Sample, list[Times]] = {sample: [] for sample in SAMPLES}
        for _ in range(arguments.rounds):
            for sample, timings in found.items():
                timings.append(measure(clip, sample, arguments.frames, arguments.model, state))
        selections = list(focus_rows(Path(temporary) / "minutes.mp4", arguments))  # the state folder is here, too
    what = f"{arguments.frames} frames of {arguments.seconds:.0f} s at {arguments.height} lines"
    for sample, timings in found.items():
        yield seconds_row("hour", f"first token, {sample}", [one.first_word for one in timings], what)
    yield seconds_row("hour", "scan", [one.scan for one in found["auto"]])
    even, auto = (median(one.first_word for one in found[sample]) for sample in SAMPLES)
    yield Row("hour", "first token, auto over uniform", auto / even, "×", "medians of alternating runs")
    yield from selections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="where the clip is, or is to be kept")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--output", type=Path, default=RESULTS / "hour-cpu.json")
    arguments = parser.parse_args()
    return report("hour", rows(arguments), BARS, arguments.output)


if __name__ == "__main__":
    raise SystemExit(main())
