#!/usr/bin/env python3
"""Measure all that vidqa claims about a GPU, the most important first, in at most ten minutes.

Random-weight Qwen2-VL-2B and -7B, created on the device, and the demo model: exactness, planned against measured
memory, decode, prefill, vision, first tokens, follow-ups, batches, captioning, a published sweep under a cap, and the
tests that need a GPU. Needs torch, transformers, psutil and this checkout; sections that need more (av, bitsandbytes,
pytest) are skipped without it. Every row is written at once to $OUT or benchmarks/results/. benchmarks/gpu-check.md
has the steps and the time of each section.

    scripts/gpu_check [--only a,b,decode-7b] [--skip flex] [--limit SECONDS]
    scripts/gpu_check --rehearse         # all sections on a CPU with tiny models, without bars

Exit codes: 0 if every bar is met; 2 for wrong arguments; 11 to 18 for the first of the groups a to h with a missed bar
or a section that failed or timed out; 130 and 143 after Ctrl-C or SIGTERM.
"""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, ROOT, Bar, missed, row_object, shown_bar, shown_value, write_result
from benchlib.sections import Results, Section, Send, run_child, run_in_children

BUDGET_SECONDS = 580.0
GROUPS = "abcdefgh"
_TABLE_CHARACTERS = 11_000


@dataclass(frozen=True, slots=True)
class Part:
    """A section: its group, its share of the time in seconds, and which process it runs in."""

    group: str
    seconds: float
    process: str = "speed"


PARTS = {
    "limits": Part("c", 15, "exact"), "kernels": Part("a", 15, "exact"), "answers": Part("a", 20, "exact"),
    "captured-step": Part("a", 20, "exact"), "sessions": Part("a", 20, "exact"),
    "memory-2b": Part("b", 40, "memory"), "memory-7b": Part("b", 45, "memory"), "memory-nf4": Part("b", 55, "memory"),
    "decode-2b": Part("c", 25), "decode-7b": Part("c", 30), "decode-nf4": Part("c", 30),
    "prefill": Part("d", 35), "vision": Part("d", 20), "first-token-7b": Part("d", 35), "first-token-2b": Part("d", 30),
    "flat-memory": Part("e", 15), "follow-up": Part("f", 12), "batch": Part("f", 12), "captioning": Part("f", 30),
    "sweep": Part("g", 40, "sweep"), "tests": Part("h", 110, "sweep"), "flex": Part("a", 40, "sweep"),
}  # fmt: skip
BARS = {
    **{f"kernels: {model} heads, {kernel_name}": Bar(0.02, "<=")
       for model in ("2b", "7b") for kernel_name in ("flash", "cudnn", "efficient", "tiled")},
    "answers: vidqa in fp32 against transformers in fp32": Bar(1.0),
    "answers: vidqa in bf16 against transformers in fp32": Bar(1.0),
    **{f"captured-step: {dtype}, fused layers": Bar(1.0) for dtype in ("fp32", "bf16")},
    **{f"captured-step: {dtype}, {kind}, {kv} KV, batch {batch}": Bar(most, "<=")
       for dtype, kv, most in (("fp32", "native", 1e-4), ("fp32", "int8", 1e-2), ("bf16", "native", 3e-2),
                               ("bf16", "int8", 3e-2)) for kind in ("captured", "plain") for batch in (1, 4)},
    "sessions: two in turns, answers as alone": Bar(1.0),
    "sessions: right answers about drawn clips": Bar(1.0),
    **{f"{section}: {name}": bar for section in ("memory-2b", "memory-7b", "memory-nf4") for name, bar in {
        "plans": Bar(10), "median error": Bar(0.03, "<="), "measured above planned and margin": Bar(0, "<="),
        "out of memory or stopped": Bar(0, "<="), "NVML's difference": Bar(0.03, "<="),
    }.items()},
    "decode-2b: captured, share of the bound": Bar(0.40, goal=0.55),
    "decode-2b: captured, times transformers": Bar(8.0),
    "decode-7b: captured, share of the bound": Bar(0.55, goal=0.65),
    "decode-7b: captured, times transformers": Bar(3.0),
    "decode-nf4: captured, times transformers": Bar(3.0),
    "prefill: the engine's choice": Bar(0.50),
    "vision: large: difference from transformers": Bar(0.02, "<="),
    "vision: large, times transformers": Bar(1.1),
    "vision: small, times transformers": Bar(2.0),
    "first-token-7b: first token, times transformers": Bar(1.5),
    "first-token-2b: first token, times transformers": Bar(1.5),
    "flat-memory: difference beside the KV cache's": Bar(0.02, "<="),
    "follow-up: second / first": Bar(0.10, "<="),
    "batch: 16 together, times one": Bar(6.0),
    "captioning: the run over max(decoding alone, answering alone)": Bar(1.15, "<="),
    "sweep: vidqa, most frames": Bar(88),
    "sweep: vidqa, largest share of the cap": Bar(0.75, "<="),
    "sweep: transformers, unfused attention: out of memory from": Bar(30, "<="),
    "tests: failed": Bar(0, "<="),
    "flex: 2b heads, flex": Bar(0.02, "<="),
    "flex: 7b heads, flex": Bar(0.02, "<="),
}  # fmt: skip


def sections() -> dict[str, Section]:
    """Return all sections by name; imports torch and transformers."""
    from benchlib import capped_sweep, captioning, decoding, device_tests, exactness, planned, prefilling, video

    return {
        "limits": decoding.limits, "kernels": exactness.kernel_names("kernels", lambda bench: bench.sizes.kernel_names),
        "answers": exactness.answers, "captured-step": exactness.captured_step, "sessions": exactness.sessions,
        "memory-2b": planned.planned("memory-2b", "2b", "bf16", 0),
        "memory-7b": planned.planned("memory-7b", "7b", "bf16", 1),
        "memory-nf4": planned.planned("memory-nf4", "7b", "nf4", 2),
        "decode-2b": decoding.decoding("decode-2b", "2b"), "decode-7b": decoding.decoding("decode-7b", "7b"),
        "decode-nf4": decoding.decoding("decode-nf4", "7b", "nf4"),
        "prefill": prefilling.prefilling, "vision": prefilling.vision,
        "first-token-7b": video.first_token("7b"), "first-token-2b": video.first_token("2b"),
        "flat-memory": video.flat_memory, "follow-up": video.following_up, "batch": decoding.batching,
        "captioning": captioning.captioning, "sweep": capped_sweep.capped_sweep, "tests": device_tests.device_tests,
        "flex": exactness.flex,
    }  # fmt: skip


def child(arguments: argparse.Namespace) -> int:
    """Run the sections of a child process."""

    def begin(send: Send) -> tuple[Mapping[str, Section], Any]:
        import torch

        from benchlib.accelerator import Cuda, Host
        from benchlib.bench import Bench
        from benchlib.rows import environment

        if arguments.rehearse:
            torch.set_num_threads(1)  # tiny layers are slower with several threads
        accelerator = Host() if arguments.rehearse else Cuda()
        send({"environment": environment(accelerator.name)})
        return sections(), Bench(accelerator, tiny=arguments.rehearse)

    return run_child(arguments.descriptor, sections, begin)


def chosen(arguments: argparse.Namespace) -> dict[str, Part]:
    """Return the sections of --only and --skip (names and groups); raises ValueError for an unknown name."""
    known = {*PARTS, *GROUPS}
    words = {option: set((getattr(arguments, option) or "").split(",")) - {""} for option in ("only", "skip")}
    if unknown := (words["only"] | words["skip"]) - known:
        names = f"groups a to h, {', '.join(PARTS)}"
        raise ValueError(f"there is no section {', '.join(sorted(unknown))}; choose from {names}")
    picked = {name: part for name, part in PARTS.items() if not words["only"] or {name, part.group} & words["only"]}
    return {name: part for name, part in picked.items() if not {name, part.group} & words["skip"]}


def processes(parts: Mapping[str, Part]) -> list[dict[str, float]]:
    """Return the sections of each process with their shares of the time."""
    groups: dict[str, dict[str, float]] = {}
    for name, part in parts.items():
        groups.setdefault(part.process, {})[name] = part.seconds
    return list(groups.values())


def report(found: Results, arguments: argparse.Namespace, *, finished: bool) -> dict[str, Any]:
    """Return the result as it is written: rows with their bars, and the end of every section."""
    bars: Mapping[str, Bar] = {} if arguments.rehearse else BARS
    asked = {key: bar for key, bar in bars.items() if key.partition(": ")[0] in chosen(arguments)}
    return {
        "kind": "gpu", "environment": found.environment, "tiny": arguments.rehearse, "finished": finished,
        "sections": found.ends, "missed": missed(found.rows, asked, found.outcome("skipped")) if finished else [],
        "rows": [row_object(row, bars.get(row.key)) for row in found.rows],
    }  # fmt: skip


def target(arguments: argparse.Namespace) -> Path:
    """Return the result's path in $OUT, else in benchmarks/results, or in benchmarks/scratch for a rehearsal."""
    folder = Path(os.environ.get("OUT") or (RESULTS.parent / "scratch" if arguments.rehearse else RESULTS))
    name = arguments.name or ("rehearsal" if arguments.rehearse else "check")
    return folder / f"gpu-{re.sub(r'[^A-Za-z0-9]+', '-', name)}.json"


def short_table(result: Mapping[str, Any]) -> str:
    """Return the end, bars and speeds of every section, short enough for the tail of a log."""
    lines = [f"{result['environment']}"]
    for end in result["sections"]:
        lines.append(f"{end['section']:<16}{end['outcome']:<11}{end['seconds']:>6.1f} s  {end['detail'][:90]}")
        for row in result["rows"]:
            shown = row["bar"] is not None or row["unit"] in ("tokens/s", "GB/s", "TFLOP/s", "1/min")
            if shown and row["section"] == end["section"]:
                lines.append(f"  {row['name'][:56]:<57}{shown_value(row):>14}  {shown_bar(row)}".rstrip())
    there = {f"{row['section']}: {row['name']}" for row in result["rows"]}
    absent = [line for line in result["missed"] if not any(line.startswith(f"{key}: ") for key in there)]
    text = "\n".join((*lines, *(f"missed: {line}" for line in absent)))
    return text if len(text) <= _TABLE_CHARACTERS else "...\n" + text[-_TABLE_CHARACTERS:]


def exit_code(result: Mapping[str, Any]) -> int:
    """Return 0, or 11 to 18 for the first group with a missed bar or a section that failed or timed out."""
    bad = {end["section"] for end in result["sections"] if end["outcome"] in ("failed", "timed out")}
    bad |= {line.partition(": ")[0] for line in result["missed"]}
    return min((11 + GROUPS.index(PARTS[name].group) for name in bad), default=0)


def parent(arguments: argparse.Namespace) -> int:
    """Run the sections in child processes, write after each row, and return the exit code."""
    began, path, seen, latest = time.monotonic(), target(arguments), 0, Results()

    def write(found: Results, *, finished: bool) -> dict[str, Any]:
        result = report(found, arguments, finished=finished)
        if found.environment or found.rows:  # else there was no device
            write_result(path, result)
        return result

    def changed(found: Results) -> None:
        nonlocal seen, latest
        latest = found
        write(found, finished=False)
        for row in found.rows[seen:]:
            value = row_object(row, None)
            print(f"{time.monotonic() - began:6.1f} s  {row.key}: {shown_value(value)}  {row.note[:100]}", flush=True)
        if len(found.rows) == seen:
            end = found.ends[-1]
            line = f"{end['section']} {end['outcome']} in {end['seconds']:.1f} s  {end['detail']}"
            print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)
        seen = len(found.rows)

    words = [sys.executable, str(Path(__file__).resolve()), "--child", *(["--rehearse"] * arguments.rehearse)]
    try:
        found = run_in_children(processes(chosen(arguments)), arguments.limit, [*words, "--descriptor"], changed)
    except BaseException:
        print(f"\n{short_table(report(latest, arguments, finished=False))}\n{path.name}; stopped", flush=True)
        raise
    result = write(found, finished=True)
    print(f"\n{short_table(result)}\n{path.name}; {time.monotonic() - began:.0f} s", flush=True)
    return exit_code(result)


def prepare_environment() -> None:
    """Set the environment of the child processes: the checkout, folders for state, and the allocator's options."""
    scratch = ROOT / "benchmarks" / "scratch"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("VIDQA_STATE", str(scratch / "state"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "compiled"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vidqa.devices.device import allocator_environment

    os.environ.update(allocator_environment(os.environ))  # as a Session does; torch reads it once


def stopped(number: int, frame: object) -> None:
    """Exit by an exception, which kills the child processes."""
    raise SystemExit(128 + number)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="sections or groups (a to h) to run, with commas between them")
    parser.add_argument("--skip", help="sections or groups to leave out")
    parser.add_argument("--limit", type=float, default=BUDGET_SECONDS, help="seconds for all sections together")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on a CPU, without bars")
    parser.add_argument("--name", help="the result's name, for several runs (default: check)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.child:
        return child(arguments)
    try:
        chosen(arguments)
    except ValueError as error:
        parser.error(str(error))
    prepare_environment()
    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background jobs ignore it
    try:
        return parent(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main())
