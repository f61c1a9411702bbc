"""The first minutes of a new user, with the real command in a real terminal.

README's first command, a real clip that the demo model cannot know, a download without a network, the session at three
sizes, and captions of a folder. The steps share one home folder, which nothing was measured or kept in before.
"""

import json
import re
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.batch.commands import CLIPS, folder_of, journal_lines, outputs_of
from tests.conftest import ROOT
from tests.docs.test_pages import command_lines
from tests.tui.conftest import clean_environment
from tests.tui.terminal import Terminal
from vidqa.cli.console import ExitCode
from vidqa.messages import out_of_domain_text
from vidqa.tui.bindings import ACTIONS, LOCAL_ACTIONS

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = command_lines(README)[0]
PULL = next(line for line in command_lines(README) if line.startswith("vidqa pull "))
VIDEO, FIRST_QUESTION = shlex.split(FIRST)[2:4]
ANSWER = "a red circle moves right."
QUESTION, COLOR = "what color is it?", "red."  # another one, so that the history has README's from the command line
COMMAND_SECONDS = 180.0  # of a command that starts libraries and measures the machine, on a busy one
OFFLINE_SECONDS = 15.0  # the limit of 4 s, and the start of a process
SHOWN_KEYS = "|".join(sorted({action.description for action in (*ACTIONS, *LOCAL_ACTIONS) if action.show}))
FOOTER = re.compile(rf"(?:\S+ (?:{SHOWN_KEYS}) )+\^q Quit f1 Help +▏\^p palette")


@dataclass(frozen=True)
class Printed:
    """What a command left on the terminal, and its exit code."""

    code: int
    text: str

    @property
    def words(self) -> str:
        """The text as one line, wherever the terminal breaks it."""
        return " ".join(self.text.split())


Typed = Callable[..., Printed]


@pytest.fixture(scope="module")
def unreachable() -> Iterator[str]:
    """An address of this machine that refuses every connection."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, unreachable: str) -> dict[str, str]:
    """The environment of a new user whose network is down, which no variable says."""
    home = tmp_path_factory.mktemp("home")
    return clean_environment(home) | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": unreachable}


@pytest.fixture(scope="module")
def typed(environment: dict[str, str]) -> Typed:
    """Runs a command line in a terminal to its end."""

    def run(line: str, columns: int, rows: int, seconds: float = COMMAND_SECONDS) -> Printed:
        with terminal_of(line, environment, columns, rows) as terminal:
            return Printed(terminal.wait_exit(seconds), terminal.text.strip())

    return run


def terminal_of(line: str, environment: dict[str, str], columns: int, rows: int) -> Terminal:
    """Start a command line of `vidqa` in a terminal."""
    name, *words = shlex.split(line)
    assert name == "vidqa"
    return Terminal([sys.executable, "-m", name, *words], columns=columns, rows=rows, environment=environment)


@pytest.fixture(scope="module")
def first(typed: Typed) -> Printed:
    """What README's first command printed, on a machine that was never measured."""
    return typed(FIRST, 120, 36)


# The command line


def label(line: str) -> str:
    """Return a line up to its first figure or colon: what it is about."""
    return re.split(r"[\d:]", line)[0]


def test_readmes_first_command_prints_what_readme_shows(first: Printed) -> None:
    shown = README.partition(f"\n$ {FIRST}\n")[2].partition("\n```")[0].splitlines()
    labels = [label(line) for line in shown]
    assert ANSWER in shown and len(labels) > 4 and all(labels)
    assert first.code == ExitCode.OK, first.text
    lines = first.text.splitlines()
    assert [one for line in lines for one in labels if line.startswith(one)] == labels, first.text
    fixed = [line for line in shown if line.startswith(("video:", "plan:"))]  # no figure of the machine is in them
    assert len(fixed) == 2 and [line for line in fixed if line not in lines] == [], first.text
    assert not re.search("warning|Traceback|█|░", first.text), first.text


def test_a_real_clip_has_a_warning_before_and_after_the_answer(typed: Typed, real_clips: Path) -> None:
    asked = typed(f"vidqa ask {shlex.quote(str(real_clips / 'bikes.mp4'))} 'how many buses?' --model demo", 80, 24)
    assert asked.code == ExitCode.OK
    _, between, after = asked.words.split(f"warning: {out_of_domain_text('drawn shapes')}")
    advice = r" `vidqa pull [\w.-]+` \([\d.]+ GB to download\) fits here: \d+ frames of \d+×\d+\. \S"
    assert re.match(advice, between), f"a model that fits, and an answer: {between}"
    assert after.startswith(" answer in "), after
    assert re.search(r"`vidqa pull [\w.-]+`", asked.text), f"the command is on one line\n{asked.text}"


def test_a_download_without_a_network_is_one_sentence(typed: Typed, unreachable: str) -> None:
    pulled = typed(PULL, 80, 24, OFFLINE_SECONDS)
    assert pulled.code == ExitCode.MODEL_MISSING
    begun, error = pulled.words.split(" vidqa: ")
    assert re.fullmatch(r"fetching \S+; Ctrl-C stops, and a later call goes on from there", begun)
    name = begun.split()[1].rstrip(";")
    said = f"Offline: {unreachable} cannot be reached, so {name} is not fetched."
    assert error == f"{said} Connect to the internet, then type `{PULL}`."


# The session


def wait_for_footer(terminal: Terminal) -> None:
    """Wait until the last line has whole keys, Quit, Help and the palette, and nothing else."""
    terminal.wait_for(lambda: FOOTER.fullmatch(terminal.screen.display[-1].strip()))


def open_video(terminal: Terminal) -> None:
    """Choose the demo model and type the path of README's video."""
    terminal.wait_for("Which model should answer?", COMMAND_SECONDS)
    wait_for_footer(terminal)
    terminal.press("home")  # the demo is the first; the best model that fits is selected
    terminal.press_until("enter", "path of a video")
    terminal.write(VIDEO)
    terminal.wait_for(VIDEO)
    terminal.press_until("enter", "Ask about this video")
    wait_for_footer(terminal)


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(("columns", "rows"), [(120, 36), (80, 24), (60, 20)])
def test_the_session_goes_from_no_model_to_a_true_answer(columns: int, rows: int, environment: dict[str, str]) -> None:
    with terminal_of("vidqa", environment, columns, rows) as terminal:
        open_video(terminal)
        terminal.press_until("f4", "Earlier conversations")
        terminal.write(FIRST_QUESTION.split()[-1])  # this part of it is in no other text
        terminal.wait_for(FIRST_QUESTION)  # it was asked on the command line
        terminal.press_until("escape", lambda: "Earlier conversations" not in terminal.text)
        terminal.press(*QUESTION, "enter")
        terminal.wait_for(f"› {QUESTION}")
        terminal.wait_for(lambda: COLOR in terminal.text.partition(f"› {QUESTION}")[2].split(), COMMAND_SECONDS)
        terminal.wait_for("▸ answer in ")
        wait_for_footer(terminal)
        terminal.press_until("f1", "Keys here")
        terminal.wait_for("Ask this question")
        assert "prompt.ask" not in terminal.text
        terminal.press_until("f1", lambda: f"› {QUESTION}" in terminal.text and "Keys here" not in terminal.text)
        wait_for_footer(terminal)
        terminal.quit()


# Captions


def planned_rows(table: str) -> dict[tuple[str, str, str], tuple[int, str]]:
    """Return clips and groups of each row in a dry run's table, by frames, size and weights."""
    lines = [re.split(" {2,}", line.strip()) for line in table.splitlines()]
    head = lines.index(["clips", "captions", "frames", "size", "weights", "at once", "tokens", "time"])
    rows = [line for line in lines[head + 1 :] if len(line) == len(lines[head])]
    return {(frames, size, weights): (int(clips), groups) for clips, _, frames, size, weights, groups, *_ in rows}


def captioned_rows(folder: Path) -> dict[tuple[str, str, str], tuple[int, str]]:
    """Return the same of what the journal says that ran."""
    values = [json.loads(line) for line in journal_lines(folder)]
    plans = [value["record"]["plan"] for value in values if "record" in value]
    clips: dict[tuple[str, str, str], Counter[int]] = {}
    for plan in plans:
        key = f"{plan['frames']}", f"{plan['width']}×{plan['height']}", plan["weights"]
        clips.setdefault(key, Counter())[plan["batch"]] += 1
    return {
        key: (sizes.total(), " + ".join(f"{count // size}×{size}" for size, count in sorted(sizes.items())[::-1]))
        for key, sizes in clips.items()
    }


def test_a_dry_run_shows_the_clips_frames_and_groups_of_the_run(typed: Typed, tmp_path: Path) -> None:
    count = len(CLIPS) + 2
    folder = folder_of(tmp_path / "clips", count)
    caption = f"vidqa caption {shlex.quote(str(folder))} --model demo"
    dry = typed(f"{caption} --dry-run", 100, 30)
    assert dry.code == ExitCode.OK and f"{count} clips: {count} to caption, 0 cannot be captioned" in dry.text
    assert outputs_of(folder) == {}, "a dry run writes nothing"
    planned = planned_rows(dry.text)
    assert len(planned) > 1, "clips of two lengths have two plans"

    done = typed(caption, 100, 30)
    assert done.code == ExitCode.OK and f"{count} captioned, 0 failed" in done.text, done.text
    assert captioned_rows(folder) == planned, dry.text
    captions = outputs_of(folder)
    assert len(captions) == count
    demo = CLIPS.index(ROOT / VIDEO)
    assert captions[f"clip-{demo:03}.txt"].decode().strip() == ANSWER

    again = typed(f"{caption} --dry-run", 100, 30)
    assert f"{count} clips: 0 to caption, 0 cannot be captioned, {count} done" in again.text
