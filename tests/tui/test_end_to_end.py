"""The real command in a real terminal, by what the screen shows alone: from nothing to answers, and the next day."""

import sys

from tests.tui.conftest import Opener
from tests.tui.terminal import Terminal

VIDQA = [sys.executable, "-m", "vidqa"]


def ask(terminal: Terminal, question: str) -> None:
    """Write a question and press Enter."""
    terminal.write(question)
    terminal.press("enter")
    terminal.wait_for(f"› {question}")


def quit_with(terminal: Terminal) -> None:
    """Leave by the key in the footer."""
    terminal.press("ctrl+q")
    assert terminal.wait_exit() == 0
    terminal.assert_restored()


def test_from_an_empty_machine_to_an_answer_and_back_to_it(opened: Opener) -> None:
    terminal = opened(command=VIDQA, columns=120, rows=60)
    terminal.wait_for("Which model should answer?")
    terminal.wait_for("shapes only")
    terminal.press("enter")  # the demo is marked: it is here, and fits
    terminal.wait_for("path of a video")
    terminal.write("assets/demo.mp4")
    terminal.wait_for("assets/demo.mp4")
    terminal.press("enter")
    terminal.wait_for("Ask about this video")
    ask(terminal, "what is this?")
    terminal.press("escape")  # the model is being loaded: nothing can have been answered yet
    terminal.wait_for("stopped")
    ask(terminal, "what happens?")
    terminal.wait_for("a red circle moves right.", 60)
    terminal.wait_for("visual tokens ·")
    ask(terminal, "what color is it?")
    terminal.wait_for(lambda: "red." in terminal.text.partition("what color is it?")[2])
    terminal.wait_for(lambda: terminal.text.count("visual tokens ·") == 2)
    quit_with(terminal)

    terminal = opened(command=[*VIDQA, "tui", "--model", "demo"], columns=120, rows=60)
    terminal.wait_for("Open a video: press ctrl+o")
    terminal.press("f4")
    terminal.wait_for("3 questions")
    terminal.write("circle")  # the search looks into answers
    terminal.wait_for(lambda: "circle" in terminal.text and "3 questions" in terminal.text)
    terminal.press("enter")
    terminal.wait_for("a red circle moves right.")
    terminal.wait_for("› what color is it?")
    terminal.wait_for("Stopped")
    quit_with(terminal)
