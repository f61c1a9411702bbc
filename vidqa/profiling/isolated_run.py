"""Runs of one question in a separate process, so that running out of memory is a result.

The child reads an `IsolatedRun` as JSON on stdin and writes one JSON object to a descriptor that libraries do not
print to.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from vidqa.config import EngineConfig
from vidqa.profiling.sweep_points import Side
from vidqa.types import Placement, Request, Turn
from vidqa.utils.safe_text import safe_line

WORKER_COMMAND = (sys.executable, "-m", "vidqa.profiling.isolated_worker")
_TAIL_CHARACTERS = 4000
# What a process prints when an allocation failed where Python could not catch it.
OUT_OF_MEMORY_MESSAGES = (
    "MemoryError",
    "bad_alloc",
    "out of memory",
    "Cannot allocate memory",
    "cannot allocate memory",
    "can't allocate memory",
    "Thread creation failed",  # OpenMP: no memory for another stack
    "can't start new thread",
)


@dataclass(frozen=True, slots=True)
class IsolatedRun:
    """One question for one side. `limit_bytes` limits the process's data on a CPU, its allocator on a GPU."""

    side: Side
    request: Request
    config: EngineConfig
    limit_bytes: int | None = None


def to_json(run: IsolatedRun) -> str:
    """Return a run as one line of JSON."""
    return json.dumps(asdict(run))


def from_json(text: str) -> IsolatedRun:
    """Return the run that `to_json` wrote."""
    fields = json.loads(text)
    request, config = fields.pop("request"), fields.pop("config")
    size, place = request.pop("size"), config.pop("placement")
    history = tuple(Turn(**turn) for turn in request.pop("history"))
    return IsolatedRun(
        request=Request(**request, size=None if size is None else (size[0], size[1]), history=history),
        config=EngineConfig(**config, placement=None if place is None else Placement(**place)),
        **fields,
    )


def run_job(run: IsolatedRun, command: Sequence[str] = WORKER_COMMAND) -> dict[str, Any]:
    """Run in a new process and return its result; a crash is a result too, never an exception.

    KeyboardInterrupt kills the child and its descendants.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as stderr_file:
        try:
            process = subprocess.Popen(
                (*command, str(writing)), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr_file,
                pass_fds=(writing,), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writing)
        try:
            with suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.write(to_json(run).encode())
                process.stdin.close()
            output = _read(reading)
            code = process.wait()
        finally:
            os.close(reading)
            _kill_session(process)
        stderr_file.seek(0)
        return result_of(code, output, stderr_file.read().decode(errors="replace"))


def _read(descriptor: int) -> str:
    """Return all bytes until the other end closes, as text."""
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's session: the child and a decoder process that outlived it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def result_of(code: int, output: str, stderr: str) -> dict[str, Any]:
    """Return a finished process's result: its output, else what its exit code and stderr mean."""
    with suppress(ValueError):
        result = json.loads(output)
        if isinstance(result, Mapping):
            return dict(result)
    tail = stderr[-_TAIL_CHARACTERS:]
    last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "no message")
    if code == -signal.SIGKILL:
        detail = "killed by signal 9, which the kernel sends when memory runs out"
        return {"outcome": "out_of_memory", "detail": detail}
    if any(message in tail for message in OUT_OF_MEMORY_MESSAGES):
        return {"outcome": "out_of_memory", "detail": safe_line(last)}
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {"outcome": "failed", "detail": f"the process ended with {how}: {safe_line(last)}"}
