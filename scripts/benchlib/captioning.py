"""Captioning a folder of demo clips in four ways: the whole run, decoding alone, answering alone, one `ask` each.

Everything runs with the demo model, loaded and warm, in one process. Needs PyAV.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchlib.bench import Bench
from benchlib.drawn import MemorySource
from benchlib.rows import ROOT, Row, Samples, seconds_row
from benchlib.sections import Skipped
from vidqa import EngineConfig, Request, Session
from vidqa.batch.caption_formats import Decorate
from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion, Preparing
from vidqa.batch.caption_run import CaptionRun, RunPolicy
from vidqa.batch.caption_writer import CaptionWriter
from vidqa.batch.captioner import Opener, PreparedClips, SessionCaptioner
from vidqa.batch.captioner_config import CaptionerConfig
from vidqa.batch.clip_record import Clip, ClipRecord, Pending
from vidqa.batch.content_hash import identify
from vidqa.batch.discover import discover
from vidqa.batch.journal import Journal, Ledger
from vidqa.batch.prefetch import Prefetcher
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.batch.run_fingerprint import make_task
from vidqa.batch.shards import Shard
from vidqa.devices.host import usable_cores
from vidqa.events import Answered, Event
from vidqa.models.registry import find_checkpoints
from vidqa.types import Frame, VideoInfo
from vidqa.video.reader import VideoReader

QUESTION = "what happens?"
_CLIPS = ("demo.mp4", "demo-two.mp4", "demo-color.mp4", "demo-empty.mp4")
_ASKING = CaptionRequest(PromptTemplate("", QUESTION), Request("", ""))


def make_folder(folder: Path, count: int) -> list[Clip]:
    """So many clips of the demo's kind, each with another content."""
    folder.mkdir(parents=True)
    for number in range(count):
        target = folder / f"clip-{number:05}.mp4"
        shutil.copyfile(ROOT / "assets" / _CLIPS[number % len(_CLIPS)], target)
        with target.open("ab") as file:
            file.write(b"\0\0\0\x10free%08d" % number)
    return list(discover([str(folder)]).clips)


class Captioning:
    """The same clips in each of the ways, by one session."""

    def __init__(self, clips: list[Clip], config: EngineConfig, reading: PreparedClips) -> None:
        self.clips, self.config, self.reading = clips, config, reading
        self._readers: dict[str, tuple[VideoInfo, dict[int, Frame]]] = {}
        self._opener: Opener | None = None
        self.session = Session(config, opener=self._open)
        self.groups: list[list[Request]] = []

    def _open(self, request: Request, stopped: Callable[[], bool]) -> VideoReader:
        assert self._opener is not None
        return self._opener(request, stopped)

    def runner(self) -> SessionCaptioner:
        """A captioner around the session, which stays."""

        def make(config: EngineConfig, opener: Opener) -> "_Lent":
            self._opener = opener
            return _Lent(self)

        task = make_task(_ASKING, self.config, find_checkpoints("demo", local=True)[0])
        return CaptionerConfig(self.config, _ASKING, task.key, None, self.reading).runner(make)

    def run(self, folder: Path) -> int:
        """The whole of `vidqa caption`, the model being loaded: journal, sidecars and all. How many were captioned."""
        shutil.rmtree(folder, ignore_errors=True)
        task = make_task(_ASKING, self.config, find_checkpoints("demo", local=True)[0])
        with Journal(folder, Shard()) as journal:
            ledger = Ledger(folder)
            names = [clip.name for clip in self.clips]
            output = CaptionWriter(folder, "txt", "skip", Decorate(), task, names, ledger.written, journal.begun_ns)
            run = CaptionRun(self.clips, task, RunPolicy(), self.runner(), journal, ledger, output)
            return sum(isinstance(event, ClipRecord) and event.status == "done" for event in run.events())

    def decode(self) -> None:
        """Every frame that the run asks for, by the way that the run takes, and nothing done with it."""
        preparing = Preparing(_ASKING, self.config, self.session.forecast, None)
        runner = self.runner()
        jobs = (PlannedQuestion(Pending(clip, identify(clip.path))) for clip in self.clips)
        with Prefetcher(
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
        return VideoReader(info, MemorySource(frames))


class _Lent:
    """The session for a runner, which may not close it; notes the groups."""

    def __init__(self, bench: Captioning) -> None:
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
        *_, last = session.ask(Request(clip.path, QUESTION))
        assert isinstance(last, Answered)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def speed_rows(
    folder: Path, count: int, repeats: int, config: EngineConfig, reading: PreparedClips, sections: tuple[str, str]
) -> Iterator[Row]:
    """The ways in turn, then their ratios, in rows of both sections."""
    bench, section = Captioning(make_folder(folder / "clips", count), config, reading), sections[0]
    plain = Session(config)
    captioned = bench.run(folder / "warm")
    if captioned != count:
        raise RuntimeError(f"{captioned} of {count} clips were captioned")
    bench.decode()
    ask_one_by_one(plain, bench.clips[:4])
    seconds: dict[str, list[float]] = {"the run": [], "decoding alone": [], "answering alone": [], "one ask each": []}
    for number in range(repeats):
        seconds["the run"].append(timed(lambda number=number: bench.run(folder / f"out-{number}")))  # type: ignore[misc]
        seconds["decoding alone"].append(timed(bench.decode))
        seconds["answering alone"].append(timed(bench.answer))
        seconds["one ask each"].append(timed(lambda: ask_one_by_one(plain, bench.clips)))
    for name, values in seconds.items():
        yield seconds_row(section, name, values, f"{count} clips")
    run, decoding, answering, loop = (Samples.of(values).p50 for values in seconds.values())
    section = sections[1]
    yield Row(section, "the run over max(decoding alone, answering alone)", run / max(decoding, answering), "", "a / b")
    yield Row(section, "one ask after the other over the run", loop / run, "", "a / b")
    yield Row(section, "clips a minute", 60 * count / run, "1/min", "clips / the run")


def captioning(bench: Bench) -> Iterator[Row]:
    """The section about a folder of clips on this device, with all cores to decode."""
    if find_spec("av") is None:
        raise Skipped("av is not installed")
    bench.drop_model()
    config = EngineConfig(model="demo", device=str(bench.device), remember=False)
    reading = PreparedClips()
    yield Row("captioning", "cores", usable_cores(), "", f"{reading.processes} processes decode ahead")
    with tempfile.TemporaryDirectory() as folder:
        repeats = min(bench.sizes.repeats, 2)
        yield from speed_rows(Path(folder), bench.sizes.clips, repeats, config, reading, ("captioning", "captioning"))
