"""A command that captions a folder and is killed at random moments, again and again, until it is done."""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vidqa.batch.journal import FOLDER

_LOOK_SECONDS = 0.005


def kill_again_and_again(
    command: Sequence[str], folder: Path, kills: int, environment: Mapping[str, str], *, start_seconds: float
) -> list[int]:
    """Start and kill the command so many times; the clips that each start has recorded before it was killed.

    Three of five are killed anywhere in their first seconds, when they read the journal, mend, load and read ahead;
    the others at a random moment after their next record, which is when they write.
    """
    chance = random.Random(0)
    recorded = []
    for _ in range(kills):
        before = len(journal_lines(folder))
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        ) as process:
            if chance.random() < 0.4:
                while len(journal_lines(folder)) == before and process.poll() is None:
                    time.sleep(_LOOK_SECONDS)
                time.sleep(chance.uniform(0, 0.1))
            else:
                time.sleep(chance.uniform(0, start_seconds))
            assert process.poll() is None, f"it ended before it was killed, with {process.returncode}"
            os.killpg(process.pid, signal.SIGKILL)
        recorded.append(len(journal_lines(folder)) - before)
    return recorded


def journal_lines(folder: Path) -> list[bytes]:
    """The whole lines of a folder's journals."""
    paths = sorted((folder / FOLDER).glob("journal*.jsonl"))
    return [line for path in paths for line in path.read_bytes().split(b"\n")[:-1]]


def records_of(folder: Path) -> Counter[str]:
    """How many records each clip has."""
    values = [json.loads(line) for line in journal_lines(folder)]
    return Counter(value["record"]["name"] for value in values if "record" in value)


def outputs_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder but clips and what vidqa keeps to itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".mp4" and FOLDER not in path.parts
    }
