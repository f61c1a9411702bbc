"""Runs in a separate process: results, crashes and Ctrl-C."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vidqa.config import EngineConfig
from vidqa.errors import DoesNotFit, UsageError
from vidqa.profiling.isolated_run import IsolatedRun, from_json, result_of, run_job, to_json
from vidqa.profiling.isolated_worker import catch
from vidqa.types import Placement, Request

JOB = IsolatedRun("vidqa", Request("clip.mp4", "what?", frames=4, size=(112, 84)), EngineConfig())


def scripted(*lines: str) -> tuple[str, ...]:
    """A child that runs these lines of Python, with `tell(text)` to answer."""
    head = "import os, sys, signal, time\ndef tell(text): os.write(int(sys.argv[1]), text.encode())\n"
    return (sys.executable, "-c", head + "\n".join(lines))


def test_a_run_is_the_same_after_json() -> None:
    for job in (
        JOB,
        IsolatedRun("transformers", JOB.request, EngineConfig(placement=Placement(vision_offloaded=True)), 5),
    ):
        assert from_json(to_json(job)) == job


def test_the_result_is_read_whatever_libraries_print() -> None:
    result = run_job(JOB, scripted("print('chatter')", 'tell(\'{"outcome": "ok", "peak_bytes": 7}\')'))
    assert result == {"outcome": "ok", "peak_bytes": 7}


def test_the_child_reads_the_run_on_stdin() -> None:
    result = run_job(
        JOB, scripted("import json; job = json.load(sys.stdin)", "tell(json.dumps({'outcome': job['side']}))")
    )
    assert result == {"outcome": "vidqa"}


@pytest.mark.parametrize(
    ("lines", "outcome", "detail"),
    [
        (["os.kill(os.getpid(), signal.SIGKILL)"], "out_of_memory", "signal 9"),
        (["raise MemoryError"], "out_of_memory", "MemoryError"),
        (["sys.stderr.write('terminate called: std::bad_alloc\\n')", "os.abort()"], "out_of_memory", "bad_alloc"),
        (["import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 28,) * 2)", "bytearray(1 << 30)"],
         "out_of_memory", "MemoryError"),
        (["sys.exit('\\x1b[2Jno such thing')"], "failed", "exit code 1: \\x1b[2Jno such thing"),
        (["os.kill(os.getpid(), signal.SIGSEGV)"], "failed", "signal 11"),
        (["tell('not json')"], "failed", "exit code 0"),
    ],
)  # fmt: skip
def test_a_crash_is_a_result(lines: list[str], outcome: str, detail: str) -> None:
    result = run_job(JOB, scripted(*lines))
    assert result["outcome"] == outcome
    assert detail in result["detail"]


def test_a_crash_without_a_message_is_a_result() -> None:
    assert result_of(1, "", "") == {"outcome": "failed", "detail": "the process ended with exit code 1: no message"}


def fails_with(error: Exception) -> Callable[[IsolatedRun], dict[str, Any]]:
    def run(job: IsolatedRun) -> dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (DoesNotFit("The prefill phase ran out of memory.", "Ask for fewer."), "out_of_memory"),
        (RuntimeError("can't start new thread"), "out_of_memory"),
        (UsageError("No.", "Yes."), "failed"),
        (ZeroDivisionError("division by zero"), "failed"),
    ],
)
def test_an_error_in_the_child_is_a_result(error: Exception, outcome: str) -> None:
    assert catch(fails_with(error), JOB)["outcome"] == outcome


def test_ctrl_c_kills_the_child_and_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    lines = (
        "import subprocess",
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])",
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}} ')",
        "time.sleep(60)",
    )

    def interrupt() -> None:
        while not (note.exists() and note.read_text().endswith(" ")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of a parallel run may ignore it
    waiting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_job(JOB, scripted(*lines))
    finally:
        signal.signal(signal.SIGINT, before)
    waiting.join()
    child, grandchild = map(int, note.read_text().split())
    assert not Path(f"/proc/{child}").exists()
    assert is_gone(grandchild)


def is_gone(process: int) -> bool:
    """Return whether a process ended within a second; a grandchild that is not reaped is a zombie."""
    for _ in range(50):
        try:
            if Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
