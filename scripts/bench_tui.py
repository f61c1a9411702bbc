#!/usr/bin/env python3
"""Latency of the interactive session, measured through a pty.

From the start to the first full screen; from a key to the screen while idle, while a scripted session emits 2,000
events a second, beside 20,000 words that are scrolled, and while the demo model decodes; from Stop to "stopping" and to
the end; from a plan option's key to the new plan. Results go to benchmarks/results/.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from benchlib.rows import RESULTS, ROOT, Bar, Row, Samples, report
from tests.tui.child import LONG, LONG_END, MODEL
from tests.tui.terminal import Terminal

BARS = {
    "start: first full screen": Bar(0.6, "<="),
    "keys: idle, p99": Bar(0.15, "<="),
    "keys: 2,000 events/s, p99": Bar(0.15, "<="),
    "keys: 2,000 events/s and 20,000 words that are scrolled, p99": Bar(0.15, "<="),
    "keys: the demo model decodes, p99": Bar(0.15, "<="),
    "stop: ctrl+c to 'stopping', 2,000 events/s, p99": Bar(0.2, "<="),
    "stop: ctrl+c to 'stopping', the demo model decodes, p99": Bar(0.2, "<="),
    "stop: esc to 'stopping', 2,000 events/s, p99": Bar(0.2, "<="),
    "stop: esc to 'stopping', the demo model decodes, p99": Bar(0.2, "<="),
    "plan: the planner's answer, p99": Bar(0.05, "<="),
}
_LETTERS = "бгджзийлпфцчшщъыьэюяҖҗҘҙҚқҢңҮү"  # letters that are nowhere else on the screen
_LETTER_SECONDS = (0.03, 0.11)  # between a letter on the screen and the next key
_COLUMNS, _ROWS = 120, 36
_WHEEL_UP, _WHEEL_DOWN = "\x1b[<64;20;18M", "\x1b[<65;20;18M"


def percentile(values: Sequence[float], part: int) -> float:
    """Return a percentile by nearest rank."""
    ordered = sorted(values)
    return ordered[-(-part * len(ordered) // 100) - 1]


def rows_of(section: str, name: str, seconds: Sequence[float], note: str = "") -> list[Row]:
    """Return median and 99th percentile as rows."""
    samples = Samples.of(seconds)
    return [
        Row(section, f"{name}, p50", samples.p50, "s", "median", samples, note),
        Row(section, f"{name}, p99", percentile(seconds, 99), "s", "nearest rank", samples, note),
    ]


class Home:
    """The environments of new users."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def environment(self) -> dict[str, str]:
        """Return the environment of another new user; the number of threads is the app's choice."""
        self._count += 1
        home = self._folder / str(self._count)
        home.mkdir()
        return {
            "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8",
            "TERM": "xterm-256color", "COLORTERM": "truecolor", "VIDQA_STATE": str(home / "state"),
            "VIDQA_CONFIG": str(home / "config.toml"), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1",
            "ESCDELAY": "50",  # as the real command sets it
        }  # fmt: skip

    def open(self, *words: str, columns: int = _COLUMNS) -> Terminal:
        """Open a command in a terminal."""
        command = [sys.executable, "-m", *words]
        return Terminal(command, columns=columns, rows=_ROWS, environment=self.environment(), folder=ROOT)


def seconds_until(terminal: Terminal, wanted: bytes, start: float, place: int, limit: float = 20.0) -> float:
    """Return the seconds from `start` until these bytes come at or after offset `place` of the output."""
    while wanted not in terminal.raw[max(place - len(wanted), 0) :]:
        place = len(terminal.raw)
        terminal.take(0.2)
        if time.monotonic() - start > limit or terminal.process.poll() is not None:
            terminal.read(0)
            raise RuntimeError(f"{wanted!r} never came\n{terminal.text}")
    return time.monotonic() - start


def idle_for(terminal: Terminal, seconds: float) -> None:
    """Receive output for some seconds."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        terminal.take(left)


def start_rows(home: Home, times: int) -> Iterator[Row]:
    """Measure the time from the process's start to the first full screen, with files in the cache."""
    seconds = []
    for number in range(times + 1):
        with home.open("vidqa", "tui", "--model", "demo") as terminal:
            taken = seconds_until(terminal, b"palette", terminal.begun, 0)
            maps = Path(f"/proc/{terminal.process.pid}/maps").read_text(encoding="utf-8")
            if "libtorch" in maps:
                raise RuntimeError("torch was loaded before the first screen")
            if number:  # the first one fills the cache
                seconds.append(taken)
    samples = Samples.of(seconds)
    yield Row("start", "first full screen", samples.p50, "s", "median", samples, "torch is not loaded by then")


def keys_of(terminal: Terminal, count: int, *, scrolled: bool = False) -> list[float]:
    """Type letters; return the seconds from each key to its letter in the output."""
    chance, seconds = random.Random(0), []
    for number in range(count):
        place = number % len(_LETTERS)
        if place == 0 and number:
            terminal.press("ctrl+u")
            idle_for(terminal, 2.0)  # Textual does it after keys that come at once
        if scrolled:
            terminal.write(chance.choice((_WHEEL_UP, _WHEEL_UP, _WHEEL_DOWN)))
        at, start = len(terminal.raw), time.monotonic()
        terminal.write(_LETTERS[place])
        seconds.append(seconds_until(terminal, _LETTERS[place].encode(), start, at))
        idle_for(terminal, chance.uniform(*_LETTER_SECONDS))
    terminal.press("ctrl+u")
    idle_for(terminal, 0.3)
    return seconds


def answering_keys(terminal: Terminal, count: int, *, scrolled: bool = False) -> list[float]:
    """Do the same during an answer. Raises RuntimeError if the answer ended before the keys did."""
    seconds = keys_of(terminal, count, scrolled=scrolled)
    terminal.press("ctrl+c")
    idle_for(terminal, 3.0)
    terminal.press("ctrl+c")  # shows the hint only if there is nothing to stop and the prompt is empty
    terminal.wait_for("Press Ctrl-C again")
    if bytes(terminal.raw).count(b"Press Ctrl-C") > 1:
        raise RuntimeError("nothing was being answered while keys were measured")
    idle_for(terminal, 2.5)
    return seconds


def begin(terminal: Terminal, question: str, wanted: bytes) -> None:
    """Ask, and wait for some bytes of the answer."""
    at, start = len(terminal.raw), time.monotonic()
    terminal.write(question)
    terminal.press("enter")
    seconds_until(terminal, wanted, start, at, 120)


def stops_of(terminal: Terminal, key: str, wanted: bytes, count: int) -> tuple[list[float], list[float]]:
    """Ask and stop; return the seconds to "stopping" and to the end."""
    shown, done = [], []
    for number in range(count):
        begin(terminal, f"once more {number}", wanted)
        idle_for(terminal, 0.5 + 0.037 * number)
        at, start = len(terminal.raw), time.monotonic()
        terminal.press(key)
        shown.append(seconds_until(terminal, b"stopp", start, at))  # or "stopped", if the end is quick
        done.append(seconds_until(terminal, b"stopped", start, at))
        idle_for(terminal, 0.5)
        terminal.press("ctrl+n")  # a conversation that grows would not fit at some point
        idle_for(terminal, 0.5)
    return shown, done


def loaded_rows(home: Home, scene: str, name: str, wanted: bytes, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure keys and stops while a session answers."""
    with home.open("tests.tui.child", scene) as terminal:
        seconds_until(terminal, b"Ask about this video", terminal.begun, 0)
        idle_for(terminal, 1.0)
        if scene == "busy":
            yield from rows_of("keys", "idle", keys_of(terminal, arguments.keys))
        begin(terminal, "go on", wanted)
        idle_for(terminal, 1.0)
        yield from rows_of("keys", name, answering_keys(terminal, arguments.keys))
        terminal.press("ctrl+n")
        idle_for(terminal, 0.5)
        for key in ("ctrl+c", "escape"):
            shown, done = stops_of(terminal, key, wanted, arguments.stops)
            short = key.replace("escape", "esc")
            note = "a terminal's Esc waits 0.05 s for the rest of a key's code" if key == "escape" else ""
            yield from rows_of("stop", f"{short} to 'stopping', {name}", shown, note)
            yield from rows_of("stop", f"{short} to the end, {name}", done)
    with home.open("tests.tui.child", scene) as terminal:
        if scene == "busy":
            yield from scrolled_rows(terminal, arguments)


def scrolled_rows(terminal: Terminal, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure keys beside a long answer that is scrolled."""
    seconds_until(terminal, b"Ask about this video", terminal.begun, 0)
    begin(terminal, LONG, LONG_END.encode())
    idle_for(terminal, 5.0)  # until the words are drawn too
    name = "2,000 events/s and 20,000 words that are scrolled"
    yield from rows_of("keys", name, answering_keys(terminal, arguments.keys, scrolled=True))


PLANNING = """
import sys, time
from tests.tui.scripted import CARD
from vidqa.config import EngineConfig
from vidqa.planner.model_choice import forecast
from vidqa.planner.problem import planning_problems
from vidqa.models.registry import find_checkpoints
from vidqa.tui.screens.model_chooser import typical_video
from vidqa.tui.plan_overrides import PLAN_OPTIONS, PlanOverrides, interactive_config, option_choices
from vidqa.types import Request
config = interactive_config(EngineConfig(model=sys.argv[1]), 2)
video, checkpoints = typical_video(), find_checkpoints(sys.argv[1], local=False)
def plan(overrides):
    begun = time.perf_counter()
    request = overrides.request(Request(video.path, "what happens?"), "what happens?")
    found = forecast(planning_problems(checkpoints, video, request, overrides.config(config), CARD))
    return found, time.perf_counter() - begun
first, _ = plan(PlanOverrides())
for name, choices in option_choices(first.problem).items():
    for choice in choices:
        print(plan(PlanOverrides(**{name: choice}))[1])
assert "torch" not in sys.modules
"""


def plan_rows(home: Home, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure the planner at every value of every option, then the time from an option's key to the new plan."""
    words = [sys.executable, "-c", PLANNING, "Qwen/Qwen2-VL-7B-Instruct"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=home.environment())
    note = "Qwen2-VL-7B, a minute of 720p, 8 GB card; torch is not loaded"
    yield from rows_of("plan", "the planner's answer", [float(line) for line in done.stdout.split()], note)
    with home.open("tests.tui.child", "busy", columns=90) as terminal:
        terminal.wait_for("Ask about this video")
        idle_for(terminal, 1.0)
        terminal.press("f3")
        terminal.wait_for("frames of")
        seconds = []
        for number in range(2 * arguments.stops):
            before, start = planned(terminal), time.monotonic()
            terminal.press("right" if number % 2 else "left")
            while planned(terminal) == before:
                terminal.read()
            seconds.append(time.monotonic() - start)
            idle_for(terminal, 0.2)
        yield from rows_of("plan", "an option's key to the plan on the screen", seconds, f"{MODEL}, a scripted card")


def planned(terminal: Terminal) -> str:
    """Return the plan's first line."""
    return next((line for line in terminal.text.split("\n") if "frames of" in line), "")


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Home(Path(temporary))
        yield from start_rows(home, arguments.starts)
        yield from plan_rows(home, arguments)
        yield from loaded_rows(home, "busy", "2,000 events/s", b"token ", arguments)
        yield from loaded_rows(home, "demo", "the demo model decodes", b"circle", arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--keys", type=int, default=200, help="keys per situation")
    parser.add_argument("--stops", type=int, default=10, help="stops per situation and key")
    parser.add_argument("--output", type=Path, default=RESULTS / "tui-cpu.json")
    arguments = parser.parse_args()
    return report("tui", measure(arguments), BARS, arguments.output)


if __name__ == "__main__":
    raise SystemExit(main())
