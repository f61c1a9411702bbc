#!/usr/bin/env python3
"""How busy captioning keeps its device: a folder of clips against decoding alone, answering alone and one `ask` each.

Everything runs with the demo model, loaded and warm, in one process, one measurement after the other and again in
turn; ratios are of the medians. Host memory is that of runs over different numbers of clips, each in a process of its
own. Results go to benchmarks/results/.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, ROOT, Bar, Row, report, seconds_row
from vidqa import EngineConfig, Request, Session
from vidqa.batch.ahead import Ahead
from vidqa.batch.content import identify
from vidqa.batch.discover import discover
from vidqa.batch.formats import Decorate
from vidqa.batch.jobs import Asking, Job, Preparing
from vidqa.batch.journal import Journal, Ledger
from vidqa.batch.output import Output
from vidqa.batch.prompts import Prompt
from vidqa.batch.records import Clip, Pending, Record
from vidqa.batch.run import Policy, Run
from vidqa.batch.runner import Opener, Reading, Runner
from vidqa.batch.setup import Setup
from vidqa.batch.shards import Shard
from vidqa.batch.tasks import make_task
from vidqa.events import Answered, Event
from vidqa.memory.host import usable_cores
from vidqa.models.choice import find_checkpoints
from vidqa.types import Frame, VideoInfo
from vidqa.video.decode import VideoReader

BARS = {
    "ratios: the run over max(decoding alone, answering alone)": Bar(1.15, "<="),
    "ratios: one ask after the other over the run": Bar(2.0, ">="),
    "host memory: peak over 4 times the clips": Bar(1.05, "<="),
}
_QUESTION = "what happens?"
_CLIPS = ("demo.mp4", "demo-two.mp4", "demo-color.mp4", "demo-empty.mp4")
_ASKING = Asking(Prompt("", _QUESTION), Request("", ""))


def make_folder(folder: Path, count: int) -> list[Clip]:
    """So many clips of the demo's kind, each with another content."""
    folder.mkdir(parents=True)
    for number in range(count):
        target = folder / f"clip-{number:05}.mp4"
        shutil.copyfile(ROOT / "assets" / _CLIPS[number % len(_CLIPS)], target)
        with target.open("ab") as file:
            file.write(b"\0\0\0\x10free%08d" % number)
    return list(discover([str(folder)]).clips)


class Kept:
    """A video's source that gives frames from memory."""

    stopped, process_id = "", 0

    def __init__(self, frames: dict[int, Frame]) -> None:
        self._frames = frames

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        return (self._frames[index] for index in indices)

    def abandon(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


class Bench:
    """The same clips in four ways, by one session."""

    def __init__(self, clips: list[Clip], processes: int, threads: int | None) -> None:
        self.clips = clips
        self.config = EngineConfig(model="demo", device="cpu", remember=False, cpu_threads=threads)
        self.reading = Reading(processes=processes)
        self._readers: dict[str, tuple[VideoInfo, dict[int, Frame]]] = {}
        self._opener: Opener | None = None
        self.session = Session(self.config, opener=self._open)
        self.groups: list[list[Request]] = []

    def _open(self, request: Request, stopped: Callable[[], bool]) -> VideoReader:
        assert self._opener is not None
        return self._opener(request, stopped)

    def runner(self) -> Runner:
        """A captioner around the session, which stays."""

        def make(config: EngineConfig, opener: Opener) -> "Lent":
            self._opener = opener
            return Lent(self)

        task = make_task(_ASKING, self.config, find_checkpoints("demo", local=True)[0])
        return Setup(self.config, _ASKING, task.key, None, self.reading).runner(make)

    def run(self, folder: Path) -> int:
        """The whole of `vidqa caption`, the model being loaded: journal, sidecars and all. How many were captioned."""
        shutil.rmtree(folder, ignore_errors=True)
        task = make_task(_ASKING, self.config, find_checkpoints("demo", local=True)[0])
        with Journal(folder, Shard()) as journal:
            ledger = Ledger(folder)
            names = [clip.name for clip in self.clips]
            output = Output(folder, "txt", "skip", Decorate(), task, names, ledger.written, journal.begun_ns)
            run = Run(self.clips, task, Policy(), self.runner(), journal, ledger, output)
            return sum(isinstance(event, Record) and event.status == "done" for event in run.events())

    def decode(self) -> None:
        """Every frame that the run asks for, by the way that the run takes, and nothing done with it."""
        preparing = Preparing(_ASKING, self.config, self.session.forecast, None)
        runner = self.runner()
        jobs = (Job(Pending(clip, identify(clip.path))) for clip in self.clips)
        with Ahead(
            jobs, preparing.prepare, processes=self.reading.processes, most_bytes=self.reading.most_bytes,
            most_ready=48, how=runner.how,
        ) as ahead:  # fmt: skip
            for ready in ahead:
                assert ready.reader is not None and ready.info is not None and ready.job.plan is not None
                frames = {frame.index: frame for frame in ready.reader.frames(ready.job.plan.indices)}
                self._readers[ready.job.path] = (ready.info, frames)
                ready.close()

    def answer(self) -> None:
        """The groups of the last run, with frames that lie in memory."""
        self._opener = lambda request, stopped: self._kept(request)
        for group in self.groups:
            for _ in self.session.ask_many(group):
                pass

    def _kept(self, request: Request) -> VideoReader:
        info, frames = self._readers[request.video]
        return VideoReader(info, Kept(frames))


class Lent:
    """The bench's session for a runner, which may not close it; notes the groups."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.forecast = bench.session.forecast
        self.cancel = bench.session.cancel
        bench.groups = []

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        self._bench.groups.append(list(requests))
        return self._bench.session.ask_many(requests)

    def close(self) -> None:
        """The session stays."""


def ask_one_by_one(session: Session, clips: Sequence[Clip]) -> None:
    """What a loop over `ask` does in one process."""
    for clip in clips:
        *_, last = session.ask(Request(clip.path, _QUESTION))
        assert isinstance(last, Answered)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def speed_rows(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """The four ways, in turn, and their ratios."""
    bench = Bench(make_folder(folder / "clips", arguments.clips), arguments.processes, arguments.threads)
    plain = Session(bench.config)
    assert bench.run(folder / "warm") == arguments.clips
    bench.decode()
    ask_one_by_one(plain, bench.clips[:4])
    seconds: dict[str, list[float]] = {"the run": [], "decoding alone": [], "answering alone": [], "one ask each": []}
    for number in range(arguments.repeats):
        seconds["the run"].append(timed(lambda number=number: bench.run(folder / f"out-{number}")))  # type: ignore[misc]
        seconds["decoding alone"].append(timed(bench.decode))
        seconds["answering alone"].append(timed(bench.answer))
        seconds["one ask each"].append(timed(lambda: ask_one_by_one(plain, bench.clips)))
    rows = {name: seconds_row("seconds", name, values, f"{arguments.clips} clips") for name, values in seconds.items()}
    yield from rows.values()
    run, decoding, answering, loop = (row.value or 0.0 for row in rows.values())
    yield Row(
        "ratios", "the run over max(decoding alone, answering alone)", run / max(decoding, answering), "", "a / b"
    )
    yield Row("ratios", "one ask after the other over the run", loop / run, "", "a / b")
    yield Row("ratios", "clips a minute", 60 * arguments.clips / run, "1/min", "clips / the run")


def memory_rows(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """The peak of the whole command over some clips and over four times as many."""
    peaks = []
    for count in (4 * arguments.clips, 16 * arguments.clips):  # fewer do not always fill what is read ahead
        clips = folder / f"many-{count}"
        make_folder(clips, count)
        command = [sys.executable, "-m", "vidqa", "caption", str(clips), "--model", "demo", "--device", "cpu",
                   "--prompt", _QUESTION, "--quiet"]  # fmt: skip
        told = subprocess.run(
            [sys.executable, "-c", _PEAK, *command], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "VIDQA_STATE": str(folder / "state")},
        )  # fmt: skip
        peaks.append(int(told.stdout) * 1024)
        yield Row("host memory", f"peak, {count} clips", peaks[-1] / 2**20, "MiB", "ru_maxrss of the command")
    yield Row("host memory", "peak over 4 times the clips", peaks[1] / peaks[0], "", "a / b")


_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Speed, then memory; Ctrl-C keeps the rows that are there."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.suppress(KeyboardInterrupt):
        for part in (speed_rows, memory_rows):
            yield from part(Path(temporary) / part.__name__, arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=Reading().processes, help="that decode ahead")
    parser.add_argument(
        "--threads", type=int, default=max(usable_cores() - 1, 1), help="that compute, as the command's"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "caption-cpu.json")
    arguments = parser.parse_args()
    return report("caption", measure(arguments), BARS, arguments.output)


if __name__ == "__main__":
    raise SystemExit(main())
