"""Untrusted text (answers, notes, errors, file names, pasted text): which bytes reach the terminal.

All bytes that the app sends are checked: besides text, only Textual's own control sequences may be there.
"""

import asyncio
import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest

from tests.tui.conftest import Opener
from tests.tui.scripted import DEMO, AppHarness, says, screen_text, until
from tests.tui.terminal import Terminal
from vidqa.tui.widgets.answer_text import AnswerSection
from vidqa.tui.widgets.turn_view import TurnView
from vidqa.utils.safe_text import safe_line

CLIPBOARD = "\x1b]52;c;cHduZWQ=\x07"
HOSTILE = f"one{CLIPBOARD}two\x1b[2Jthree\x1b[31mfour\u202efive\x9b2Jsix\x9d52;c;eA==\x9cseven"
MARKUP = "[red]x[/] [@click=app.quit]x[/] [/nothing]"
NAME = f"{CLIPBOARD}\x1b[2J\x1b[31m\u202e\x9b[red]x[@click=app.quit]y.mp4"
LINKS = (
    "[run](javascript:quit) [page](http://example.org/) [file](file:///etc/passwd) ![look](http://example.org/x.png)"
)
# Colours, moves, modes, queries and the shape of the pointer.
_DRAWN = re.compile(r"\x1b(?:\[(?:[\d;]*[mH]|\?[\d;]+[hl]|\?\d+\$p|>\d+u|<u)|\]22;[a-z-]*\x07)")


def assert_tame(terminal: Terminal) -> None:
    """Quit, and assert that nothing but text and drawing was sent."""
    if terminal.process.poll() is None:
        terminal.press("ctrl+q")
        assert terminal.wait_exit() == 0
    sent = bytes(terminal.raw).decode()
    assert "\x1b[31m" not in sent
    rest = _DRAWN.sub("", sent)
    bad = {c for c in rest if c not in "\r\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert not bad, [rest[max(place - 30, 0) : place + 30] for place in (rest.index(c) for c in bad)]


def prepared(home: Path, *, pieces: tuple[str, ...] = ("fine",), note: str = "fine", error: str = "") -> None:
    """Write what the hostile scene answers."""
    (home / "state").mkdir(parents=True)
    answer = {"pieces": pieces, "note": note, "error": error}
    (home / "state" / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def ready(opened: Opener, scene: str = "hostile", columns: int = 200) -> Terminal:
    """A wide terminal with a video open."""
    terminal = opened(scene, columns=columns, rows=50)
    terminal.wait_for("Ask about this video")
    return terminal


def answered(opened: Opener, scene: str = "hostile", columns: int = 200) -> Terminal:
    """A terminal in which a question was answered."""
    terminal = ready(opened, scene, columns)
    terminal.ask("what happens?")
    terminal.wait_for("answer in")
    return terminal


def test_the_test_can_fail(opened: Opener) -> None:
    for text in (HOSTILE, "\x1b[31m", "\x9b", "\u202e", "\x1b]8;;http://example.org/\x1b\\x"):
        terminal = opened(command=["printf", "%s", text])
        terminal.wait_exit()
        with pytest.raises(AssertionError):
            assert_tame(terminal)


@pytest.mark.parametrize("pieces", [tuple(HOSTILE), (HOSTILE,)], ids=["piecewise", "whole"])
def test_an_answer_and_a_note(opened: Opener, home: Path, pieces: tuple[str, ...]) -> None:
    prepared(home, pieces=(*pieces, "\n\n", MARKUP), note=f"{HOSTILE} {MARKUP}")
    terminal = answered(opened)
    shown = "".join(line.strip(" │╭╰─╮╯") + " " for line in terminal.text.split("\n"))
    for text in (r"\x1b]52;c;cHduZWQ=\x07two\x1b[2Jthree", r"four\u202efive\x9b2Jsix\x9d52;c;eA==\x9cseven"):
        assert shown.count(text) >= 1
    assert terminal.text.count("[red]x[/] [@click=app.quit]x[/] [/nothing]") == 2  # in the answer and in the note
    terminal.press_until("f10", "frame 1 of 8")
    assert_tame(terminal)


def test_an_error_in_the_transcript(opened: Opener, home: Path) -> None:
    prepared(home, error=f"{HOSTILE} {MARKUP}")
    terminal = ready(opened)
    terminal.ask("what happens?")
    terminal.wait_for(lambda: terminal.text.count("[@click=app.quit]x[/]") >= 2)  # what and remedy
    assert_tame(terminal)


def test_an_answer_cut_anywhere_while_it_streams() -> None:
    text = HOSTILE + MARKUP

    async def play() -> None:
        app = AppHarness(says("fine")).app()
        async with app.run_test(size=(200, 50)) as pilot:
            await until(pilot, lambda: "Ask about this video" in screen_text(app))
            for place in range(1, len(text)):
                turn = TurnView("what?")
                await app.screen.query_one("#transcript").mount(turn)
                await turn.add(text[:place])
                await turn.add(text[place:])
                section = turn.query_one(AnswerSection)
                assert section._stream is not None
                await section._stream.stop()
                drawn = section.source
                assert drawn == safe_line(text)
                await turn.remove()

    asyncio.run(play())


def test_links_lead_nowhere(opened: Opener, home: Path) -> None:
    prepared(home, pieces=(LINKS,))
    terminal = answered(opened)
    shown = "[run](javascript:quit) page [file](file:///etc/passwd) 🖼"
    terminal.wait_for(shown)
    row = next(number for number, line in enumerate(terminal.text.split("\n"), 1) if shown in line)
    line = terminal.text.split("\n")[row - 1]
    for word in ("run", "page", "file", "look"):
        column = line.index(word) + 2
        terminal.write(f"\x1b[<0;{column};{row}M\x1b[<0;{column};{row}m")
    terminal.press_until("f1", "Keys everywhere")  # comes after the clicks
    assert not (home / "opened").exists()
    assert_tame(terminal)


def test_a_file_name_everywhere(opened: Opener, home: Path) -> None:
    prepared(home, pieces=("It moves.",))
    folder = home / "clips"
    folder.mkdir()
    clip, no_video = folder / NAME, folder / f"broken {NAME}"
    shutil.copy(DEMO, clip)
    no_video.write_bytes(b"no video")
    shown = safe_line(NAME)
    terminal = answered(opened, f"hostile@{clip}", columns=240)
    assert shown in terminal.text.split("\n")[0]
    terminal.press_until("f4", "Earlier conversations")
    terminal.wait_for(lambda: terminal.text.count(shown) == 2)
    terminal.press_until("escape", lambda: "Earlier conversations" not in terminal.text)
    terminal.press_until("ctrl+o", "Recent")
    terminal.wait_for(lambda: shown[:40] in terminal.text.partition("Recent")[2])
    terminal.paste(f"{folder}/nothing {MARKUP}.mp4")
    terminal.wait_for("nothing [red]")
    terminal.press_until("enter", "there is no file")
    terminal.press_until("ctrl+u", "path of a video")
    terminal.paste(str(folder))
    terminal.press_until("enter", "broken ")
    terminal.press("down", "enter")
    assert_tame(terminal)


def test_a_file_that_is_no_video(opened: Opener, home: Path) -> None:
    home.mkdir()
    clip = home / NAME
    clip.write_bytes(b"no video")
    terminal = opened(f"plain@{clip}", columns=200, rows=40)
    terminal.wait_for("This video cannot be opened")
    terminal.wait_for("[red]x")
    assert_tame(terminal)


def test_what_is_pasted_and_what_was_logged(opened: Opener, home: Path) -> None:
    terminal = ready(opened, "plain")
    terminal.paste(f"say {HOSTILE.replace(chr(27), '')} {MARKUP} \u202e end")
    terminal.wait_for(" end")
    terminal.press_until("enter", "answer in")
    terminal.press_until("f6", "Edit the last question")
    noise = home / "state" / "make-noise"
    noise.touch()
    terminal.wait_for(lambda: not noise.exists())
    terminal.press_until("f9", r"\x1b[2J\x1b[1;1Hfrom C to 2")
    terminal.press_until("escape", lambda: "from C to 2" not in terminal.text)
    terminal.press_until("ctrl+o", "Open a video")
    terminal.paste(f"{HOSTILE.replace(chr(27), '')} end of path")
    terminal.wait_for("end of path")
    assert_tame(terminal)
