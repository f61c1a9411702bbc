"""Benchmark of captioning demo clips in four ways: the whole run, decoding alone, answering alone, one `ask` each.

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
from vidqa.batch.caption_requests import CaptionRequest, PlannedQuestion, RequestPlanner
from vidqa.batch.caption_run import CaptionRun, ClipSelector, RunPolicy
from vidqa.batch.caption_writer import CaptionWriter
from vidqa.batch.captioner import CaptionerConfig, Opener, PrefetchOptions, SessionCaptioner
from vidqa.batch.clip_record import Clip, ClipRecord, PendingClip, RunFingerprint
from vidqa.batch.discover import discover
from vidqa.batch.journal import Journal, JournalIndex
from vidqa.batch.prefetch import Prefetcher
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.batch.run_fingerprint import make_fingerprint
from vidqa.batch.shards import Shard
from vidqa.devices.host import usable_cores
from vidqa.events import Answered, Event
from vidqa.models.registry import find_checkpoints
from vidqa.types import Frame, VideoInfo
from vidqa.utils.content_hash import content_id
from vidqa.video.reader import VideoReader

QUESTION = "what happens?"
_CLIPS = ("demo.mp4", "demo-two.mp4", "demo-color.mp4", "demo-empty.mp4")
_REQUEST = CaptionRequest(PromptTemplate("", QUESTION), Request("", ""))


def make_folder(folder: Path, count: int) -> list[Clip]:
    """Write `count` copies of the demo clips, each with different content."""
    folder.mkdir(parents=True)
    for number in range(count):
        target = folder / f"clip-{number:05}.mp4"
        shutil.copyfile(ROOT / "assets" / _CLIPS[number % len(_CLIPS)], target)
        with target.open("ab") as file:
            file.write(b"\0\0\0\x10free%08d" % number)
    return list(discover([str(folder)]).clips)


class Captioning:
    """The same clips in each of the ways, with one session."""

    def __init__(self, clips: list[Clip], config: EngineConfig, prefetch: PrefetchOptions) -> None:
        self.clips, self.config, self.prefetch = clips, config, prefetch
        self._decoded: dict[str, tuple[VideoInfo, dict[int, Frame]]] = {}
        self._opener: Opener | None = None
        self.session = Session(config, opener=self._open)
        self.groups: list[list[Request]] = []

    def _open(self, request: Request, is_cancelled: Callable[[], bool]) -> VideoReader:
        assert self._opener is not None
        return self._opener(request, is_cancelled)

    def _fingerprint(self) -> RunFingerprint:
        return make_fingerprint(_REQUEST, self.config, find_checkpoints("demo", local=True)[0])

    def captioner(self) -> SessionCaptioner:
        """Return a captioner that uses the session and does not close it."""

        def make(config: EngineConfig, opener: Opener) -> "_SharedSession":
            self._opener = opener
            return _SharedSession(self)

        config = CaptionerConfig(self.config, _REQUEST, self._fingerprint().key, None, self.prefetch)
        return SessionCaptioner(config, make)

    def run(self, folder: Path) -> int:
        """Run all of `vidqa caption` with the model loaded, journal and sidecars included; return the captions made."""
        shutil.rmtree(folder, ignore_errors=True)
        fingerprint = self._fingerprint()
        with Journal(folder, Shard()) as journal:
            index = JournalIndex(folder)
            writer = CaptionWriter(journal, index, fingerprint, [clip.name for clip in self.clips])
            selector = ClipSelector(fingerprint.key, RunPolicy(), index, writer)
            run = CaptionRun(self.clips, fingerprint, selector, self.captioner(), journal)
            return sum(isinstance(event, ClipRecord) and event.status == "done" for event in run.events())

    def decode(self) -> None:
        """Decode every frame that the run uses, with the run's prefetcher, and keep the frames."""
        planner = RequestPlanner(_REQUEST, self.config, self.session.forecast, None)
        questions = (PlannedQuestion(PendingClip(clip, content_id(clip.path))) for clip in self.clips)
        decoding = CaptionerConfig(self.config, _REQUEST, "", None, self.prefetch).decoding
        with Prefetcher(
            questions, planner.plan, processes=self.prefetch.processes, max_bytes=self.prefetch.max_bytes,
            max_ready=48, decoding=decoding,
        ) as prefetcher:  # fmt: skip
            for ready in prefetcher:
                assert ready.reader is not None and ready.info is not None and ready.job.plan is not None
                frames = {frame.index: frame for frame in ready.reader.frames(ready.job.plan.indices)}
                self._decoded[ready.job.path] = (ready.info, frames)
                ready.close()

    def answer(self) -> None:
        """Answer the groups of the last run, with frames from memory."""
        self._opener = lambda request, is_cancelled: self._decoded_reader(request)
        for group in self.groups:
            for _ in self.session.ask_many(group):
                pass

    def _decoded_reader(self, request: Request) -> VideoReader:
        info, frames = self._decoded[request.video]
        return VideoReader(info, MemorySource(frames))


class _SharedSession:
    """A BatchEngine around the benchmark's session, which it does not close; records the groups."""

    def __init__(self, bench: Captioning) -> None:
        self._bench = bench
        self.forecast = bench.session.forecast
        self.cancel = bench.session.cancel
        bench.groups = []

    def ask_many(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        self._bench.groups.append(list(requests))
        return self._bench.session.ask_many(requests)

    def close(self) -> None:
        """Do nothing."""


def ask_one_by_one(session: Session, clips: Sequence[Clip]) -> None:
    """Ask about each clip in a loop."""
    for clip in clips:
        *_, last = session.ask(Request(clip.path, QUESTION))
        assert isinstance(last, Answered)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def speed_rows(
    folder: Path, count: int, repeats: int, config: EngineConfig, prefetch: PrefetchOptions, sections: tuple[str, str]
) -> Iterator[Row]:
    """Measure the ways in turn; yield their seconds, then their ratios, as rows of the two sections."""
    bench, section = Captioning(make_folder(folder / "clips", count), config, prefetch), sections[0]
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
    """Measure captioning of a folder on this device, with all cores for decoding."""
    if find_spec("av") is None:
        raise Skipped("av is not installed")
    bench.drop_model()
    config = EngineConfig(model="demo", device=str(bench.device), remember=False)
    prefetch = PrefetchOptions()
    yield Row("captioning", "cores", usable_cores(), "", f"{prefetch.processes} processes decode ahead")
    with tempfile.TemporaryDirectory() as folder:
        repeats = min(bench.sizes.repeats, 2)
        yield from speed_rows(Path(folder), bench.sizes.clips, repeats, config, prefetch, ("captioning", "captioning"))
