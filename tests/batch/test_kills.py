"""kill -9 at any moment loses nothing: one record and one output for every clip, as in an undisturbed run."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.batch.commands import DEMO, SCRIPTED, environment, folder_of, journal_lines, names, outputs_of, records_of


def kill_repeatedly(
    command: Sequence[str], folder: Path, kills: int, environment: dict[str, str], start_seconds: float
) -> int:
    """Start and kill the command; return how many lines it journaled.

    Three of five kills come anywhere in the first seconds, while it reads the journal, repairs, loads and prefetches;
    the others at a random moment after the next record, while it writes.
    """
    chance = random.Random(0)
    for _ in range(kills):
        before = len(journal_lines(folder))
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        ) as process:
            if chance.random() < 0.4:
                while len(journal_lines(folder)) == before and process.poll() is None:
                    time.sleep(0.005)
                time.sleep(chance.uniform(0, 0.1))
            else:
                time.sleep(chance.uniform(0, start_seconds))
            assert process.poll() is None, f"it ended before it was killed, with {process.returncode}"
            os.killpg(process.pid, signal.SIGKILL)
    return len(journal_lines(folder))


@pytest.mark.parametrize(
    ("command", "clips", "kills", "start_seconds"),
    [
        (SCRIPTED, 20, 12, 0.8),
        (DEMO, 20, 3, 6.0),
        pytest.param(SCRIPTED, 60, 100, 0.8, marks=pytest.mark.long),
        pytest.param(DEMO, 120, 100, 6.0, marks=pytest.mark.long),
    ],
)
def test_killed_runs_leave_the_outputs_of_an_undisturbed_one(
    command: Sequence[str], clips: int, kills: int, start_seconds: float, tmp_path: Path
) -> None:
    undisturbed, killed = folder_of(tmp_path / "undisturbed", clips), folder_of(tmp_path / "killed", clips)
    subprocess.run([*command, str(undisturbed)], check=True, env=environment(tmp_path))
    begun = tmp_path / "begun"
    slow = environment(tmp_path, SCRIPTED_SECONDS="0.6", SCRIPTED_BEGUN=str(begun))
    one_by_one = [*command, "--batch", "1", str(killed)]
    assert kill_repeatedly(one_by_one, killed, kills, slow, start_seconds) < clips, "nothing left for the last kills"
    subprocess.run(one_by_one, check=True, env=slow)
    assert records_of(killed) == dict.fromkeys(names(clips), 1)
    assert outputs_of(killed) == outputs_of(undisturbed)
    assert len(outputs_of(killed)) == clips
    if command is SCRIPTED:
        repeated = len(begun.read_text().splitlines()) - clips
        assert repeated <= kills, "a kill cost more than a batch"


def test_a_truncated_journal_costs_only_the_lost_records(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clips", 6)
    subprocess.run([*SCRIPTED, str(folder)], check=True, env=environment(tmp_path))
    before, journal = outputs_of(folder), next((folder / ".vidqa").glob("journal*"))
    content = journal.read_bytes()
    for size in (len(content) - 1, len(content) - 400, len(content) // 2, 1, 0):
        journal.write_bytes(content[:size])
        complete = len(journal_lines(folder))
        subprocess.run([*SCRIPTED, str(folder)], check=True, env=environment(tmp_path))
        assert records_of(folder) == dict.fromkeys(names(6), 1)
        assert outputs_of(folder) == before
        assert journal.read_bytes().splitlines()[:complete] == content.splitlines()[:complete]
