"""Commands that caption copies of the demo clips in a process, and what they leave in the folder."""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from vidqa.batch.journal import FOLDER

CLIPS = sorted((ROOT / "assets").glob("demo*.mp4"))
SCRIPTED = [sys.executable, "-m", "tests.batch.child"]
DEMO = [sys.executable, "-m", "vidqa", "caption", "--model", "demo", "--device", "cpu"]


def folder_of(path: Path, count: int) -> Path:
    """Make a folder with clips of different content: players ignore what follows a movie's last box."""
    path.mkdir()
    for number, name in enumerate(names(count)):
        shutil.copyfile(CLIPS[number % len(CLIPS)], path / name)
        with (path / name).open("ab") as file:
            file.write(b"\0\0\0\x0cfree%04d" % number)
    return path


def names(count: int) -> list[str]:
    """Return the names of the clips in `folder_of`."""
    return [f"clip-{number:03}.mp4" for number in range(count)]


def environment(home: Path, **more: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return inherited | {"PYTHONPATH": str(ROOT), "VIDQA_STATE": str(home), "OMP_NUM_THREADS": "1", **more}


def journal_lines(folder: Path) -> list[bytes]:
    """Return the complete lines of a folder's journals."""
    paths = sorted((folder / FOLDER).glob("journal*.jsonl"))
    return [line for path in paths for line in path.read_bytes().split(b"\n")[:-1]]


def records_of(folder: Path) -> Counter[str]:
    """Return how many records each clip has."""
    values = [json.loads(line) for line in journal_lines(folder)]
    return Counter(value["record"]["name"] for value in values if "record" in value)


def plans_of(folder: Path) -> dict[str, Any]:
    """Return the last record's plan of every clip."""
    records = [value["record"] for value in map(json.loads, journal_lines(folder)) if "record" in value]
    return {record["name"]: record["plan"] for record in records}


def outputs_of(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder but clips and journals."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".mp4" and FOLDER not in path.parts
    }
