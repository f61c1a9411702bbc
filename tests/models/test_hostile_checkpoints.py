"""Checkpoints with one random change: each ends within 10 s in an answer or in an error that names the cause.

150 changes run through a Session and 8 through the command line; `--long` runs 2,000 and 40 more.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
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
IMPORT_SECONDS = 50  # for torch on a busy machine
EXIT_CODES = {ExitCode.OK, ExitCode.FAILED, ExitCode.DOES_NOT_FIT, ExitCode.MODEL_MISSING}


def raise_timeout(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"{SECONDS} s have passed")


def ask(folder: Path) -> None:
    config = EngineConfig(model=str(folder), device="cpu", isolate_decoder=False, remember=False)
    with Session(config) as session:
        *_, last = session.ask(Request(CLIP, "what?", max_tokens=8))
    assert isinstance(last, Answered)


def outcome(folder: Path, number: int) -> str:
    """Return "answer" or the VidqaError of a change; anything else fails."""
    what = change(folder, number)
    signal.alarm(SECONDS)
    try:
        ask(folder)
        return "answer"
    except VidqaError as error:
        assert error.what and error.remedy, (number, what)
        return type(error).__name__
    except BaseException as error:
        raise AssertionError(f"change {number} ({what}) ended by {error!r}") from error
    finally:
        signal.alarm(0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("numbers", [range(150), pytest.param(range(150, 2150), marks=pytest.mark.long)], ids=len)
def test_session_answers_or_raises_a_clear_error(numbers: range, tmp_path: Path) -> None:
    ask(copy_demo(tmp_path / "m"))  # imports are not measured
    before = signal.signal(signal.SIGALRM, raise_timeout)
    try:
        began, outcomes = time.monotonic(), Counter(outcome(tmp_path / "m", number) for number in numbers)
    finally:
        signal.signal(signal.SIGALRM, before)
    sys.stdout.write(f"{len(numbers)} changes in {time.monotonic() - began:.0f} s: {dict(outcomes)}\n")
    assert {"answer", "ModelError", "ModelMissing", "NotFinite", "DoesNotFit"} <= set(outcomes)


@pytest.mark.parametrize("numbers", [range(8), pytest.param(range(8, 48), marks=pytest.mark.long)], ids=len)
def test_command_line_answers_or_prints_one_paragraph(numbers: range, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RUST_BACKTRACE": "0"}
    command = ["-m", "vidqa", "ask", CLIP, "what?", "--model", str(tmp_path / "m"), "--device", "cpu", "--quiet"]
    for number in numbers:
        what = change(tmp_path / "m", number)
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, check=False,
            timeout=SECONDS + IMPORT_SECONDS,
        )  # fmt: skip
        error = " ".join(done.stderr.split())
        assert done.returncode in EXIT_CODES, (number, what, error)
        assert (done.returncode == ExitCode.OK) == bool(done.stdout), (number, what)
        assert not any(text in error for text in ("Something unexpected", "Traceback", "\x1b")), (number, what, error)
        assert done.returncode == ExitCode.OK or error.startswith("vidqa:"), (number, what, error)
