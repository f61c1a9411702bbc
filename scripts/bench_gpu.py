#!/usr/bin/env python3
"""The engine's speed, exactness and flat memory on a GPU, beside the device's own limits and plain transformers.

Random-weight Qwen2-VL-2B and -7B in bf16, batch 1, frames of noise: needs torch and transformers, no video
library and no network. Every section has its own time limit and is written to the result file when it ends, so
that a failure loses nothing; together they take less than 8 minutes. Ends with 1 where a bar is missed.

    scripts/bench_gpu.py [--sections decode-2b,prefill-7b] [--name NAME]
    scripts/bench_gpu.py --device cpu --tiny        # every section on a toy, no bars
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, Bar, missed, row_object, table, write_result
from benchlib.sections import Found, Section, run_here, run_in_children, teller

BUDGET_SECONDS = 465.0
# Seconds that each section may take; in this order, what later ones need first.
LIMITS = {
    "limits": 30.0, "exactness": 60.0, "decode-2b": 110.0, "vision": 50.0, "first-token-2b": 70.0, "follow-up": 40.0,
    "flat-memory": 40.0, "decode-7b": 110.0, "prefill-7b": 150.0, "first-token-7b": 80.0, "nf4": 70.0, "batch": 25.0,
}  # fmt: skip
BARS = {
    "exactness: vidqa in fp32 against transformers in fp32": Bar(1.0),
    "exactness: vidqa in bf16 against transformers in fp32": Bar(1.0),
    "exactness: captured step against eager one in fp32": Bar(1.0),
    "decode-2b: compiled, share of the bound": Bar(0.40, goal=0.55),
    "decode-2b: compiled, times transformers": Bar(8.0),
    "decode-7b: compiled, share of the bound": Bar(0.55, goal=0.65),
    "prefill-7b: the engine's choice": Bar(0.50),
    "vision: 64 slices of 1008x560, times transformers": Bar(1.1),
    "vision: 256 slices of 280x280, times transformers": Bar(2.0),
    "first-token-2b: 64 frames of 1008x560, times transformers": Bar(1.5),
    "first-token-7b: 64 frames of 1008x560, times transformers": Bar(1.5),
    "follow-up: second / first": Bar(0.10, "<="),
    "flat-memory: difference beside the KV cache's": Bar(0.02, "<="),
    "batch: 16 together, times one": Bar(6.0),
    "nf4: 2b: nf4, times native speed": Bar(1.0),
    "nf4: 7b: nf4, times native speed": Bar(1.0),
}


def sections() -> dict[str, Section]:
    """All sections by name; imports torch."""
    from benchlib import language, video

    return {
        "limits": language.limits, "exactness": language.exactness,
        "decode-2b": language.decoding("2b"), "batch": language.batching,
        "vision": video.vision, "first-token-2b": video.first_token("2b"), "follow-up": video.following_up,
        "flat-memory": video.flat_memory,
        "decode-7b": language.decoding("7b"), "prefill-7b": language.prefilling,
        "first-token-7b": video.first_token("7b"), "nf4": language.four_bit,
    }  # fmt: skip


def child(arguments: argparse.Namespace) -> int:
    """Run the named sections here, and tell on the descriptor; 1 where the process is not fit to go on."""
    import os
    import time

    from vidqa.memory.device import allocator_environment, find_device

    os.environ.update(allocator_environment(os.environ))  # as a Session does: torch reads it once
    import torch

    from benchlib.bench import Bench
    from benchlib.rows import environment

    tell, began = teller(arguments.descriptor), time.monotonic()
    tell({"environment": environment(arguments.device)})
    if arguments.tiny:
        torch.set_num_threads(1)  # toy layers do not share well
    device = torch.device("cpu" if arguments.device == "cpu" else f"cuda:{find_device('cuda').index}")
    bench = Bench(device, tiny=arguments.tiny)
    for name in arguments.sections.split(","):
        left = arguments.left - (time.monotonic() - began)
        if left <= 0:
            return 1
        good = run_here(name, sections()[name], bench, min(LIMITS[name], left), tell)
        if not good:
            return 1  # the next ones get a process whose device and memory nothing has touched
    return 0


def report(found: Found, arguments: argparse.Namespace, *, finished: bool) -> dict[str, Any]:
    """What is written: rows with their bars, and how every section ended."""
    bars: Mapping[str, Bar] = {} if arguments.tiny else BARS
    asked = {key: bar for key, bar in bars.items() if key.partition(": ")[0] in arguments.sections.split(",")}
    return {
        "kind": "gpu",
        "environment": found.environment,
        "tiny": arguments.tiny,
        "finished": finished,
        "sections": found.ends,
        "missed": missed(found.rows, asked, found.outcome("skipped")) if finished else [],
        "rows": [row_object(row, bars.get(row.key)) for row in found.rows],
    }


def target(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Path:
    """Where the results go: named after the device, a toy's where nothing is kept."""
    device = re.sub(r"[^a-z0-9]+", "-", environment.get("device", "unknown").lower()).strip("-")
    folder = RESULTS.parent / "scratch" if arguments.tiny else RESULTS
    return arguments.output or folder / f"gpu-{arguments.name or device}.json"


def parent(arguments: argparse.Namespace) -> int:
    """Run children until every section has ended, writing after each; the exit code."""

    def command(names: Sequence[str], left: float) -> list[str]:
        words = [sys.executable, str(Path(__file__).resolve()), "--child", "--device", arguments.device]
        words += ["--tiny"] if arguments.tiny else []
        return [*words, "--sections", ",".join(names), "--left", str(left), "--descriptor"]

    def changed(found: Found) -> None:
        end = found.ends[-1]
        print(f"{end['section']:<16}{end['outcome']} in {end['seconds']:.1f} s  {end['detail']}", flush=True)
        write_result(target(arguments, found.environment), report(found, arguments, finished=False))

    limits = {name: LIMITS[name] for name in arguments.sections.split(",")}
    found = run_in_children(limits, arguments.budget, command, changed)
    told = report(found, arguments, finished=True)
    path = target(arguments, found.environment)
    write_result(path, told)
    print("\n".join((str(told["environment"]), *table(told["rows"]))))
    for line in told["missed"]:
        print(f"missed: {line}")
    print(f"written: {path.name}")
    broken = any(end["outcome"] in ("failed", "timed out") for end in found.ends)
    return 1 if told["missed"] or (arguments.tiny and broken) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; no bars are judged")
    parser.add_argument("--sections", default=",".join(LIMITS), help="comma-separated; default: all")
    parser.add_argument("--name", help="the results' name (default: the device's)")
    parser.add_argument("--output", type=Path, help="write there instead")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds for all sections")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.sections.split(",")) - set(LIMITS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; choose from {', '.join(LIMITS)}")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("full-size models are for a GPU; add --tiny on a CPU")
    return child(arguments) if arguments.child else parent(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
