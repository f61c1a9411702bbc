"""Sidecars and the file of all captions after several runs: shards, other prompts and forms, edits meanwhile."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.batch.commands import folder_of
from tests.batch.scripted import MODEL
from tests.batch.test_caption_run import ALL_DONE, NAMES, Runs, outcomes
from vidqa.batch import caption_writer
from vidqa.batch.caption_formats import CaptionAffixes
from vidqa.batch.caption_run import RunPolicy
from vidqa.batch.caption_writer import CaptionWriter
from vidqa.batch.clip_record import ClipRecord, RunFingerprint
from vidqa.batch.journal import Journal, JournalIndex
from vidqa.batch.shards import Shard


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(folder_of(tmp_path / "clips", 5))


def test_captions_of_shards_are_vidqas_own_in_a_later_run_without_shards(runs: Runs) -> None:
    runs()
    for number in (1, 2):
        runs.shard = Shard(number, 2)
        runs("Who is there?")
    runs.shard = Shard()
    assert outcomes(runs("What color?")) == ALL_DONE
    assert all("What color?" in runs.text(number) for number in range(5))


def test_a_caption_in_another_form_counts_as_the_last_write(runs: Runs) -> None:
    runs()
    for number in (1, 2):
        runs.shard = Shard(number, 2)
        runs(affixes=CaptionAffixes("sks, "))
    runs.shard = Shard()
    assert outcomes(runs("Who is there?")) == ALL_DONE


def test_captions_of_an_earlier_prompt_come_back_without_a_session(runs: Runs) -> None:
    runs()
    runs("Who is there?")
    assert outcomes(runs()) == ALL_DONE
    assert len(runs.engines) == 2
    assert all("What happens?" in runs.text(number) for number in range(5))


def test_a_caption_whose_file_appears_meanwhile_is_reported_and_comes_once_that_is_gone(runs: Runs) -> None:
    own = runs.folder / "clip-001.txt"
    assert outcomes(runs(before=lambda group: own.write_text("mine\n"))) == ALL_DONE
    assert own.read_text() == "mine\n" and runs.summary.unwritten == ["clip-001.txt"]
    own.unlink()
    assert outcomes(runs()) == ALL_DONE
    assert "bright" in own.read_text() and runs.summary.unwritten == [] and len(runs.engines) == 1


def test_a_caption_that_is_edited_between_plan_and_write_is_reported(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = CaptionWriter.with_planned_write

    def edited(writer: CaptionWriter, record: ClipRecord) -> ClipRecord:
        found = planned(writer, record)
        (runs.folder / record.name).with_suffix(".txt").write_text("mine\n")
        return found

    monkeypatch.setattr(CaptionWriter, "with_planned_write", edited)
    runs(policy=RunPolicy(limit=1))
    assert (runs.summary.captioned, runs.summary.unwritten, runs.text(0)) == (1, ["clip-000.txt"], "mine\n")


def test_a_slow_shard_does_not_replace_the_file_of_one_that_read_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFingerprint("run", MODEL, "r", "What?", {})
    began, other_ended = threading.Event(), threading.Event()

    def slow(format_name: str, rows: Iterable[tuple[ClipRecord, RunFingerprint]], affixes: object) -> Iterator[str]:
        """Read all journals, then write nothing for a second, or until the other shard wrote."""
        found = [record.name for record, _ in rows]
        if not began.is_set():
            began.set()
            other_ended.wait(1)
        return (f"{name}\n" for name in found)

    monkeypatch.setattr(caption_writer, "run_lines", slow)

    def render(number: int) -> None:
        name = NAMES[number]
        with Journal(tmp_path, Shard(number, 2)) as journal:
            journal.append(ClipRecord(name, "", run.key, "done", 1))
            CaptionWriter(journal, JournalIndex(tmp_path), run, NAMES, "jsonl").render()

    first = threading.Thread(target=render, args=(1,))
    first.start()
    assert began.wait(60)
    render(2)
    other_ended.set()
    first.join()
    assert (tmp_path / "captions.jsonl").read_text().split() == NAMES[1:3]
