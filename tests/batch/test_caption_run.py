"""Runs over a folder with the scripted session: which clips are captioned or skipped, and what is written."""

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

from tests.batch import commands
from tests.batch.commands import folder_of, records_of
from tests.batch.scripted import CONFIG, MODEL, ScriptedEngine
from tests.clips import write_clip
from tests.decoders import scripted_decoder
from vidqa.batch.caption_formats import CaptionAffixes
from vidqa.batch.caption_requests import CaptionRequest
from vidqa.batch.caption_run import CaptionRun, ClipSelector, RunPolicy, RunSummary, SkippedClip
from vidqa.batch.caption_writer import CaptionWriter
from vidqa.batch.captioner import CaptionerConfig, Opener, PrefetchOptions, SessionCaptioner
from vidqa.batch.clip_record import ClipRecord, RunFingerprint
from vidqa.batch.discover import discover
from vidqa.batch.journal import Journal, JournalIndex
from vidqa.batch.prompt_templates import PromptTemplate
from vidqa.batch.shards import Shard, shard_clips
from vidqa.batch.sidecars import OnExisting
from vidqa.config import EngineConfig
from vidqa.errors import Interrupted, ModelError, VideoUnreadable, VidqaError
from vidqa.types import Request

Before = Callable[[Sequence[Request]], object]
Result = ClipRecord | SkippedClip


class Runs:
    """Runs over one folder; each has a new scripted session, as a new process would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: list[ScriptedEngine] = []
        self.captioner: SessionCaptioner | None = None
        self.summary = RunSummary()
        self.segments: float | Literal["scenes"] | None = None
        self.engine, self.prefetch = CONFIG, PrefetchOptions(1, 2**28, 30.0)
        self.shard = Shard()

    def decode_isolated(self, deadline_seconds: float) -> None:
        """Decode in processes, with a deadline for a clip."""
        self.engine = replace(CONFIG, isolate_decoder=True)
        self.prefetch = PrefetchOptions(1, 2**28, deadline_seconds)

    def __call__(
        self, prompt: str = "What happens?", *, format_name: str = "txt", on_existing: OnExisting = "skip",
        policy: RunPolicy = RunPolicy(), before: Before = lambda group: None, batch: int | None = None,  # noqa: B008
        affixes: CaptionAffixes = CaptionAffixes(),  # noqa: B008
    ) -> list[Result]:  # fmt: skip
        return list(self.results(prompt, format_name, on_existing, policy, before, batch, affixes))

    def results(
        self, prompt: str, format_name: str, on_existing: OnExisting, policy: RunPolicy, before: Before,
        batch: int | None, affixes: CaptionAffixes,
    ) -> Iterator[Result]:  # fmt: skip
        def make(config: EngineConfig, opener: Opener) -> ScriptedEngine:
            self.engines.append(ScriptedEngine(config, opener, before))
            return self.engines[-1]

        clips = discover([str(self.folder)]).clips
        fingerprint = RunFingerprint(prompt, MODEL, "r", prompt, {})
        request = CaptionRequest(PromptTemplate("test", prompt), Request("", ""), self.segments)
        config = CaptionerConfig(self.engine, request, fingerprint.key, batch, self.prefetch)
        captioner = self.captioner = SessionCaptioner(config, make)
        with Journal(self.folder, self.shard) as journal, closing(captioner):
            index = JournalIndex(self.folder)
            names = [clip.name for clip in clips]
            writer = CaptionWriter(journal, index, fingerprint, names, format_name, on_existing, affixes)
            selector = ClipSelector(fingerprint.key, policy, index, writer)
            run = CaptionRun(shard_clips(clips, self.shard), fingerprint, selector, captioner, journal)
            self.summary = run.summary
            yield from run.events()
            run.render()

    def records(self, before: Before = lambda group: None, batch: int | None = None) -> dict[str, ClipRecord]:
        """Run; return the records by clip."""
        return {result.name: result for result in self(before=before, batch=batch) if isinstance(result, ClipRecord)}

    @property
    def asked(self) -> int:
        """How many clips the last run's session was asked about."""
        return sum(map(len, self.engines[-1].groups)) if self.engines else 0

    def text(self, number: int) -> str:
        return (self.folder / NAMES[number]).with_suffix(".txt").read_text()

    def break_clips(self, *numbers: int) -> None:
        for number in numbers:
            (self.folder / f"clip-{number:03}.mp4").write_bytes(b"nothing")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(folder_of(tmp_path / "clips", 5))


def outcomes(results: Sequence[Result]) -> dict[str, str]:
    """Return each clip's status or the reason why it was skipped."""
    return {
        **{result.name: result.status for result in results if isinstance(result, ClipRecord)},
        **{result.clip.name: result.reason for result in results if isinstance(result, SkippedClip)},
    }


NAMES = commands.names(5)
ALL_DONE = dict.fromkeys(NAMES, "done")


def test_every_clip_gets_its_caption_and_the_next_run_has_nothing_to_do(runs: Runs) -> None:
    assert outcomes(runs()) == ALL_DONE
    captions = [runs.text(number) for number in range(5)]
    assert all("bright, What happens?" in caption for caption in captions)
    assert len(set(captions)) == 4  # the first and the fifth show the same
    assert outcomes(runs()) == ALL_DONE
    assert len(runs.engines) == 1, "the second run needed no session"
    assert runs.summary.skipped == {"done": 5}


def test_another_prompt_and_a_changed_clip_are_due_a_moved_folder_is_not(runs: Runs, tmp_path: Path) -> None:
    runs()
    runs("Who is there?")
    assert runs.asked == 5
    shutil.copyfile(runs.folder / NAMES[1], runs.folder / NAMES[0])
    runs("Who is there?")
    assert runs.asked == 1
    moved = Runs(runs.folder.rename(tmp_path / "elsewhere"))
    assert outcomes(moved("Who is there?")) == ALL_DONE
    assert moved.engines == []


def test_captions_that_vidqa_did_not_write_stay(runs: Runs) -> None:
    own = runs.folder / "clip-000.txt"
    own.write_text("mine\n")
    os.utime(own, (1, 1))
    assert outcomes(runs())[NAMES[0]] == "has a caption of its own"
    assert own.read_text() == "mine\n"
    runs(on_existing="append")
    assert runs.asked == 1
    assert own.read_text().startswith("mine\n8 frames")
    runs(on_existing="append")
    assert own.read_text().count("frames") == 1, "a caption is appended once"
    (runs.folder / "clip-001.txt").write_text("edited\n")
    assert outcomes(runs("Who?"))[NAMES[1]] == "has a caption of its own"
    assert runs.text(1) == "edited\n"
    assert "Who?" in runs.text(2)


def test_a_deleted_caption_another_format_and_another_prefix_need_no_session(runs: Runs) -> None:
    runs()
    (runs.folder / "clip-002.txt").unlink()
    runs()
    assert "bright" in runs.text(2)
    runs(format_name="json")
    assert json.loads((runs.folder / "clip-002.json").read_text())["path"] == NAMES[2]
    runs(affixes=CaptionAffixes("sks, "))
    assert runs.text(2).startswith("sks, 12 frames")
    assert len(runs.engines) == 1


def test_the_file_for_all_clips_has_failed_ones_too(runs: Runs) -> None:
    runs.break_clips(3)
    runs(format_name="jsonl")
    lines = [json.loads(line) for line in (runs.folder / "captions.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == NAMES
    assert [line["error"] and line["error"]["stage"] for line in lines] == [None, None, None, "open", None]
    assert lines[3]["caption"] is None and lines[3]["error"]["hint"]
    assert not list(runs.folder.glob("*.txt"))


def test_a_failed_clip_is_tried_again_only_with_retry_failed(runs: Runs) -> None:
    content = (runs.folder / NAMES[3]).read_bytes()
    runs.break_clips(3)
    assert outcomes(runs())[NAMES[3]] == "failed"
    assert outcomes(runs())[NAMES[3]] == "failed before"
    again = runs(policy=RunPolicy(retry_failed=True))
    assert [result.attempt for result in again if isinstance(result, ClipRecord)] == [2]
    assert runs.summary.skipped == {"not failed": 4}
    (runs.folder / NAMES[3]).write_bytes(content)
    assert outcomes(runs(policy=RunPolicy(retry_failed=True)))[NAMES[3]] == "done"


def test_a_clip_that_vanishes_or_changes_during_the_run_fails(runs: Runs) -> None:
    def spoil(group: Sequence[Request]) -> None:
        if group[0].video.endswith(NAMES[1]):
            os.unlink(group[0].video)
        if group[0].video.endswith(NAMES[2]):
            with open(group[0].video, "ab") as file:
                file.write(b"more")

    records = runs.records(before=spoil, batch=1)
    assert [records[name].status for name in NAMES] == ["done", "failed", "failed", "done", "done"]
    assert [error.message.split()[1] for name in NAMES if (error := records[name].error)] == ["vanished", "changed"]
    assert not (runs.folder / "clip-001.txt").exists()


def test_an_unexpected_error_fails_only_the_clip_that_causes_it(runs: Runs) -> None:
    def fail(group: Sequence[Request]) -> None:
        if any(request.video.endswith(NAMES[0]) for request in group):
            raise ZeroDivisionError("of a kind")

    records = runs.records(before=fail)
    assert [records[name].status for name in NAMES] == ["failed", "done", "done", "done", "done"]
    error = records[NAMES[0]].error
    assert error is not None and (error.stage, error.kind) == ("caption", "ZeroDivisionError")
    assert len(runs.engines) > 1, "it continues with a new session"


def test_a_video_error_of_a_group_fails_no_clip_that_works_alone(runs: Runs) -> None:
    def fail(group: Sequence[Request]) -> None:
        if len(group) > 1:
            raise VideoUnreadable("one of them", "is it you?")

    assert outcomes(runs(before=fail)) == ALL_DONE


def test_a_model_that_cannot_be_used_ends_the_run(runs: Runs) -> None:
    def fail(group: Sequence[Request]) -> None:
        raise ModelError("The weights are torn.", "Fetch them again.")

    with pytest.raises(ModelError, match="torn"):
        runs(before=fail)
    assert outcomes(runs()) == ALL_DONE


@pytest.mark.parametrize(("broken", "limit"), [((0, 1, 2), 1), ((0,), 0)])
def test_more_failures_than_allowed_end_the_run(runs: Runs, broken: tuple[int, ...], limit: int) -> None:
    runs.break_clips(*broken)
    runs(policy=RunPolicy(max_failures=limit), batch=1)
    summary = runs.summary
    assert summary.failed > limit
    assert summary.ended.endswith(f"of {summary.finished} clips failed, more than --max-failures allows")
    assert summary.captioned < 5 - len(broken)


def test_a_percentage_of_failures_ends_the_run_once_enough_clips_are_finished(tmp_path: Path) -> None:
    runs = Runs(folder_of(tmp_path / "many", 40))
    runs.break_clips(*range(0, 40, 2))
    runs(policy=RunPolicy(max_failed_fraction=0.6), batch=1)
    assert (runs.summary.failed, runs.summary.captioned, runs.summary.ended) == (20, 20, "")
    runs("What else?", policy=RunPolicy(max_failed_fraction=0.3), batch=1)
    assert 20 <= runs.summary.finished < 40
    assert f"{runs.summary.failed} of {runs.summary.finished} clips failed" in runs.summary.ended


def test_a_limit_leaves_the_rest_for_the_next_run(runs: Runs) -> None:
    assert len(runs(policy=RunPolicy(limit=2))) == 2
    assert outcomes(runs()) == ALL_DONE
    assert runs.asked == 3


def test_a_full_disk_ends_the_run_and_the_next_one_continues(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, count = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(count) == 7:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VidqaError, match=r"The disk is full.*same command again"):
        runs(batch=1)
    monkeypatch.setattr(os, "fsync", fsync)
    assert 0 < len(list(runs.folder.glob("*.txt"))) < 5
    assert outcomes(runs()) == ALL_DONE
    assert len(list(runs.folder.glob("*.txt"))) == 5


def test_a_clip_with_too_many_segments_fails(runs: Runs) -> None:
    write_clip(runs.folder / "long.mp4", 2, pts=[0, 1_200_000])
    runs.segments = 1.0
    records = runs.records()
    assert outcomes(list(records.values())) == ALL_DONE | {"long.mp4": "failed"}
    error = records["long.mp4"].error
    assert error is not None and (error.stage, error.kind) == ("plan", "UsageError")
    assert "the limit is 1000" in error.message and "--segments" in error.hint


def test_a_decoder_that_hangs_or_dies_fails_its_clip(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    expected = {  # the failed stage, and words of the error
        "b-die_frames.mp4": ("video", "SIGKILL"), "b-die_open.mp4": ("open", "SIGKILL"),
        "b-hang_frames.mp4": ("video", "4 s"), "b-hang_open.mp4": ("open", "4 s"),
    }  # fmt: skip
    for name in expected:
        shutil.copyfile(runs.folder / NAMES[0], runs.folder / name)
    runs.decode_isolated(4.0)
    records = runs.records()
    assert outcomes(list(records.values())) == ALL_DONE | dict.fromkeys(expected, "failed")
    for name, (stage, words) in expected.items():
        error = records[name].error
        assert error is not None and error.hint
        assert (error.stage, error.kind) == (stage, "VideoUnreadable")
        assert words in error.message


@pytest.mark.parametrize("segments", [None, "scenes"])
def test_finish_does_not_wait_for_a_decoder_that_hangs(
    segments: Literal["scenes"] | None, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = scripted_decoder(tmp_path, monkeypatch)
    shutil.copyfile(runs.folder / NAMES[0], runs.folder / "hang_open.mp4")
    runs.decode_isolated(600.0)
    runs.segments = segments
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.extend(runs(batch=1)), daemon=True)
    thread.start()
    while sum(records_of(runs.folder).values()) < len(NAMES) or not any("hang" in name for _, name in opened()):
        time.sleep(0.01)
    assert runs.captioner is not None
    runs.captioner.finish()
    thread.join(60)
    assert not thread.is_alive(), "it waits for the deadline"
    assert outcomes(found) == ALL_DONE


@pytest.mark.parametrize("hanging", [False, True])
def test_stop_works_although_the_session_forgets_a_cancel_before_its_question(
    hanging: bool, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_decoder(tmp_path, monkeypatch)
    runs.decode_isolated(20.0)
    if hanging:
        os.rename(runs.folder / NAMES[0], runs.folder / "a-hang_frames.mp4")

    def stop(group: Sequence[Request]) -> None:
        assert runs.captioner is not None
        runs.captioner.stop()
        runs.engines[-1].forget()

    with pytest.raises(Interrupted):
        runs(before=stop, batch=1)
    assert len(runs.engines[-1].groups) == 1
    assert not records_of(runs.folder)
