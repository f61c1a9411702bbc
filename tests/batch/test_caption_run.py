"""A run over a folder with the scripted session: what is captioned, what is passed over, what is written."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tests.batch.kills import records_of
from tests.batch.scripted import CONFIG, MODEL, ScriptedEngine
from tests.batch.test_kills import folder_of
from tests.clips import write_clip
from tests.decoders import scripted_decoder
from vidqa.batch.caption_formats import Decorate
from vidqa.batch.caption_requests import CaptionRequest
from vidqa.batch.caption_run import CaptionRun, RunPolicy, RunSummary, Skipped
from vidqa.batch.caption_writer import CaptionWriter
from vidqa.batch.captioner import Opener, PreparedClips, SessionCaptioner
from vidqa.batch.clip_record import ClipRecord, RunFingerprint
from vidqa.batch.content_hash import identify
from vidqa.batch.discover import discover
from vidqa.batch.journal import Journal, Ledger
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.batch.shards import Shard
from vidqa.config import EngineConfig
from vidqa.errors import Interrupted, ModelError, VideoUnreadable, VidqaError
from vidqa.types import Request

Before = Callable[[Sequence[Request]], object]
PROMPT = "What happens?"


class Running:
    """Runs over one folder; each with a new scripted session, as new processes would have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: list[ScriptedEngine] = []
        self.runner: SessionCaptioner | None = None
        self.summary = RunSummary()
        self.segments: float | Literal["scenes"] | None = None
        self.config, self.reading = CONFIG, PreparedClips(1, 2**28, 30.0)

    def decode_isolated(self, deadline_seconds: float) -> None:
        """Decode in processes, with a deadline for a clip."""
        self.config = replace(CONFIG, isolate_decoder=True)
        self.reading = PreparedClips(1, 2**28, deadline_seconds)

    def __call__(
        self, prompt: str = PROMPT, *, kind: str = "txt", on_existing: str = "skip", policy: RunPolicy = RunPolicy(),  # noqa: B008
        before: Before = lambda group: None, batch: int | None = None, decorate: Decorate = Decorate(),  # noqa: B008
    ) -> list[ClipRecord | Skipped]:  # fmt: skip
        return list(self.events(prompt, kind, on_existing, policy, before, batch, decorate))

    def events(
        self, prompt: str, kind: str, on_existing: str, policy: RunPolicy, before: Before, batch: int | None,
        decorate: Decorate,
    ) -> Iterator[ClipRecord | Skipped]:  # fmt: skip
        clips = discover([str(self.folder)]).clips
        task = RunFingerprint(prompt, MODEL, "r", prompt, {})
        names = [clip.name for clip in clips]

        def make(config: EngineConfig, opener: Opener) -> ScriptedEngine:
            self.engines.append(ScriptedEngine(config, opener, before))
            return self.engines[-1]

        asking = CaptionRequest(PromptTemplate("test", prompt), Request("", ""), self.segments)
        runner = self.runner = SessionCaptioner(
            self.config, asking, task.key, batch=batch, reading=self.reading, make_engine=make
        )
        with Journal(self.folder, Shard()) as journal, closing(runner):
            ledger = Ledger(self.folder)
            output = CaptionWriter(
                self.folder, kind, on_existing, decorate, task, names, ledger.written, journal.begun_ns,  # type: ignore[arg-type]
            )  # fmt: skip
            run = CaptionRun(clips, task, policy, runner, journal, ledger, output)
            try:
                yield from run.events()
            finally:
                self.summary = run.summary
            run.render()

    @property
    def asked(self) -> int:
        """How many clips were captioned by the last run."""
        return sum(map(len, self.engines[-1].groups)) if self.engines else 0


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(folder_of(tmp_path / "clips", 5))


def told(events: Sequence[ClipRecord | Skipped]) -> dict[str, str]:
    """Each clip, and what became of it."""
    return {
        event.clip.name if isinstance(event, Skipped) else event.name: event.why
        if isinstance(event, Skipped)
        else event.status
        for event in events
    }


NAMES = [f"clip-{number:03}.mp4" for number in range(5)]


def test_every_clip_has_its_caption_and_the_next_run_has_nothing_to_do(running: Running) -> None:
    assert told(running()) == dict.fromkeys(NAMES, "done")
    captions = [(running.folder / name).with_suffix(".txt").read_text() for name in NAMES]
    assert all("bright, What happens?" in caption for caption in captions)
    assert len(set(captions)) == 4  # the first and the fifth show the same
    assert told(running()) == dict.fromkeys(NAMES, "done")
    assert len(running.engines) == 1, "the second run needed no session"
    assert running.summary.skipped == {"done": 5}


def test_another_prompt_a_changed_clip_and_a_lost_journal_are_done_again_a_moved_folder_is_not(
    running: Running, tmp_path: Path
) -> None:
    running()
    running("Who is there?")
    assert running.asked == 5
    shutil.copyfile(running.folder / NAMES[1], running.folder / NAMES[0])
    running("Who is there?")
    assert running.asked == 1
    moved = Running(running.folder.rename(tmp_path / "elsewhere"))
    assert told(moved("Who is there?")) == dict.fromkeys(NAMES, "done")
    assert moved.engines == []


def test_a_caption_that_is_not_ours_stays_unless_told_otherwise(running: Running) -> None:
    own = running.folder / "clip-000.txt"
    own.write_text("mine\n")
    os.utime(own, (1, 1))
    assert told(running())[NAMES[0]] == "has a caption of its own"
    assert own.read_text() == "mine\n"
    running(on_existing="append")
    assert running.asked == 1
    assert own.read_text().startswith("mine\n8 frames")
    running(on_existing="append")
    assert own.read_text().count("frames") == 1, "what is done is not added again"


def test_an_edited_caption_stays_when_the_prompt_changes_and_ours_does_not(running: Running) -> None:
    running()
    edited = running.folder / "clip-001.txt"
    edited.write_text("better\n")
    found = told(running("Who?"))
    assert found == {**dict.fromkeys(NAMES, "done"), NAMES[1]: "has a caption of its own"}
    assert edited.read_text() == "better\n"
    assert "Who?" in (running.folder / "clip-000.txt").read_text()


def test_a_caption_that_was_deleted_another_format_and_another_prefix_need_no_session(running: Running) -> None:
    running()
    (running.folder / "clip-002.txt").unlink()
    running()
    assert "bright" in (running.folder / "clip-002.txt").read_text()
    running(kind="json")
    assert json.loads((running.folder / "clip-002.json").read_text())["path"] == NAMES[2]
    running(decorate=Decorate("sks, "))
    assert (running.folder / "clip-002.txt").read_text().startswith("sks, 12 frames")
    assert len(running.engines) == 1


def test_the_file_for_all_holds_failed_clips_too(running: Running) -> None:
    (running.folder / NAMES[3]).write_bytes(b"nothing")
    running(kind="jsonl")
    lines = [json.loads(line) for line in (running.folder / "captions.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == NAMES
    assert [line["error"] and line["error"]["stage"] for line in lines] == [None, None, None, "open", None]
    assert lines[3]["caption"] is None and lines[3]["error"]["hint"]
    assert not list(running.folder.glob("*.txt"))


def test_a_failed_clip_is_not_tried_again_until_it_is_asked_for(running: Running) -> None:
    broken = running.folder / NAMES[3]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-8])
    broken.write_bytes(b"nothing")
    assert told(running())[NAMES[3]] == "failed"
    assert told(running())[NAMES[3]] == "failed before"
    again = running(policy=RunPolicy(retry_failed=True))
    assert [event.attempt for event in again if isinstance(event, ClipRecord)] == [2]
    assert running.summary.skipped == {"not failed": 4}
    broken.write_bytes(whole)
    assert told(running(policy=RunPolicy(retry_failed=True)))[NAMES[3]] == "done"


def test_a_clip_that_vanishes_or_changes_meanwhile_is_an_error_of_its_own(running: Running) -> None:
    def spoil(group: Sequence[Request]) -> None:
        if group[0].video.endswith(NAMES[1]):
            os.unlink(group[0].video)
        if group[0].video.endswith(NAMES[2]):
            with open(group[0].video, "ab") as file:
                file.write(b"more")

    records = {event.name: event for event in running(before=spoil, batch=1) if isinstance(event, ClipRecord)}
    assert [records[name].status for name in NAMES] == ["done", "failed", "failed", "done", "done"]
    assert [found.message.split()[1] for name in NAMES if (found := records[name].error)] == ["vanished", "changed"]
    assert not (running.folder / "clip-001.txt").exists()


def test_what_nobody_foresaw_is_blamed_on_the_clip_that_brings_it_alone(running: Running) -> None:
    def fail(group: Sequence[Request]) -> None:
        if any(request.video.endswith(NAMES[0]) for request in group):
            raise ZeroDivisionError("of a kind")

    records = {event.name: event for event in running(before=fail) if isinstance(event, ClipRecord)}
    assert [records[name].status for name in NAMES] == ["failed", "done", "done", "done", "done"]
    error = records[NAMES[0]].error
    assert error is not None and (error.stage, error.kind) == ("caption", "ZeroDivisionError")
    assert len(running.engines) > 1, "it goes on with a new session"


def test_a_model_that_cannot_be_used_ends_the_run(running: Running) -> None:
    def fail(group: Sequence[Request]) -> None:
        raise ModelError("The weights are torn.", "Fetch them again.")

    with pytest.raises(ModelError, match="torn"):
        running(before=fail)
    assert told(running()) == dict.fromkeys(NAMES, "done")


def test_too_many_failures_end_the_run(running: Running) -> None:
    for name in NAMES[:3]:
        (running.folder / name).write_bytes(b"nothing")
    found = running(policy=RunPolicy(most_failures=1), batch=1)
    assert running.summary.failed >= 2
    assert "more than --max-failures allows" in running.summary.ended
    assert len(found) < 5 or running.summary.captioned < 2


def test_the_first_failure_ends_a_run_that_allows_none(running: Running) -> None:
    (running.folder / NAMES[0]).write_bytes(b"nothing")
    running(policy=RunPolicy(most_failures=0), batch=1)
    assert running.summary.ended.startswith("1 of ")
    assert running.summary.captioned < 4


def test_a_share_of_failures_ends_a_run_once_it_says_something(tmp_path: Path) -> None:
    running = Running(folder_of(tmp_path / "many", 40))
    for number in range(0, 40, 2):
        (running.folder / f"clip-{number:03}.mp4").write_bytes(b"nothing")
    running(policy=RunPolicy(most_failed_share=0.6), batch=1)
    assert (running.summary.failed, running.summary.captioned, running.summary.ended) == (20, 20, "")
    running("What else?", policy=RunPolicy(most_failed_share=0.3), batch=1)
    summary = running.summary
    assert 20 <= summary.failed + summary.captioned < 40
    assert f"{summary.failed} of {summary.failed + summary.captioned} clips failed" in summary.ended


def test_a_limit_leaves_the_rest_for_the_next_run(running: Running) -> None:
    assert len(running(policy=RunPolicy(limit=2))) == 2
    assert told(running()) == dict.fromkeys(NAMES, "done")
    assert running.asked == 3


def test_finishing_ends_with_the_clips_that_were_begun(running: Running) -> None:
    begun = threading.Event()

    def finish(group: Sequence[Request]) -> None:
        begun.set()

    events = running.events(PROMPT, "txt", "skip", RunPolicy(), finish, 1, Decorate())
    first = next(events)
    assert isinstance(first, ClipRecord) and begun.is_set()


def test_a_full_disk_ends_the_run_and_says_what_is_kept(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, count = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(count) == 7:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VidqaError, match=r"The disk is full.*same command again"):
        running(batch=1)
    monkeypatch.setattr(os, "fsync", fsync)
    assert 0 < len(list(running.folder.glob("*.txt"))) < 5
    assert told(running()) == dict.fromkeys(NAMES, "done")
    assert len(list(running.folder.glob("*.txt"))) == 5


def test_a_broken_video_in_a_group_leaves_the_others(running: Running) -> None:
    def fail(group: Sequence[Request]) -> None:
        if len(group) > 1:
            raise VideoUnreadable("one of them", "is it you?")

    assert told(running(before=fail)) == dict.fromkeys(NAMES, "done")


def test_a_clip_that_has_too_many_segments_is_an_error_of_its_own(running: Running) -> None:
    write_clip(running.folder / "long.mp4", 2, pts=[0, 1_200_000])
    running.segments = 1.0
    records = {event.name: event for event in running() if isinstance(event, ClipRecord)}
    assert {name: record.status for name, record in records.items()} == {
        "long.mp4": "failed", **dict.fromkeys(NAMES, "done"),
    }  # fmt: skip
    error = records["long.mp4"].error
    assert error is not None and (error.stage, error.kind) == ("plan", "UsageError")
    assert "1000 are the most" in error.message and "--segments" in error.hint


def test_a_decoder_that_hangs_or_dies_in_mid_run_is_the_error_of_its_clip(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    fates = ["die_frames.mp4", "die_open.mp4", "hang_frames.mp4", "hang_open.mp4"]
    for name in fates:
        shutil.copyfile(running.folder / NAMES[0], running.folder / f"b-{name}")
    running.decode_isolated(2.0)
    records = {event.name: event for event in running() if isinstance(event, ClipRecord)}
    assert told(list(records.values())) == dict.fromkeys(NAMES, "done") | {f"b-{name}": "failed" for name in fates}
    errors = [records[f"b-{name}"].error for name in fates]
    assert [error and error.stage for error in errors] == ["video", "open", "video", "open"]
    assert all(error is not None and error.kind == "VideoUnreadable" and error.hint for error in errors)
    assert ["SIGKILL" in str(error) for error in errors] == [True, True, False, False]
    assert ["for 2 s" in str(error) or "2 s in all" in str(error) for error in errors] == [False, False, True, True]


@pytest.mark.parametrize("segments", [None, "scenes"])
def test_nobody_waits_for_a_decoder_that_hangs_once_the_run_is_to_finish(
    segments: Literal["scenes"] | None, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = scripted_decoder(tmp_path, monkeypatch)
    shutil.copyfile(running.folder / NAMES[0], running.folder / "hang_open.mp4")
    running.decode_isolated(600.0)
    running.segments = segments
    found: list[ClipRecord | Skipped] = []
    thread = threading.Thread(target=lambda: found.extend(running(batch=1)), daemon=True)
    thread.start()
    while sum(records_of(running.folder).values()) < len(NAMES) or not any("hang" in name for _, name in opened()):
        time.sleep(0.01)
    assert running.runner is not None
    running.runner.finish()
    thread.join(60)
    assert not thread.is_alive(), "it waits for the deadline"
    assert told(found) == dict.fromkeys(NAMES, "done")


@pytest.mark.parametrize("hanging", [False, True])
def test_a_stop_that_the_session_forgot_as_it_began_is_not_forgotten(
    hanging: bool, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    running.decode_isolated(20.0)
    if hanging:
        os.rename(running.folder / NAMES[0], running.folder / "a-hang_frames.mp4")

    def stop(group: Sequence[Request]) -> None:
        assert running.runner is not None
        running.runner.stop()
        running.engines[-1].forget()

    with pytest.raises(Interrupted):
        running(before=stop, batch=1)
    assert len(running.engines[-1].groups) == 1
    assert not records_of(running.folder)


def test_a_pipe_in_a_clips_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(FileNotFoundError, match="no file"):
        identify(str(tmp_path / "clip.mp4"))
