#!/usr/bin/env python3
"""Throughput and memory of captioning: a folder of clips against decoding alone, answering alone and one `ask` each.

Everything runs with the demo model, loaded and warm, in one process, one measurement after the other and again in
turn; ratios are of the medians. Host memory is that of runs over different numbers of clips, each in a process of its
own. Results go to benchmarks/results/.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.captioning import QUESTION, make_folder, speed_rows
from benchlib.rows import RESULTS, ROOT, Bar, Row, report
from vidqa import EngineConfig
from vidqa.batch.captioner import PrefetchOptions
from vidqa.devices.host import usable_cores

BARS = {
    "ratios: the run over max(decoding alone, answering alone)": Bar(1.15, "<="),
    "ratios: one ask after the other over the run": Bar(2.0, ">="),
    "host memory: peak over 4 times the clips": Bar(1.05, "<="),
}


def memory_rows(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure the peak memory of the whole command over some clips and over four times as many."""
    peaks = []
    for count in (4 * arguments.clips, 16 * arguments.clips):  # fewer do not always fill the prefetcher
        clips = folder / f"many-{count}"
        make_folder(clips, count)
        command = [sys.executable, "-m", "vidqa", "caption", str(clips), "--model", "demo", "--device", "cpu",
                   "--prompt", QUESTION, "--quiet"]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, *command], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "VIDQA_STATE": str(folder / "state")},
        )  # fmt: skip
        peaks.append(int(done.stdout) * 1024)
        yield Row("host memory", f"peak, {count} clips", peaks[-1] / 2**20, "MiB", "ru_maxrss of the command")
    yield Row("host memory", "peak over 4 times the clips", peaks[1] / peaks[0], "", "a / b")


_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure speed, then memory; Ctrl-C keeps the rows so far."""
    config = EngineConfig(model="demo", device="cpu", remember=False, cpu_threads=arguments.threads)
    prefetch = PrefetchOptions(processes=arguments.processes)
    with tempfile.TemporaryDirectory() as temporary, contextlib.suppress(KeyboardInterrupt):
        folder = Path(temporary)
        yield from speed_rows(folder, arguments.clips, arguments.repeats, config, prefetch, ("seconds", "ratios"))
        yield from memory_rows(folder, arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=PrefetchOptions().processes, help="that decode ahead")
    parser.add_argument(
        "--threads", type=int, default=max(usable_cores() - 1, 1), help="that compute, as the command's"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "caption-cpu.json")
    arguments = parser.parse_args()
    return report("caption", measure(arguments), BARS, arguments.output)


if __name__ == "__main__":
    raise SystemExit(main())
