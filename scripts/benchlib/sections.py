"""Sections of a benchmark in processes that may fail: what each one finds is sent at once, so nothing is lost.

The parent starts a process for each group of sections, and the next group's while one works, since libraries take
long to import. A section that takes too long is interrupted; one that hangs, or breaks the device, takes its
process down with everything that it started, and a fresh one goes on behind it. When the parent ends, however that
is, its processes end. Imports no torch.
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

GRACE_SECONDS = 10.0  # how much longer than its limit a section may take to give up by itself
_START_SECONDS = 90.0  # for a process to import its libraries

Section = Callable[[Any], Iterator[Any]]
Send = Callable[[dict[str, Any]], None]


class TimeUp(BaseException):
    """A section's time is over. No Exception: a library must not handle it as an error."""


class Skipped(Exception):
    """A section cannot run here; the message says why."""


@dataclass(slots=True)
class Found:
    """What the sections found: their rows, and how each of them ended."""

    rows: list[Any] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def outcome(self, *outcomes: str) -> list[str]:
        """The sections that ended so."""
        return [end["section"] for end in self.ends if end["outcome"] in outcomes]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in this (the main) thread when the time is over. Inside of another limit, the shorter one ends."""

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
        signal.setitimer(signal.ITIMER_REAL, left)  # an outer limit that is over raises in the outer one


def how_it_ends(call: Callable[[], Any], seconds: float) -> str:
    """Run it: `ok`, `out of memory`, or `stopped` after its time. Other errors are raised."""
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


def run_here(name: str, section: Section, bench: Any, limit_seconds: float, send: Send) -> bool:
    """Run one section in this process and send its rows as they come; whether it came to its end or was skipped."""
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
        outcome, detail = "failed", one_line(error)
    seconds = round(time.perf_counter() - began, 2)
    send({"ended": {"section": name, "outcome": outcome, "detail": detail, "seconds": seconds}})
    return outcome in ("ok", "skipped")


def one_line(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is to do: sections with their limits in seconds, how many seconds of limits come after them, and
    when all has to be over on the monotonic clock."""

    limits: dict[str, float]
    later_seconds: float
    deadline: float

    def share(self, name: str) -> float:
        """Seconds for a section: of what is left, its limit's part of all limits that are still to come."""
        names = list(self.limits)
        ahead = sum(self.limits[other] for other in names[names.index(name) :]) + self.later_seconds
        return (self.deadline - time.monotonic()) * self.limits[name] / ahead


def serve(
    descriptor: int, load: Callable[[], object], begin: Callable[[Send], tuple[Mapping[str, Section], Any]]
) -> int:
    """A child's whole life: import with `load`, wait for an Order on stdin, `begin`, and run the sections.

    `begin` gives the sections by name and what they share; the device is first touched there. Everything is sent to
    the descriptor. Returns 1 where the process is not fit to go on. The process ends when its parent does.
    """
    load()
    line = _first_line()
    if not line:
        return 0  # the parent is gone
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]

    order = Order(**json.loads(line))
    try:
        sections, bench = begin(send)
    except Exception as error:  # no device, say: another process would find none either
        for name in order.limits:
            send({"ended": {"section": name, "outcome": "failed", "detail": one_line(error), "seconds": 0.0}})
        return 1
    for name in order.limits:
        if (share := order.share(name)) <= 0:
            return 1
        if not run_here(name, sections[name], bench, share, send) and not bench.usable():
            return 1  # the next ones get a process whose device and memory nothing has touched
    return 0


def _first_line() -> bytes:
    """Of stdin, unbuffered: a thread that waits in a buffered read would abort the interpreter's end."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: when it ends, so does this process with all that it started."""
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


class _Child:
    """A process of the benchmark with its own process group; it waits for its order."""

    def __init__(self, command: Sequence[str]) -> None:
        self.hung = False
        self._reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                (*command, str(writing)), stdin=subprocess.PIPE, pass_fds=(writing,), start_new_session=True
            )
        finally:
            os.close(writing)

    def begin(self, order: Order) -> None:
        """Give it its order; nothing where it has died already."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it tells until it closes its end; it is killed when it has been silent for too long."""
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
        """End it and everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> str:
        """Wait a moment, then end it; how it ended, in words."""
        os.close(self._reading)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        self.kill()
        code = self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def run_in_children(
    groups: Sequence[Mapping[str, float]],
    budget_seconds: float,
    command: Sequence[str],
    changed: Callable[[Found], None],
    make_row: Callable[[dict[str, Any]], Any] = row_from,
) -> Found:
    """Run all sections (name: limit in seconds), each group in its own process, and in more where one fails.

    The descriptor to send on is appended to the command. The limits are shares of the budget: what a section
    leaves is divided among those that follow. `changed` is called with each row and each end.
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
    """The processes of one run: the one that works, and one that is ready for the next group."""

    def __init__(
        self, command: Sequence[str], changed: Callable[[Found], None], make_row: Callable[[dict[str, Any]], Any],
        deadline: float,
    ) -> None:  # fmt: skip
        self._command, self._changed, self._make_row, self._deadline = command, changed, make_row, deadline
        self._ready: _Child | None = None
        self._working: _Child | None = None
        self.found = Found()

    def run(self, limits: dict[str, float], later_seconds: float, more: bool) -> None:
        """One group, until all its sections have ended or the time is over."""
        stillborn = 0
        while limits and time.monotonic() < self._deadline:
            before = len(self.found.ends)
            self._one(Order(limits, later_seconds, self._deadline), more)
            stillborn = stillborn + 1 if len(self.found.ends) == before else 0
            if stillborn == 2:  # it is not the section that fails
                for name in limits:
                    self.end(name, "failed", "its process ended before it began")
            ended = {end["section"] for end in self.found.ends}
            limits = {name: limit for name, limit in limits.items() if name not in ended}

    def _one(self, order: Order, more: bool) -> None:
        """One process to its end; the section that it died in is recorded as failed."""
        self._working, self._ready = self._ready or _Child(self._command), None
        self._working.begin(order)
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
            self._working.kill()  # the run is cut: nothing is waited for
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
        """Record how a section ended."""
        self.found.ends.append({"section": section, "outcome": outcome, "detail": detail, "seconds": seconds})
        self._changed(self.found)

    def close(self) -> None:
        """End every process that is left."""
        for child in (self._working, self._ready):
            if child is not None:
                child.kill()
                child.close()
