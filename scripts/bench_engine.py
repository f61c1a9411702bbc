"""First token and decode speed of vidqa's engine against plain transformers, on the same frames and weights.

One warm process, alternating repeats, medians. The model is random, with Qwen2-VL-2B's head
layout at a reduced width. --json prints an object. Tokens can only be the same where a clip has no
more temporal slices than token rows or columns: beyond that the two sides count positions differently.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.models import build, copy_of, load, reduced, some_prompt
from benchlib.runs import SyntheticReader, alternating, plan_for, run_transformers, run_vidqa, synthetic_video


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, nargs=2, default=(168, 448), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device, (height, width) = torch.device("cpu"), arguments.size
    spec = reduced("2b", arguments.layers, arguments.width)
    oracle = build(spec, device, torch.float32)
    loaded = load(copy_of(oracle, device, torch.float32), device, torch.float32)
    problem, plan = plan_for(loaded, arguments.frames, (height, width), arguments.tokens)
    reader = SyntheticReader(synthetic_video(arguments.frames, width, height), arguments.frames)
    frames, prompt = reader.stacked(arguments.frames), some_prompt()
    runs = alternating(
        {
            "transformers": lambda: run_transformers(oracle, loaded, frames, arguments.tokens),
            "vidqa": lambda: run_vidqa(loaded, problem, plan, reader),
        },
        arguments.repeats,
    )
    report: dict[str, Any] = {
        "prompt_tokens": len(prompt.head) + plan.visual_tokens + len(prompt.tail),
        "frames": arguments.frames,
        "repeats": arguments.repeats,
        "same_tokens": runs["vidqa"][0].tokens == runs["transformers"][0].tokens,
        "first_token_s": {name: median(run.first_token_s for run in made) for name, made in runs.items()},
        "tokens_per_s": {name: median(run.tokens_per_s for run in made) for name, made in runs.items()},
    }
    for measure in ("first_token_s", "tokens_per_s"):
        report[f"{measure}_ratio"] = report[measure]["vidqa"] / report[measure]["transformers"]
    print(json.dumps(report, indent=1) if arguments.json else _text(report))
    return 0


def _text(report: dict[str, Any]) -> str:
    first, speed = report["first_token_s"], report["tokens_per_s"]
    lines = [
        f"{report['prompt_tokens']} prompt tokens from {report['frames']} frames, "
        f"medians of {report['repeats']} alternating repeats"
    ]
    for name in first:
        lines.append(f"{name:13} first token {first[name]:7.3f} s   decode {speed[name]:7.1f} tokens/s")
    lines.append(
        f"vidqa / transformers: first token {report['first_token_s_ratio']:.2f}x (bar <= 1.0), "
        f"decode {report['tokens_per_s_ratio']:.2f}x (bar >= 1.0), same tokens: {report['same_tokens']}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
