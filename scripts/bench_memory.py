#!/usr/bin/env python3
"""Planned against measured memory: full-size models with random weights under caps, on a GPU.

For each model, precision and cap a process of its own loads the model as planned and runs
plans over frames, sizes and answer lengths; every peak (reserved by the allocator, and the
driver's word for the process) is set beside the plan's. Without a GPU `--device cpu` does
the same with the demo model and its living tensors. Results go to benchmarks/results/.

    scripts/bench_memory.py [--device cuda|cpu] [--folder TEMP] [--quick]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.models import FULL, write_random_model
from benchlib.rows import RESULTS, environment, write_result
from benchlib.runs import SyntheticReader, WholeTensors, ask, synthetic_video
from vidqa.config import EngineConfig
from vidqa.engine.planning import surroundings, tasks_for
from vidqa.errors import DoesNotFit
from vidqa.memory.estimate import Surroundings
from vidqa.memory.planner import plan_video
from vidqa.memory.search import Task
from vidqa.models.choice import Checkpoint
from vidqa.models.hub import demo_folder
from vidqa.models.specs import REFERENCE_BOUNDS, read_bounds, read_spec
from vidqa.types import Device, Plan, Request

GIB = 2**30
# Model, precision (None: the planner's choice), cap in GiB.
SETUPS: tuple[tuple[str, str | None, float], ...] = (
    ("2b", "bf16", 6), ("2b", "bf16", 8), ("2b", "bf16", 12), ("2b", "bf16", 16), ("2b", "bf16", 24),
    ("2b", "nf4", 6), ("7b", "nf4", 6), ("7b", "nf4", 8), ("7b", "nf4", 12), ("7b", "int8", 12),
    ("7b", "nf4", 16), ("7b", "bf16", 24),
)  # fmt: skip
# Seconds of video, frames and size (None: the planner's choice), answer tokens.
REQUESTS: tuple[tuple[float, int | None, tuple[int, int] | None, int], ...] = (
    (4, None, None, 16), (60, None, None, 16), (600, None, None, 16), (60, 8, (448, 252), 64),
    (60, 16, (1008, 560), 16), (60, 32, (448, 252), 16), (60, 64, (616, 336), 32), (60, 100, (448, 252), 16),
    (60, 4, (1008, 560), 256),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One plan and what it took, in bytes."""

    model: str
    weights: str
    cap_gib: float
    frames: int
    width: int
    height: int
    tokens: int
    answer_tokens: int
    predicted: int
    reserved: int
    runtime: int
    driver: int
    out_of_memory: bool

    @property
    def measured(self) -> int:
        """What the process held at its peak: its runtime and what the allocator reserved."""
        return self.runtime + self.reserved

    @property
    def error(self) -> float:
        """Predicted over measured, less one: positive is too much."""
        return self.predicted / self.measured - 1


def capped(device: Device, cap_gib: float) -> Device:
    """The device as if it had this much memory."""
    size = min(int(cap_gib * GIB), device.free_bytes + device.process_bytes)
    return replace(device, total_bytes=size, free_bytes=size, process_bytes=0, other_bytes=0)


def make_plans(
    found: Checkpoint, device: Device, config: EngineConfig, around: Surroundings | None = None
) -> Iterator[tuple[Task, Plan]]:
    """The plans of all requests that fit under the cap; `around` is what was measured, else what is assumed."""
    for seconds, frames, size, answer in REQUESTS:
        request = Request("noise", "what happens?", frames=frames, size=size, max_tokens=answer)
        (task,) = tasks_for([found], synthetic_video(int(seconds * 25)), request, config, device)
        task = replace(task, around=around or task.around)
        try:
            yield task, plan_video(task)
        except DoesNotFit:
            continue


def run_plan(loaded: Any, task: Task, plan: Plan, meter: Any = None) -> Any:
    """One plan through the pipeline, to the last token; returns its tracker."""
    from vidqa.engine.prompt import build_prompt

    prompt = build_prompt(loaded, task.request.question, None)
    return ask(loaded, task, plan, prompt, SyntheticReader(task.video), meter).tracker


def measure_on_gpu(folder: Path, name: str, weights: str | None, cap_gib: float) -> list[Row]:
    """All plans of one model under one cap, in this process."""
    import torch

    from vidqa.memory.device import find_device, reread
    from vidqa.memory.tracker import runtime_bytes
    from vidqa.models.loader import load_model, release_cached_memory, torch_device

    real = find_device("cuda")
    runtime = runtime_bytes(real)
    allowed = cap_gib * GIB - runtime
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(real.index).total_memory)
    device = capped(real, cap_gib)
    found = Checkpoint(name, read_spec(folder), REFERENCE_BOUNDS, folder)
    config = EngineConfig(weights=weights, remember=False)
    plans = list(make_plans(found, device, config))
    if not plans:
        return []
    place = plans[-1][1].draft.placement
    config = replace(config, placement=place, weights=plans[-1][1].draft.weights)
    draft = plans[-1][1].draft
    loaded = load_model(folder, torch_device(f"cuda:{real.index}"), draft.weights, draft.dtype, place)
    rows = []
    exact = replace(surroundings(device, synthetic_video(25)), context_bytes=runtime)
    for task, plan in make_plans(found, device, config, exact):
        release_cached_memory()
        torch.cuda.reset_peak_memory_stats()
        failed = False
        try:
            run_plan(loaded, replace(task, device=real), plan)
        except torch.OutOfMemoryError:
            failed = True
        rows.append(_row(name, cap_gib, plan, torch.cuda.max_memory_reserved(), runtime, reread(real), failed))
    return rows


def _row(
    name: str, cap: float, plan: Plan, reserved: int, runtime: int, device: Device | None, failed: bool, unseen: int = 0
) -> Row:
    """A plan and what it took; `unseen` bytes of its vision phase are another thread's, which is not counted."""
    draft = plan.draft
    return Row(
        name, draft.weights, cap, draft.frames, draft.width, draft.height, plan.prompt_tokens, draft.max_tokens,
        # The load phase is over when these plans run: the largest of the others is what is compared.
        max(size - unseen * (phase == "vision") for phase, size in plan.phase_bytes.items() if phase != "load"),
        reserved, runtime, device.process_bytes if device else 0, failed,
    )  # fmt: skip


def measure_on_cpu() -> list[Row]:
    """The demo model's living tensors against its plans, without those of the reading thread: no counter sees them."""
    import torch

    from vidqa.memory.device import find_device
    from vidqa.memory.estimate import frames_ahead_bytes
    from vidqa.memory.live_bytes import LiveBytes
    from vidqa.models.loader import load_model
    from vidqa.types import Placement

    folder, rows = demo_folder(), []
    found = Checkpoint("demo", read_spec(folder), read_bounds(folder), folder)
    loaded = load_model(folder, torch.device("cpu"), "fp32", "fp32", Placement())
    live = LiveBytes("cpu")
    live.count_model(loaded.model.model)
    device = find_device("cpu")
    around = replace(surroundings(device, synthetic_video(25)), context_bytes=0)  # tensors alone are compared
    for task, plan in make_plans(found, device, EngineConfig(weights="fp32", remember=False), around):
        live.reset()
        with live:
            run_plan(loaded, task, plan, WholeTensors(live))
        unseen = frames_ahead_bytes(found.spec, plan.draft, around.host_pixels)
        rows.append(_row("demo", device.total_bytes / GIB, plan, live.peak, 0, None, False, unseen))
    return rows


def in_child(folder: Path, name: str, weights: str | None, cap: float) -> list[Row]:
    """Run one setup in a process of its own: a fresh context and allocator."""
    words = [sys.executable, __file__, "--child", json.dumps([str(folder), name, weights, cap])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} {weights} {cap} GiB: failed\n{done.stderr[-2000:]}")
        return []
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def summarise(rows: list[Row]) -> dict[str, Any]:
    """The bars: median and 95th percentile of the error, the worst under-prediction, out-of-memory."""
    errors = sorted(abs(row.error) for row in rows)
    return {
        "plans": len(rows),
        "median_error": round(median(errors), 5),
        "p95_error": round(quantiles(errors, n=20)[-1] if len(errors) > 1 else errors[0], 5),
        "worst_under_bytes": max(max(row.measured - row.predicted for row in rows), 0),
        "worst_driver_difference": round(max(abs(row.driver / row.measured - 1) for row in rows), 5),
        "out_of_memory": sum(row.out_of_memory for row in rows),
    }


def missed(bars: dict[str, Any]) -> list[str]:
    """The bars that are not met: median 1 %, 95th percentile 3 %, 300 MiB under, nothing out of memory, 100 plans."""
    limits = {"median_error": 0.01, "p95_error": 0.03, "worst_under_bytes": 300 * 2**20, "out_of_memory": 0}
    told = [f"{name} {bars[name]} above {limit}" for name, limit in limits.items() if bars[name] > limit]
    return told + ([f"only {bars['plans']} plans"] if bars["plans"] < 100 else [])


def report(rows: list[Row], device: str) -> dict[str, Any]:
    """Print the table and the bars and keep both; returns the bars."""
    print(
        f"{'model':<6}{'weights':<8}{'cap':>6}{'frames':>8}{'size':>11}{'tokens':>8}{'predicted':>12}{'measured':>12}"
    )
    for row in rows:
        told = "OUT OF MEMORY" if row.out_of_memory else f"{row.error:+.2%}"
        print(
            f"{row.model:<6}{row.weights:<8}{row.cap_gib:>6.1f}{row.frames:>8}{f'{row.width}x{row.height}':>11}"
            f"{row.tokens:>8}{row.predicted / GIB:>12.3f}{row.measured / GIB:>12.3f}  {told}"
        )
    bars = summarise(rows)
    print(json.dumps(bars))
    content = {"environment": environment(device), "bars": bars, "rows": [asdict(row) for row in rows]}
    write_result(RESULTS / f"memory-{device}.json", content)
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description="Planned against measured memory.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, help="where the random checkpoints go (21 GB)")
    parser.add_argument("--quick", action="store_true", help="two setups only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, name, weights, cap = json.loads(arguments.child)
        print(json.dumps([asdict(row) for row in measure_on_gpu(Path(folder), name, weights, cap)]))
        return 0
    if arguments.device == "cpu":
        report(measure_on_cpu(), "cpu")
        return 0
    rows = []
    setups = SETUPS[1:6:4] if arguments.quick else SETUPS
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        for name in dict.fromkeys(setup[0] for setup in setups):
            write_random_model(FULL[name], Path(temporary) / name)
        for name, weights, cap in setups:
            rows += in_child(Path(temporary) / name, name, weights, cap)
    if not rows:
        return 1
    for told in (misses := missed(report(rows, "cuda"))):
        print(f"missed: {told}")
    return 1 if misses or len({(row.model, row.cap_gib) for row in rows}) < len({setup[::2] for setup in setups}) else 0


if __name__ == "__main__":
    raise SystemExit(main())
