"""Sections of a benchmark in a process that may fail: what each one found is told at once, so nothing is lost.

The parent starts a child for all sections. A section that takes too long is interrupted; one
that hangs, or breaks the device, takes the child down, and a fresh child goes on behind it.
Imports no torch.
"""

import json
import os
import select
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from benchlib.rows import Row, Samples

GRACE_SECONDS = 15.0  # how much longer than its limit a section may take to give up by itself
_START_SECONDS = 90.0  # for a child to import its libraries

Section = Callable[[Any], Iterator[Row]]
Tell = Callable[[dict[str, Any]], None]


class TimeUp(BaseException):
    """A section's time is over. No Exception: a library must not take it for an error of its own."""


class Skipped(Exception):
    """A section cannot run here; the message says why."""


@dataclass(slots=True)
class Found:
    """What the sections told: their rows, and how each of them ended."""

    rows: list[Row] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def outcome(self, outcome: str) -> list[str]:
        """The sections that ended so."""
        return [end["section"] for end in self.ends if end["outcome"] == outcome]


Changed = Callable[[Found], None]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in this (the main) thread when the time is over."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_here(name: str, section: Section, bench: Any, limit_seconds: float, tell: Tell) -> bool:
    """Run one section in this process and tell its rows as they come; whether it came to its end or was skipped."""
    began, outcome, detail = time.perf_counter(), "ok", ""
    tell({"began": name, "limit_seconds": limit_seconds})
    try:
        with time_limit(limit_seconds):
            for row in section(bench):
                tell({"row": asdict(row)})
    except Skipped as reason:
        outcome, detail = "skipped", str(reason)
    except TimeUp:
        outcome, detail = "timed out", f"stopped after its {limit_seconds:.0f} s"
    except Exception as error:
        traceback.print_exc()
        outcome, detail = "failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
    seconds = round(time.perf_counter() - began, 2)
    tell({"ended": {"section": name, "outcome": outcome, "detail": detail, "seconds": seconds}})
    return outcome in ("ok", "skipped")


def teller(descriptor: int) -> Tell:
    """Writes each message as a line to a descriptor that nothing else writes to."""

    def tell(message: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(message).encode() + b"\n")

    return tell


def run_in_children(
    limits: Mapping[str, float],
    budget_seconds: float,
    command: Callable[[Sequence[str], float], Sequence[str]],
    changed: Changed,
) -> Found:
    """Run all sections (name: seconds) in as few processes as they need.

    `command` makes a child's command line from the names and the seconds that are left; the
    descriptor to tell on is appended. `changed` is called whenever a section has ended.
    """
    found, waiting, began, stillborn = Found(), list(limits), time.monotonic(), 0
    while waiting and (left := budget_seconds - (time.monotonic() - began)) > 0:
        before = len(found.ends)
        _run_child(command(waiting, left), found, changed)
        stillborn = stillborn + 1 if len(found.ends) == before else 0
        if stillborn == 2:  # it is not the section that fails
            for name in waiting:
                _end(found, changed, name, "failed", "its process ended before it began")
        ended = {end["section"] for end in found.ends}
        waiting = [name for name in waiting if name not in ended]
    for name in waiting:
        _end(found, changed, name, "timed out", f"the {budget_seconds:.0f} s of all sections were over")
    return found


def _end(found: Found, changed: Changed, name: str, outcome: str, detail: str, seconds: float = 0.0) -> None:
    found.ends.append({"section": name, "outcome": outcome, "detail": detail, "seconds": seconds})
    changed(found)


def _run_child(command: Sequence[str], found: Found, changed: Changed) -> None:
    """One child to its end; the section that it died in is recorded as failed."""
    reading, writing = os.pipe()
    process = subprocess.Popen((*command, str(writing)), pass_fds=(writing,), start_new_session=True)
    os.close(writing)
    current, began = "", time.monotonic()
    try:
        for message in _messages(reading):
            if message is None:
                _kill(process)
                break
            if "began" in message:
                current, began = message["began"], time.monotonic()
            elif "ended" in message:
                found.ends.append(message["ended"])
                current = ""
                changed(found)
            else:
                _take(found, message)
    finally:
        os.close(reading)
        how = _finish(process)
    if current:
        _end(found, changed, current, "failed", f"its process {how}", round(time.monotonic() - began, 2))


def _take(found: Found, message: dict[str, Any]) -> None:
    if "environment" in message:
        found.environment = message["environment"]
        return
    row = message["row"]
    samples = row.pop("samples")
    found.rows.append(Row(**row, samples=Samples(**samples) if samples else None))


def _messages(reading: int) -> Iterator[dict[str, Any] | None]:
    """A child's messages until it closes its end; None where it has been silent for too long."""
    rest, deadline = b"", time.monotonic() + _START_SECONDS
    while True:
        ready, _, _ = select.select([reading], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            yield None
            return
        part = os.read(reading, 65536)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "began" in message:
                deadline = time.monotonic() + message["limit_seconds"] + GRACE_SECONDS
            elif "ended" in message:
                deadline = time.monotonic() + _START_SECONDS
            yield message


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _finish(process: subprocess.Popen[bytes]) -> str:
    """Wait a moment, then end the child and everything it started; how it ended, in words."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _kill(process)
    code = process.wait()
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
