"""Benchmark sections in child processes, whose rows reach the parent at once.

The parent starts a process for each group of sections, and the next group's process while one works, since imports
take long. A section over its time limit is interrupted; if it hangs or breaks the device, its process is killed and
the rest of the group runs in a new one. Children die with the parent. Imports no torch.
"""

import json
import os
import select
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from benchlib.rows import row_from

GRACE_SECONDS = 10.0  # after its limit, until a section's process is killed
_START_SECONDS = 90.0  # for a process to import its libraries

Section = Callable[[Any], Iterator[Any]]
Send = Callable[[dict[str, Any]], None]


class TimeUp(BaseException):
    """A section's time is over. Not an Exception, so that no library handles it."""


class Skipped(Exception):
    """A section cannot run on this machine, for the reason in the message."""


@dataclass(slots=True)
class Results:
    """The rows of all sections, and how each section ended."""

    rows: list[Any] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def outcome(self, *outcomes: str) -> list[str]:
        """Return the sections that ended with one of these outcomes."""
        return [end["section"] for end in self.ends if end["outcome"] in outcomes]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the main thread after this time. Limits nest; the shorter one counts."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, over)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    if outer:
        signal.setitimer(signal.ITIMER_REAL, min(seconds, outer))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        left = max(outer - (time.monotonic() - began), 1e-3) if outer else 0
        signal.setitimer(signal.ITIMER_REAL, left)  # an outer limit that is over is raised there


def run_limited(call: Callable[[], Any], seconds: float) -> str:
    """Call it; return `ok`, `out of memory`, or `stopped` after its time. Other errors are raised."""
    from vidqa.devices.torch_device import is_out_of_memory

    try:
        with time_limit(seconds):
            call()
    except TimeUp:
        return "stopped"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return "out of memory"
    return "ok"


def run_section(name: str, section: Section, bench: Any, limit_seconds: float, send: Send) -> bool:
    """Run one section in this process and send its rows; return whether it finished or was skipped."""
    began, outcome, detail = time.perf_counter(), "ok", ""
    send({"began": name, "limit_seconds": limit_seconds})
    try:
        with time_limit(limit_seconds):
            for row in section(bench):
                send({"row": asdict(row)})
    except Skipped as reason:
        outcome, detail = "skipped", str(reason)
    except TimeUp:
        outcome, detail = "timed out", f"stopped after its {limit_seconds:.0f} s"
    except Exception as error:
        traceback.print_exc()
        outcome, detail = "failed", error_line(error)
    seconds = round(time.perf_counter() - began, 2)
    send({"ended": {"section": name, "outcome": outcome, "detail": detail, "seconds": seconds}})
    return outcome in ("ok", "skipped")


def error_line(error: Exception) -> str:
    """Return an error's type and first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The sections of one process with their limits in seconds, the sum of the limits of later processes, and the
    deadline of all on the monotonic clock."""

    limits: dict[str, float]
    later_seconds: float
    deadline: float

    def share(self, name: str) -> float:
        """Return a section's seconds: its part, by limits, of the time that is left for all remaining sections."""
        names = list(self.limits)
        ahead = sum(self.limits[other] for other in names[names.index(name) :]) + self.later_seconds
        return (self.deadline - time.monotonic()) * self.limits[name] / ahead


def run_child(
    descriptor: int, load: Callable[[], object], begin: Callable[[Send], tuple[Mapping[str, Section], Any]]
) -> int:
    """Run a child: import with `load`, read an Assignment from stdin, call `begin`, and run the sections.

    `begin` returns the sections by name and their shared bench; it is the first to use the device. Messages go to the
    descriptor. Returns 1 if the process cannot go on. The process dies with its parent.
    """
    load()
    line = _read_line()
    if not line:
        return 0  # the parent is gone
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]

    assignment = Assignment(**json.loads(line))
    try:
        sections, bench = begin(send)
    except Exception as error:  # such as no device: another process would fail too
        for name in assignment.limits:
            send({"ended": {"section": name, "outcome": "failed", "detail": error_line(error), "seconds": 0.0}})
        return 1
    for name in assignment.limits:
        if (share := assignment.share(name)) <= 0:
            return 1
        if not run_section(name, sections[name], bench, share, send) and not bench.usable():
            return 1  # the next sections get a new process
    return 0


def _read_line() -> bytes:
    """Read a line of stdin unbuffered: a thread in a buffered read would abort the interpreter's exit."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _die_with_parent() -> None:
    """Kill this process group when stdin closes, which the parent holds open."""
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


class _Child:
    """A child process in a process group; it waits for its assignment."""

    def __init__(self, command: Sequence[str]) -> None:
        self.hung = False
        self._reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                (*command, str(writing)), stdin=subprocess.PIPE, pass_fds=(writing,), start_new_session=True
            )
        finally:
            os.close(writing)

    def begin(self, assignment: Assignment) -> None:
        """Send the assignment, if the process is alive."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(assignment)).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield messages until the child closes its end; kill it if it is silent for too long."""
        rest, deadline = b"", time.monotonic() + _START_SECONDS
        while True:
            ready, _, _ = select.select([self._reading], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self.hung = True
                self.kill()
                return
            part = os.read(self._reading, 65536)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "began" in message:
                    deadline = time.monotonic() + message["limit_seconds"] + GRACE_SECONDS
                elif "ended" in message:
                    deadline = time.monotonic() + _START_SECONDS
                yield message

    def kill(self) -> None:
        """Kill the process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> str:
        """Wait a moment, then kill it; return how it ended."""
        os.close(self._reading)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        self.kill()
        code = self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def run_in_children(
    groups: Sequence[Mapping[str, float]],
    budget_seconds: float,
    command: Sequence[str],
    changed: Callable[[Results], None],
    make_row: Callable[[dict[str, Any]], Any] = row_from,
) -> Results:
    """Run all sections (name: limit in seconds), each group in one process, or in more if a section fails.

    The descriptor for messages is appended to the command. Limits are shares of the budget: time that a section leaves
    is divided among the following ones. `changed` is called after each row and each end.
    """
    runner = _Runner(command, changed, make_row, time.monotonic() + budget_seconds)
    try:
        for place, group in enumerate(groups):
            later = groups[place + 1 :]
            runner.run(dict(group), sum(sum(one.values()) for one in later), bool(later))
    finally:
        runner.close()
    for name in (name for group in groups for name in group):
        if not any(end["section"] == name for end in runner.found.ends):
            runner.end(name, "timed out", f"the {budget_seconds:.0f} s of all sections were over")
    return runner.found


class _Runner:
    """The processes of one run: the working one, and one that waits for the next group."""

    def __init__(
        self, command: Sequence[str], changed: Callable[[Results], None], make_row: Callable[[dict[str, Any]], Any],
        deadline: float,
    ) -> None:  # fmt: skip
        self._command, self._changed, self._make_row, self._deadline = command, changed, make_row, deadline
        self._ready: _Child | None = None
        self._working: _Child | None = None
        self.found = Results()

    def run(self, limits: dict[str, float], later_seconds: float, more: bool) -> None:
        """Run one group until all its sections have ended or the time is over."""
        empty_runs = 0
        while limits and time.monotonic() < self._deadline:
            before = len(self.found.ends)
            self._one(Assignment(limits, later_seconds, self._deadline), more)
            empty_runs = empty_runs + 1 if len(self.found.ends) == before else 0
            if empty_runs == 2:  # the process fails, not the section
                for name in limits:
                    self.end(name, "failed", "its process ended before it began")
            ended = {end["section"] for end in self.found.ends}
            limits = {name: limit for name, limit in limits.items() if name not in ended}

    def _one(self, assignment: Assignment, more: bool) -> None:
        """Run one process to its end; a section in which it died is recorded as failed."""
        self._working, self._ready = self._ready or _Child(self._command), None
        self._working.begin(assignment)
        if more:
            self._ready = _Child(self._command)
        current, began, hung = "", time.monotonic(), False
        try:
            for message in self._working.messages():
                if "began" in message:
                    current, began = message["began"], time.monotonic()
                elif "ended" in message:
                    self.end(**message["ended"])
                    current = ""
                else:
                    self._take(message)
        except BaseException:
            self._working.kill()  # without waiting
            raise
        finally:
            hung, how, self._working = self._working.hung, self._working.close(), None
        if current:
            seconds = round(time.monotonic() - began, 2)
            detail = f"it hung: killed after {seconds:.0f} s" if hung else f"its process {how}"
            self.end(current, "timed out" if hung else "failed", detail, seconds)

    def _take(self, message: dict[str, Any]) -> None:
        if "environment" in message:
            self.found.environment = message["environment"]
        else:
            self.found.rows.append(self._make_row(message["row"]))
            self._changed(self.found)

    def end(self, section: str, outcome: str, detail: str, seconds: float = 0.0) -> None:
        """Record the end of a section."""
        self.found.ends.append({"section": section, "outcome": outcome, "detail": detail, "seconds": seconds})
        self._changed(self.found)

    def close(self) -> None:
        """Kill all processes."""
        for child in (self._working, self._ready):
            if child is not None:
                child.kill()
                child.close()
