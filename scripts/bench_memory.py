#!/usr/bin/env python3
"""Planned against measured memory over many setups: full-size models with random weights under caps, on a GPU.

For each model, precision and cap a new process creates the model on the device as planned and runs plans over frames,
sizes and answer lengths. Each peak (reserved by the allocator, and the process's bytes by the driver) is compared with
the plan's. Each plan, each setup and the whole run have time limits; each plan is written at once. Without a GPU,
`--device cpu` does the same with the demo model and its live tensors. Results go to benchmarks/results/.
scripts/gpu_check.py has a shorter form as sections.

    scripts/bench_memory.py [--device cuda|cpu] [--setups 2b-bf16-8,7b-nf4-8] [--limit SECONDS]
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.planned import GIB, Measured, Setup, make_plans, measure, run_plan, summarise
from benchlib.rows import RESULTS, environment, write_result
from benchlib.sections import Results, Section, Send, run_child, run_in_children

__all__ = ["make_plans", "run_plan"]  # imported by tests/gpu/test_gpu_memory.py
# Model, precision, cap in GiB; by name, as 2b-bf16-6.
SETUPS = {
    f"{model}-{weights}-{cap}": (model, weights, cap)
    for model, weights, caps in (
        ("2b", "bf16", (6, 8, 12, 16, 24)), ("2b", "nf4", (6,)), ("7b", "nf4", (6, 8, 12, 16)), ("7b", "int8", (12,)),
        ("7b", "bf16", (24,)),
    )
    for cap in caps
}  # fmt: skip
_SETUP_SECONDS = 120.0
_PLAN_SECONDS = 40.0


def sections() -> dict[str, Section]:
    """Return a section per setup by its name; imports torch and transformers."""
    from benchlib.bench import Bench, Sizes
    from benchlib.models import FULL

    def section(setup: Setup) -> Section:
        def run(bench: Bench) -> Iterator[Measured]:
            yield from measure(bench.accelerator, setup, Sizes().plans, _PLAN_SECONDS)

        return run

    return {name: section(Setup(model, FULL[model], weights, cap)) for name, (model, weights, cap) in SETUPS.items()}


def child(descriptor: int) -> int:
    """Run the sections of a child process."""

    def begin(send: Send) -> tuple[Mapping[str, Section], Any]:
        from benchlib.accelerator import Cuda
        from benchlib.bench import Bench

        accelerator = Cuda()
        send({"environment": environment(accelerator.name)})
        return sections(), Bench(accelerator, tiny=False)

    return run_child(descriptor, sections, begin)


def measure_on_gpu(names: Sequence[str], limit_seconds: float) -> Results:
    """Run each setup in a process; write each plan at once."""
    from vidqa.devices.device import allocator_environment

    os.environ.update(allocator_environment(os.environ))  # as a Session does: torch reads it once
    words = [sys.executable, str(Path(__file__).resolve()), "--child"]
    groups = [{name: _SETUP_SECONDS} for name in names]

    def changed(found: Results) -> None:
        if found.rows:
            write_result(RESULTS / "memory-cuda.json", content(found.rows, found.environment))
        print(f"{len(found.rows)} plans; {found.ends[-1:]}", flush=True)

    return run_in_children(groups, limit_seconds, words, changed, lambda fields: Measured(**fields))


def measure_on_cpu() -> list[Measured]:
    """Measure live tensors of the demo model, without the prefetcher's, which are not counted."""
    from benchlib.accelerator import Host
    from benchlib.bench import Sizes
    from benchlib.planned import run_one
    from benchlib.runs import synthetic_video
    from vidqa.config import EngineConfig
    from vidqa.devices.device import find_device
    from vidqa.models.loader import load_model
    from vidqa.models.registry import find_checkpoints
    from vidqa.planner.budget import runtime_overhead
    from vidqa.types import Placement

    (found,), host, device = find_checkpoints("demo", local=True), Host(), find_device("cpu")
    loaded = load_model(found.local_folder(), host.device, "fp32", "fp32", Placement())
    setup = Setup("demo", found.spec, "fp32", device.total_bytes / GIB)
    overhead = replace(runtime_overhead(device, synthetic_video(25)), context_bytes=0)  # tensors alone are compared
    config = EngineConfig(device="cpu", weights="fp32", remember=False)
    plans = make_plans(found, device, config, overhead, Sizes().plans)
    return [run_one(host, setup, loaded, problem, plan, 600.0) for problem, plan in plans]


def content(rows: Sequence[Measured], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the result as it is written."""
    return {"environment": dict(environment), "bars": summarise(rows), "rows": [asdict(row) for row in rows]}


def missed(bars: Mapping[str, Any]) -> list[str]:
    """Return the missed bars: median 1 %, 95th percentile 3 %, 300 MiB under, none stopped, 100 plans."""
    limits = {"median_error": 0.01, "p95_error": 0.03, "worst_under_bytes": 300 * 2**20, "out_of_memory": 0,
              "stopped": 0}  # fmt: skip
    misses = [f"{name} {bars[name]} above {limit}" for name, limit in limits.items() if bars[name] > limit]
    return misses + ([f"only {bars['plans']} plans"] if bars["plans"] < 100 else [])


def table(rows: Sequence[Measured]) -> Iterator[str]:
    """Yield a header and a line per plan."""
    yield f"{'model':<6}{'weights':<8}{'cap':>6}{'frames':>8}{'size':>11}{'tokens':>8}{'predicted':>12}{'measured':>12}"
    for row in rows:
        end = "OUT OF MEMORY" if row.out_of_memory else "STOPPED" if row.stopped else f"{row.error:+.2%}"
        yield (
            f"{row.model:<6}{row.weights:<8}{row.cap_gib:>6.1f}{row.frames:>8}{f'{row.width}x{row.height}':>11}"
            f"{row.tokens:>8}{row.predicted / GIB:>12.3f}{row.measured / GIB:>12.3f}  {end}"
        )


def wanted(text: str | None) -> list[str]:
    """Return the setups of a list of names; raises ValueError for an unknown name."""
    names = re.split(r",\s*", text) if text else list(SETUPS)
    if unknown := set(names) - set(SETUPS):
        raise ValueError(f"there is no setup {', '.join(sorted(unknown))}; choose from {', '.join(SETUPS)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--setups", help=f"some of {', '.join(SETUPS)}, with commas between them")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds for all setups together")
    parser.add_argument("--child", type=int, metavar="DESCRIPTOR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        return child(arguments.child)
    if arguments.device == "cpu":
        rows = measure_on_cpu()
        write_result(RESULTS / "memory-cpu.json", content(rows, environment()))
        print("\n".join(table(rows)), json.dumps(summarise(rows)), sep="\n")
        return 0
    try:
        names = wanted(arguments.setups)
    except ValueError as error:
        parser.error(str(error))
    found = measure_on_gpu(names, arguments.limit)
    print("\n".join(table(found.rows)))
    misses = missed(summarise(found.rows)) + [f"{name}: not finished" for name in found.outcome("failed", "timed out")]
    print("\n".join(f"missed: {line}" for line in misses))
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main())
