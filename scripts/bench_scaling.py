#!/usr/bin/env python3
"""Captioning throughput with one, two and four workers, on one machine and on a Ray cluster.

The device is simulated, with a fixed time for each batch; processes, pipes, messages and Ray are real. Throughput is
measured from the moment when every worker has sent a record to the last record, which leaves out loading and includes
an uneven end. Efficiency = clips/s of n workers / (n x clips/s of one). Needs vidqa[ray].
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, ROOT, Bar, Row, report
from tests.batch.scripted_captioner import RUN, SCRIPTED, clips
from vidqa.batch.clip_record import Captioner
from vidqa.batch.gpu_pool import GpuPool
from vidqa.batch.ray_cluster import RayPool

WORKERS = (1, 2, 4)
BARS = {f"{kind}: {count} workers, efficiency": Bar(0.9) for kind in ("crew", "ray") for count in WORKERS[1:]}


@contextmanager
def gpu_pool(count: int, settings: dict[str, Any]) -> Iterator[Captioner]:
    with closing(GpuPool(settings, RUN, [f"GPU-{number}" for number in range(count)], SCRIPTED)) as pool:
        yield pool


@contextmanager
def ray_pool(count: int, settings: dict[str, Any]) -> Iterator[Captioner]:
    """Start a cluster of a head and one node with `count` logical GPUs on this machine."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: a socket's path has at most 107 bytes
    os.environ["RAY_TMPDIR"] = folder
    from ray.cluster_utils import Cluster

    store = 80_000_000
    cluster: Any = Cluster(True, head_node_args={"num_cpus": 1, "num_gpus": 0, "object_store_memory": store})
    try:
        cluster.add_node(num_cpus=count, num_gpus=count, object_store_memory=store)
        with closing(RayPool(settings, RUN, cluster.address, SCRIPTED)) as pool:
            yield pool
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def clips_per_second(captioner: Captioner, workers: int, count: int) -> float:
    """Return the records per second after every worker's first one."""
    pending = clips(*(f"{number}.mp4" for number in range(count)))
    seen: set[str] = set()
    started, counted = 0.0, 0
    for record in captioner.captions(iter(pending)):
        if len(seen) == workers:
            counted += 1
        seen.add(record.caption)  # its process
        if counted == 0:
            started = time.monotonic()
    if len(seen) < workers:
        raise RuntimeError(f"{len(seen)} of {workers} workers sent a record")
    return counted / (time.monotonic() - started)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield clips per second and efficiency for each kind of pool and number of workers."""
    settings = {"batch": arguments.batch, "batch_seconds": arguments.batch_seconds}
    note = f"{arguments.clips} clips a worker, {arguments.batch} take {arguments.batch_seconds:g} s"
    for kind, make in (("crew", gpu_pool), ("ray", ray_pool)):
        alone = 0.0
        for count in WORKERS:
            with make(count, settings) as captioner:
                speed = clips_per_second(captioner, count, count * arguments.clips)
            alone = alone or speed
            name = f"{count} worker{'s' if count > 1 else ''}"
            yield Row(kind, f"{name}, clips/s", speed, "clips/s", "records / seconds, when all are there", None, note)
            if count > 1:
                yield Row(kind, f"{name}, efficiency", speed / count / alone, "share", "clips/s / (n x one's clips/s)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=600, help="clips a worker")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batch-seconds", type=float, default=0.2)
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling-cpu.json")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # workers find the scripted captioner
    return report("scaling", measure(arguments), BARS, arguments.output)


if __name__ == "__main__":
    raise SystemExit(main())
