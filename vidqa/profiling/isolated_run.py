"""One run in a process of its own: what it is told, what it tells, and what its death means.

The child reads a Job as JSON on stdin and writes one JSON object to a descriptor that
nothing else writes to; whatever libraries print goes elsewhere. Knows processes; knows no
torch and no terminal.
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

CHILD = (sys.executable, "-m", "vidqa.profiling.isolated_worker")
_TAIL_CHARACTERS = 4000
# What a process says on its way out when an allocation failed where Python could not catch it.
MEMORY_SIGNS = (
    "MemoryError",
    "bad_alloc",
    "out of memory",
    "Cannot allocate memory",
    "cannot allocate memory",
    "can't allocate memory",
    "Thread creation failed",  # OpenMP: no room for another stack
    "can't start new thread",
)


@dataclass(frozen=True, slots=True)
class IsolatedRun:
    """One question for one side. `limit_bytes` caps the process: its data on a CPU, its allocator on a GPU."""

    side: Side
    request: Request
    config: EngineConfig
    limit_bytes: int | None = None


def to_json(job: IsolatedRun) -> str:
    """A job as one line of text."""
    return json.dumps(asdict(job))


def from_json(text: str) -> IsolatedRun:
    """The job that `to_json` wrote."""
    told = json.loads(text)
    request, config = told.pop("request"), told.pop("config")
    size, place = request.pop("size"), config.pop("placement")
    history = tuple(Turn(**turn) for turn in request.pop("history"))
    return IsolatedRun(
        request=Request(**request, size=None if size is None else (size[0], size[1]), history=history),
        config=EngineConfig(**config, placement=None if place is None else Placement(**place)),
        **told,
    )


def run_job(job: IsolatedRun, command: Sequence[str] = CHILD) -> dict[str, Any]:
    """Run a job in a new process and return what it told; its death is a result too, never an exception.

    KeyboardInterrupt ends the child and everything that it started.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as talk:
        try:
            process = subprocess.Popen(
                (*command, str(writing)), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=talk,
                pass_fds=(writing,), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writing)
        try:
            with suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.write(to_json(job).encode())
                process.stdin.close()
            told = _read(reading)
            code = process.wait()
        finally:
            os.close(reading)
            _end(process)
        talk.seek(0)
        return verdict(code, told, talk.read().decode(errors="replace"))


def _read(descriptor: int) -> str:
    """Everything until the other side closes."""
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's session: itself, and a decoder that outlived it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def verdict(code: int, told: str, said: str) -> dict[str, Any]:
    """What a finished process amounts to: its own word, else what its exit code and stderr mean."""
    with suppress(ValueError):
        result = json.loads(told)
        if isinstance(result, Mapping):
            return dict(result)
    tail = said[-_TAIL_CHARACTERS:]
    last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "it said nothing")
    if code == -signal.SIGKILL:
        detail = "killed by signal 9, as the kernel does when memory runs out"
        return {"outcome": "out_of_memory", "detail": detail}
    if any(sign in tail for sign in MEMORY_SIGNS):
        return {"outcome": "out_of_memory", "detail": safe_line(last)}
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {"outcome": "failed", "detail": f"the process ended with {how}: {safe_line(last)}"}
