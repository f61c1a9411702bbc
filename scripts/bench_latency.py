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
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from bench_follow_up import answered, write_clip

from benchlib.accelerator import Cuda
from benchlib.models import FULL, reduced, write_random_model
from benchlib.rows import RESULTS, Bar, environment, write_result
from vidqa import EngineConfig, Request, Session
from vidqa.devices.device import find_device
from vidqa.planner.calibration import device_key, stored_speed
from vidqa.planner.problem import cpu_threads

BAR = Bar(0.30, "<=")
# Frames, and pixels a side.
PLANS = ((2, 224), (4, 224), (8, 224), (4, 336), (2, 448), (8, 336), (6, 280), (12, 224), (4, 448), (16, 224))
_WARM_UP = 3  # answers whose times are corrections, beside the first one, which no plan foresees
_QUESTION = "what happens?"


def measure(model: str, clip: str, config: EngineConfig, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield a row per plan, predicted and measured, after some answers of other sizes."""
    config = replace(config, model=model)
    with Session(config) as session:
        for number, (frames, side) in enumerate((*PLANS[:_WARM_UP], *PLANS)):
            session.forget()
            request = Request(clip, _QUESTION, frames=frames, size=(side, side), max_tokens=tokens)
            predicted = session.plan(request).seconds
            answer, _ = answered(session, request)
            timing = answer.timing
            if number < _WARM_UP:
                continue
            row = {
                "frames": frames, "side": side, "prompt_tokens": answer.plan.prompt_tokens,
                "first_token_s": {"predicted": predicted.first_token_seconds, "measured": timing.first_token_seconds},
                "token_s": {
                    "predicted": predicted.decode_seconds / tokens,
                    "measured": timing.decode_seconds / max(timing.tokens - 1, 1),
                },
                "tokens": timing.tokens, "calibrated": predicted.calibrated,
            }  # fmt: skip
            print("  ".join(f"{frames} frames of {side}" if name == "frames" else shown(row, name) for name in
                            ("frames", "first_token_s", "token_s")))  # fmt: skip
            yield row


def shown(row: dict[str, Any], name: str) -> str:
    """Return a prediction beside its measurement."""
    pair = row[name]
    return f"{name} {pair['predicted']:.3f} / {pair['measured']:.3f} ({error(pair):+.0%})"


def error(pair: dict[str, float]) -> float:
    """Return by how much a prediction exceeds its measurement, as a share of it."""
    return pair["predicted"] / pair["measured"] - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--layers", type=int, help="of a smaller model, for a rehearsal")
    parser.add_argument("--model", type=Path, help="folder of a random model, instead of writing one")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/latency-DEVICE.json")
    arguments = parser.parse_args()
    spec = FULL["2b"] if arguments.layers is None else reduced("2b", arguments.layers, 768)
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VIDQA_STATE"] = str(Path(temporary) / "state")
        folder, clip = arguments.model or Path(temporary) / "model", Path(temporary) / "clip.mp4"
        if not arguments.model:
            write_random_model(spec, folder)
        write_clip(clip, 50, 448)
        config = EngineConfig(device=arguments.device, calibrate=True, remember=False, count_tensors=False)
        for name, model in (("demo", "demo"), ("2b", str(folder))):
            print(name)
            rows[name] = list(measure(model, str(clip), config, arguments.tokens))
        device = find_device(arguments.device)
        measured = stored_speed(device_key(device, cpu_threads(config)), "").measured
    worst = {
        f"{name} {what}": max(abs(error(row[what])) for row in found)
        for name, found in rows.items()
        for what in ("first_token_s", "token_s")
    }
    content = {
        "kind": "latency", "environment": environment(Cuda().name if arguments.device == "cuda" else ""),
        "rates": {precision: str(rates) for precision, rates in measured.items()}, "rows": rows,
        "worst_error": worst, "bar": BAR.value, "ok": all(map(BAR.met_by, worst.values())),
    }  # fmt: skip
    write_result(arguments.output or RESULTS / f"latency-{arguments.device}.json", content)
    for name, value in worst.items():
        print(f"{name}: worst error {value:.0%} (bar {BAR.value:.0%})")
    return 0 if content["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
