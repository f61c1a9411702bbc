"""kill -9 at any moment loses nothing: one record and one output for every clip, as of a run that nobody disturbed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.batch.kills import journal_lines, kill_again_and_again, outputs_of, records_of

ASSETS = Path(__file__).parents[2] / "assets"
CLIPS = sorted(ASSETS.glob("demo*.mp4"))
SCRIPTED = [sys.executable, "-m", "tests.batch.child"]
REAL = [sys.executable, "-m", "vidqa", "caption", "--model", "demo", "--device", "cpu"]


def folder_of(path: Path, count: int) -> Path:
    """So many clips, each with other content: what is behind a movie's last box is not looked at."""
    path.mkdir()
    for number in range(count):
        target = path / f"clip-{number:03}.mp4"
        shutil.copyfile(CLIPS[number % len(CLIPS)], target)
        with target.open("ab") as file:
            file.write(b"\0\0\0\x0cfree%04d" % number)
    return path


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    root = str(Path(__file__).parents[2])
    return kept | {"PYTHONPATH": root, "VIDQA_STATE": str(home), "OMP_NUM_THREADS": "1", **more}


def check_kills(
    tmp_path: Path, command: Sequence[str], count: int, kills: int, told: Mapping[str, str], start_seconds: float
) -> None:
    """Kill so many times, finish, and compare with a run that was left alone."""
    quiet, disturbed = folder_of(tmp_path / "quiet", count), folder_of(tmp_path / "disturbed", count)
    subprocess.run([*command, str(quiet)], check=True, env=environment(tmp_path))
    around = environment(tmp_path, **told)
    recorded = kill_again_and_again(
        [*command, "--batch", "1", str(disturbed)], disturbed, kills, around, start_seconds=start_seconds
    )
    assert sum(recorded) < count, "nothing was left for the last kills"
    subprocess.run([*command, "--batch", "1", str(disturbed)], check=True, env=around)
    assert records_of(disturbed) == {f"clip-{number:03}.mp4": 1 for number in range(count)}
    assert outputs_of(disturbed) == outputs_of(quiet)
    assert len(outputs_of(disturbed)) == count


def test_a_hundred_kills_of_the_scripted_session(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    check_kills(tmp_path, SCRIPTED, 60, 100, {"SCRIPTED_SECONDS": "0.6", "SCRIPTED_BEGUN": str(begun)}, 0.8)
    again = len(begun.read_text().splitlines()) - 60
    assert again <= 100, "more than a batch was captioned anew for a kill"


def test_ten_kills_with_the_demo_model(tmp_path: Path) -> None:
    check_kills(tmp_path, REAL, 60, 10, {}, 6.0)


@pytest.mark.long
def test_a_hundred_kills_with_the_demo_model(tmp_path: Path) -> None:
    check_kills(tmp_path, REAL, 120, 100, {}, 6.0)


def test_a_journal_whose_tail_was_lost_costs_what_was_in_the_tail_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clips", 6)
    subprocess.run([*SCRIPTED, str(folder)], check=True, env=environment(tmp_path))
    before, journal = outputs_of(folder), next((folder / ".vidqa").glob("journal*"))
    whole = journal.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 400, len(whole) // 2, 1, 0):
        journal.write_bytes(whole[:cut])
        kept = len(journal_lines(folder))
        subprocess.run([*SCRIPTED, str(folder)], check=True, env=environment(tmp_path))
        assert records_of(folder) == {f"clip-{number:03}.mp4": 1 for number in range(6)}
        assert outputs_of(folder) == before
        assert journal.read_bytes().splitlines()[:kept] == whole.splitlines()[:kept]
