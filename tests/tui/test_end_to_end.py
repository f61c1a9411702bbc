"""The real command in a real terminal: from an empty machine to answers, and again."""

import sys

from tests.tui.conftest import Opener
from tests.tui.terminal import Terminal

VIDQA = [sys.executable, "-m", "vidqa"]


def ask(terminal: Terminal, question: str) -> None:
    """Ask, and wait until the question is in the conversation."""
    terminal.ask(question)
    terminal.wait_for(f"› {question}")


def test_from_an_empty_machine_to_an_answer_and_back_to_it(opened: Opener) -> None:
    terminal = opened(command=VIDQA, columns=120, rows=60)
    terminal.wait_for("Which model should answer?")
    terminal.wait_for("shapes only")
    terminal.press("home")  # the demo is the first; the best model that fits is selected
    terminal.press_until("enter", "path of a video")
    terminal.write("assets/demo.mp4")
    terminal.wait_for("assets/demo.mp4")
    terminal.press_until("enter", "Ask about this video")
    ask(terminal, "what is this?")
    terminal.press_until("escape", "stopped")  # the model is being loaded: nothing can have been answered yet
    ask(terminal, "what happens?")
    terminal.wait_for("a red circle moves right.", 60)
    terminal.wait_for("▸ answer in")
    ask(terminal, "what color is it?")
    terminal.wait_for(lambda: "red." in terminal.text.partition("what color is it?")[2])
    terminal.wait_for(lambda: terminal.text.count("▸ answer in") == 2)
    terminal.quit()
    assert "leaked" not in terminal.after_the_app(), "nothing of torch is reported on the terminal"

    terminal = opened(command=[*VIDQA, "tui", "--model", "demo"], columns=120, rows=60)
    terminal.wait_for("Open a video: press ctrl+o")
    terminal.press_until("f4", "3 questions")
    terminal.write("circle")  # the search looks into answers
    terminal.wait_for(lambda: "circle" in terminal.text and "3 questions" in terminal.text)
    terminal.press_until("enter", "a red circle moves right.")
    terminal.wait_for("› what color is it?")
    terminal.wait_for("Stopped")
    terminal.quit()
