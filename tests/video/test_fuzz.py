"""Mutated clips of every container end in frames or in a clear error, in little time and memory."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.video.mutants import whole_clips

SEED = 2026
MOST_SECONDS = 5.0
MOST_BYTES = 600 * 2**20
ENDS = {"frames", "VideoUnreadable", "PictureTooLarge", "VideoTooDamaged"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")


def outcomes(first: int, count: int) -> list[dict[str, Any]]:
    """Return the outcomes of mutants, from a separate process."""
    command = (sys.executable, "-m", "tests.video.fuzz", str(SEED), str(first), str(count))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize(("first", "count"), [(0, 200), pytest.param(200, 4800, marks=pytest.mark.long)])
def test_mutants_end_in_frames_or_a_clear_error(first: int, count: int) -> None:
    found = outcomes(first, count)
    assert len(found) == count
    assert [outcome for outcome in found if outcome["end"] not in ENDS] == []
    # A process that dies, or hangs for 30 s, is reported as such; both would be faults.
    assert [outcome for outcome in found if re.search("[Tt]he decoder (was|ended|busy)", outcome["what"])] == []
    assert [outcome for outcome in found if outcome["processor_seconds"] > MOST_SECONDS] == []
    assert [outcome for outcome in found if max(outcome["grown_bytes"], outcome["decoder_bytes"]) > MOST_BYTES] == []
    ends = Counter(outcome["end"] for outcome in found)
    assert (
        ends["frames"] > count / 10 and ends["VideoUnreadable"] > count / 10
    )  # mutations that matter, and not only those
    assert len({outcome["extension"] for outcome in found}) == 22


def test_the_clips_to_mutate_are_of_every_container(tmp_path: Path) -> None:
    clips = whole_clips(tmp_path)
    assert set(clips) == {
        "3gp", "apng", "avi", "avif", "bmp", "flv", "gif", "h264", "heic", "ivf", "jpg", "mkv", "mov", "mp4", "mpg",
        "ogv", "png", "tif", "ts", "webm", "webp", "wmv",
    }  # fmt: skip
    assert max(map(len, clips.values())) < 2**16
