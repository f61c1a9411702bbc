#!/usr/bin/env python3
"""Predicted against measured time: first token and decoding of ten plans of the demo model and of a random 2B model.

The device is calibrated first; each plan is then predicted with the corrections of the answers before it, and measured.
Bar: each prediction within 30 % of its measurement. Results go to benchmarks/results/. Run it on a quiet machine.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from bench_follow_up import answered, write_clip

from benchlib.models import FULL, reduced, write_random_model
from benchlib.rows import RESULTS, Bar, Row, report
from vidqa import EngineConfig, Request, Session

BARS = {f"{model}: worst {what}": Bar(0.30, "<=") for model in ("demo", "2b") for what in ("first token", "token")}
# Frames, and pixels a side.
PLANS = ((2, 224), (4, 224), (8, 224), (4, 336), (2, 448), (8, 336), (6, 280), (12, 224), (4, 448), (16, 224))
_WARM_UP = 3  # answers whose times are corrections, beside the first one, which no plan foresees
_QUESTION = "what happens?"


@dataclass(frozen=True, slots=True)
class Pair:
    """Predicted and measured seconds of one plan, to the first token or for a further one."""

    plan: str
    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """By how much the prediction exceeds the measurement, as a share of it."""
        return self.predicted / self.measured - 1


def measure(model: str, clip: str, config: EngineConfig, tokens: int) -> Iterator[Pair]:
    """Yield both pairs of each plan, after some answers of other sizes."""
    with Session(replace(config, model=model)) as session:
        for number, (frames, side) in enumerate((*PLANS[:_WARM_UP], *PLANS)):
            session.forget()
            request = Request(clip, _QUESTION, frames=frames, size=(side, side), max_tokens=tokens)
            predicted = session.plan(request).seconds
            answer, _ = answered(session, request)
            timing, plan = answer.timing, f"{frames} frames of {side}"
            if number >= _WARM_UP:
                yield Pair(plan, "first token", predicted.first_token_seconds, timing.first_token_seconds)
                yield Pair(plan, "token", predicted.decode_seconds / tokens, 1 / timing.tokens_per_second)


def rows(name: str, pairs: Iterator[Pair]) -> Iterator[Row]:
    """Yield each pair's error, and the worst of each kind."""
    worst: dict[str, float] = {}
    for pair in pairs:
        note = f"{pair.predicted:.3f} s predicted, {pair.measured:.3f} s measured"
        yield Row(name, f"{pair.plan}, {pair.what}", pair.error, "share", "predicted / measured - 1", note=note)
        worst[pair.what] = max(abs(pair.error), worst.get(pair.what, 0.0))
    for what, error in worst.items():
        yield Row(name, f"worst {what}", error, "share", "largest |predicted / measured - 1|")


def measured_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of both models, with a calibration of their own in a folder of their own."""
    spec = FULL["2b"] if arguments.layers is None else reduced("2b", arguments.layers, 768)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VIDQA_STATE"] = str(Path(temporary) / "state")
        folder, clip = arguments.model or Path(temporary) / "model", Path(temporary) / "clip.mp4"
        if not arguments.model:
            write_random_model(spec, folder)
        write_clip(clip, 50, 448)
        config = EngineConfig(device="cpu", calibrate=True, remember=False, count_tensors=False)
        for name, model in (("demo", "demo"), ("2b", str(folder))):
            yield from rows(name, measure(model, str(clip), config, arguments.tokens))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of a smaller model, for a rehearsal")
    parser.add_argument("--model", type=Path, help="folder of a random model, instead of writing one")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--output", type=Path, default=RESULTS / "latency-cpu.json")
    arguments = parser.parse_args()
    return report("latency", measured_rows(arguments), BARS, arguments.output)


if __name__ == "__main__":
    raise SystemExit(main())
