"""Checkpoints with one thing changed at random: every end is an answer or an error that names the cause, within 10 s.

150 changes are asked through a Session here and 8 through the command line; `--long` asks 2,000 and 40, and prints the
kinds of ends and the slowest one.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.models.hostile import change, copy_demo
from vidqa import EngineConfig, Request, Session
from vidqa.cli.console import ExitCode
from vidqa.errors import VidqaError
from vidqa.events import Answered

ROOT = Path(__file__).parents[2]
CLIP = str(ROOT / "assets" / "demo.mp4")
SECONDS = 10
STARTING = 50  # seconds that importing torch may take on a busy machine
SOME, MANY = 150, 2000
LATE = SECONDS + STARTING
ENDS = {ExitCode.OK, ExitCode.FAILED, ExitCode.DOES_NOT_FIT, ExitCode.MODEL_MISSING}


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the middle of what takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{seconds} s have passed")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ask(folder: Path) -> str:
    """The answer of a checkpoint to a question about the demo clip."""
    config = EngineConfig(model=str(folder), device="cpu", isolate_decoder=False, remember=False)
    with Session(config) as session:
        *_, last = session.ask(Request(CLIP, "what?", max_tokens=8))
    assert isinstance(last, Answered)
    return last.answer.text


def end_of(folder: Path, number: int) -> tuple[str, float]:
    """How a change ends, and after how many seconds; anything but an answer or a VidqaError fails."""
    what, began = change(folder, number), time.monotonic()
    try:
        with within(SECONDS):
            ask(folder)
        end = "answer"
    except VidqaError as error:
        assert error.what and error.remedy, (number, what)
        end = type(error).__name__
    except BaseException as error:
        raise AssertionError(f"change {number} ({what}) ended by {error!r}") from error
    return end, time.monotonic() - began


def ends_of(folder: Path, numbers: range) -> Counter[str]:
    ask(copy_demo(folder))  # imports are not what is measured
    ends: Counter[str] = Counter()
    slowest = (0.0, 0)
    for number in numbers:
        end, seconds = end_of(folder, number)
        ends[end] += 1
        slowest = max(slowest, (seconds, number))
    sys.stdout.write(f"{len(numbers)} changes: {dict(ends)}; slowest {slowest[0]:.1f} s, change {slowest[1]}\n")
    return ends


@pytest.mark.filterwarnings("ignore")
def test_every_changed_checkpoint_ends_in_an_answer_or_a_clear_error(tmp_path: Path) -> None:
    ends = ends_of(tmp_path / "m", range(SOME))
    assert {"answer", "ModelError", "ModelMissing", "NotFinite", "DoesNotFit"} <= set(ends)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_changed_checkpoints_end_so_too(tmp_path: Path) -> None:
    ends_of(tmp_path / "m", range(SOME, SOME + MANY))


def cli_end(folder: Path, number: int) -> None:
    """`vidqa ask` on a changed checkpoint: a documented exit code, and one paragraph where there is no answer."""
    what = change(folder, number)
    command = [
        sys.executable,
        "-m",
        "vidqa",
        "ask",
        CLIP,
        "what?",
        "--model",
        str(folder),
        "--device",
        "cpu",
        "--quiet",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RUST_BACKTRACE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=LATE)
    said = " ".join(done.stderr.split())
    assert done.returncode in ENDS, (number, what, said)
    assert (done.returncode == ExitCode.OK) == bool(done.stdout), (number, what)
    assert "Something unexpected" not in said and "Traceback" not in said and "\x1b" not in said, (number, what, said)
    assert done.returncode == ExitCode.OK or said.startswith("vidqa:"), (number, what, said)


def test_the_command_line_ends_so_too(tmp_path: Path) -> None:
    for number in range(8):
        cli_end(tmp_path / "m", number)


@pytest.mark.long
def test_the_command_line_ends_so_forty_times(tmp_path: Path) -> None:
    for number in range(8, 48):
        cli_end(tmp_path / "m", number)
