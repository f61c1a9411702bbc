"""The app on a real terminal: what libraries print does not reach the screen, and the terminal is restored."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tui.child import NOISES
from tests.tui.conftest import Opener, clean_environment
from tests.tui.terminal import ALTERNATE_SCREEN, CURSOR, MOUSE, PASTE, ROOT, Terminal
from vidqa.errors import UsageError
from vidqa.tui.stdio_redirect import redirect_to_log

READY = "Ask about this video"


def ready(opened: Opener, scene: str = "plain", **options: object) -> Terminal:
    """A scene with the demo video open and planned."""
    terminal = opened(scene, **options)
    terminal.wait_for(READY)
    terminal.wait_for("4.9 GiB planned")
    return terminal


def answering(opened: Opener, **options: object) -> Terminal:
    """A question is being answered until it is stopped."""
    terminal = ready(opened, "slow", **options)
    terminal.ask("what happens?")
    terminal.wait_for("It moves")
    return terminal


def test_a_log_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = tmp_path / "file" / "state" / "tui.log"
    refused = pytest.raises(UsageError, match=r"tui\.log cannot be written: Not a directory\. Set VIDQA_STATE")
    with refused, redirect_to_log(log):
        pass


def test_what_libraries_print_goes_to_the_log_and_not_to_the_screen(opened: Opener, home: Path) -> None:
    terminal = ready(opened, rows=40)
    terminal.ask("what happens?")
    terminal.wait_for("answer in")
    terminal.wait_for(lambda: "+ 45 text" not in terminal.text)  # planned anew
    terminal.rest()
    before, noise = terminal.text, home / "state" / "make-noise"
    noise.touch()
    terminal.wait_for(lambda: not noise.exists())
    log = (home / "state" / "tui.log").read_text(encoding="utf-8")
    assert [text for text in NOISES if text not in log] == []
    terminal.press("f9")  # what was written to the terminal would be on it by now
    for text in NOISES:
        terminal.wait_for(text)
    assert "\\x1b[2J" in terminal.text
    terminal.press_until("escape", lambda: terminal.text == before)
    assert not any(f"{text}\n".encode() in terminal.raw for text in NOISES)
    assert b"\x1b[2J" not in terminal.raw


def test_the_app_takes_the_terminal_over_and_gives_it_back(opened: Opener) -> None:
    terminal = ready(opened)
    assert terminal.is_on(ALTERNATE_SCREEN) and terminal.is_on(MOUSE) and terminal.is_on(PASTE)
    assert not terminal.is_on(CURSOR)
    with pytest.raises(AssertionError):
        terminal.assert_restored()
    terminal.quit()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_also_while_it_answers(opened: Opener, number: signal.Signals, code: int) -> None:
    terminal = answering(opened)
    terminal.send(number)
    assert terminal.wait_exit() == code
    terminal.assert_restored()


def test_a_closed_window_ends_it(opened: Opener) -> None:
    terminal = answering(opened)
    terminal.hang_up()
    assert terminal.process.wait(20) != 0


def test_a_crash_is_one_message_and_the_log_says_why(opened: Opener, home: Path) -> None:
    terminal = ready(opened, "broken")
    terminal.ask("what happens?")
    assert terminal.wait_exit() == 1
    terminal.assert_restored()
    message = " ".join(terminal.after_the_app().split())
    assert "The session crashed and was closed." in message and "Traceback" not in message
    log = (home / "state" / "tui.log").read_text(encoding="utf-8")
    assert "AttributeError" in log and "predicted_peak_bytes" in log and "\x1b" not in log


def test_keys_typed_before_the_screen_is_drawn_are_not_lost(opened: Opener) -> None:
    terminal = ready(opened, rows=60)
    for number in range(1, 4):
        terminal.ask(f"question {number}")
        terminal.wait_for(f"› question {number}")
        terminal.wait_for(lambda: terminal.text.count("It moves right") == number)  # noqa: B023


def test_other_sizes_while_it_answers(opened: Opener) -> None:
    terminal = answering(opened, columns=120, rows=36)
    terminal.resize(60, 20)
    terminal.wait_for(lambda: "It moves" in terminal.text and "╭─ Plan" not in terminal.text)
    assert max(map(len, terminal.text.split("\n"))) <= 60
    terminal.resize(39, 9)
    terminal.wait_for(lambda: terminal.text.strip() == "vidqa needs 40×10")
    terminal.resize(200, 60)
    terminal.wait_for(lambda: "╭─ Plan" in terminal.text and "It moves" in terminal.text)
    assert "vidqa needs" not in terminal.text
    terminal.press_until("escape", "stopped")


@pytest.mark.parametrize("size", [(39, 24), (80, 9), (1, 1)])
def test_a_terminal_that_is_too_small_says_so_and_can_be_left(opened: Opener, size: tuple[int, int]) -> None:
    terminal = opened("plain", columns=size[0], rows=size[1])
    terminal.wait_for(lambda: terminal.text.strip() == "vidqa needs 40×10"[: size[0]])
    terminal.quit()


def without_terminal(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The real command, with pipes."""
    command = [sys.executable, "-m", "vidqa", *words]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def test_without_a_terminal_there_is_help_and_no_app(home: Path) -> None:
    done = without_terminal(home)
    assert done.returncode == 0 and done.stdout.startswith("usage: vidqa") and "\x1b" not in done.stdout
    done = without_terminal(home, "tui")
    assert done.returncode == 2 and done.stdout == ""
    assert "needs a terminal" in done.stderr and "vidqa ask" in done.stderr
