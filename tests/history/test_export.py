"""Exports as their readers see them, also of hostile text."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answer_builders import made_answer, made_clip
from vidqa.errors import UsageError
from vidqa.history.export import describe_figures, suggest_name, to_json, to_markdown, to_srt, unwritable, write_export
from vidqa.history.records import SavedSession, SavedTurn
from vidqa.history.store import History
from vidqa.utils.safe_text import safe_text

EVIL = "\x1b]52;c;ZXZpbA==\x07 \x1b[2J \u202e <img src=http://x/> ![i](http://x/) {\\an8} 1 --> 2"


def conversation(*answers: str, path: str = "/videos/a clip.mp4") -> tuple[SavedSession, tuple[SavedTurn, ...]]:
    """A session about a minute of video in which these answers were given about the first 20 seconds."""
    history = History(None)
    session = history.begin_session(made_clip(path), "demo")
    for answer in answers:
        history.finish_turn(history.begin_turn(session, "What happens?", None, 20.0), made_answer(answer))
    found = history.session(session), history.turns(session)
    history.close()
    return found


def cues(*answers: str) -> list[tuple[str, str]]:
    """Times and text of each cue, read as a player does: number, times, text, an empty line."""
    blocks = to_srt(*conversation(*answers)).split("\n\n")
    lines = [block.strip().split("\n") for block in blocks if block.strip()]
    assert [int(block[0]) for block in lines] == list(range(1, len(lines) + 1))
    assert all(len(block) == 3 for block in lines)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}", block[1]) for block in lines)
    return [(block[1].replace("00:00:", "").replace("00:01:", "1:"), block[2]) for block in lines]


def test_markdown_reads_as_the_conversation_was() -> None:
    session, turns = conversation("A **red** circle.")
    text = to_markdown(session, turns)
    assert text.startswith("# a clip.mp4\n\n- Video: a clip.mp4, 1:00.0, 1280×720\n- Model: demo\n")
    assert "\n## 1. 0:00.0 – 0:20.0\n\n> What happens?\n\nA **red** circle.\n\n- a note\n- fewer frames\n" in text
    assert "8 frames of 1008×560 · 2,880 visual tokens" in text
    assert "11 tokens at 10.0/s · peak 5.0 GiB of" in text
    assert "/videos" not in text  # the folder is private


def test_markdown_says_what_was_not_answered() -> None:
    session, (turn,) = conversation("half")
    stopped = replace(turn, state="stopped", error="Stopped by *you*.", plan={}, usage={})
    assert to_markdown(session, (stopped,)).endswith(
        "half\n\n**Stopped.** Stopped by \\*you\\*.\n\n- a note\n- fewer frames\n"
    )
    assert describe_figures({}, {}) == ""


def test_markdown_escapes_markup_of_the_answer() -> None:
    session, (turn,) = conversation(EVIL + " `<kept>`", path="/v/# <b>*_x_.mp4")
    text = to_markdown(session, (replace(turn, question="# no title\n1. no list\n- none\n<b>"),))
    assert safe_text(text) == text
    assert text.splitlines()[0] == "# \\# \\<b\\>\\*\\_x\\_.mp4"
    assert "> \\# no title\n> 1\\. no list\n> \\- none\n> \\<b\\>" in text
    assert "&lt;img" in text and "<img" not in text and "\\![i]" in text and "`<kept>`" in text


def test_a_code_block_left_open_does_not_swallow_the_rest() -> None:
    text = to_markdown(*conversation("See:\n```py\nx = '<b>'", "next"))
    assert "```py\nx = '<b>'\n```\n\n- a note" in text


def test_json_holds_everything() -> None:
    session, turns = conversation("At 0:05 – 0:09 " + EVIL)
    text = to_json(session, turns)
    assert safe_text(text) == text
    whole = json.loads(text)
    assert whole["schema_version"] == 1
    assert whole["video"] == {"path": "/videos/a clip.mp4", "duration_s": 60.0, "width": 1280, "height": 720}
    assert whole["session"]["title"] == "What happens?"
    (turn,) = whole["turns"]
    assert turn["answer"] == turns[0].answer == "At 0:05 – 0:09 " + EVIL
    assert (turn["state"], turn["start_s"], turn["end_s"]) == ("answered", None, 20.0)
    assert turn["moments"] == [{"s": 5.0, "until_s": 9.0}]
    assert turn["usage"]["tokens"] == 11 and turn["plan"]["frames"] == 8


def test_an_answer_without_times_stands_over_the_asked_range() -> None:
    assert cues("A red circle\n\nmoves.") == [("00,000 --> 20,000", "A red circle moves.")]


def test_sentences_with_times_are_cues_of_their_own() -> None:
    answer = (
        "Here is what happens.\n1. At 0:05 a **red** circle appears. It turns at 0:07! Nothing else.\n"
        "- 0:30 - 0:41.5: a square\n- 0:55 it goes, `0:58` stays."
    )
    assert cues(answer) == [
        ("05,000 --> 07,000", "At 0:05 a red circle appears."),
        ("07,000 --> 11,000", "It turns at 0:07!"),
        ("30,000 --> 41,500", "0:30 - 0:41.5: a square"),
        ("55,000 --> 59,000", "0:55 it goes, 0:58 stays."),
    ]


def test_cues_stay_in_the_video_and_in_order() -> None:
    assert cues("At 0:59.8 and at 1:30.", "At 0:02.") == [
        ("02,000 --> 06,000", "At 0:02."),
        ("59,800 --> 1:00,800", "At 0:59.8 and at 1:30."),
    ]
    assert cues("Only at 5:00.") == [("00,000 --> 20,000", "Only at 5:00.")]
    assert cues("") == []


@given(st.text(alphabet="0123456789: .->\n\r\t<b>{}\\`*-–\x1b\u2028", max_size=80))
def test_no_answer_breaks_the_subtitles(text: str) -> None:
    for _, line in cues(text + "x"):
        assert safe_text(line) == line
        assert "-->" not in line and "<" not in line and "{\\" not in line


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v/holiday.mp4", "holiday-answers.md"),
        ("/v/my  film: a/b.mp4", "b-answers.md"),
        ("/v/my  film: *.mp4", "my-film-answers.md"),
        ("/v/.hidden.mp4", "hidden-answers.md"),
        ("/v/???", "video-answers.md"),
        ("/v/\x1b[2J.mp4", "x1b[2J-answers.md"),
        ("/v/" + "é" * 200 + ".mp4", "é" * 50 + "-answers.md"),
    ],
)
def test_a_name_is_suggested(path: str, name: str) -> None:
    session, _ = conversation("a", path=path)
    assert suggest_name(session, "md") == name


def test_an_export_never_overwrites(tmp_path: Path) -> None:
    written = [write_export(tmp_path / "a.b.md", f"text {number} é\n").name for number in range(3)]
    assert written == ["a.b.md", "a.b-2.md", "a.b-3.md"]
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in written] == [f"text {n} é\n" for n in range(3)]
    assert len(list(tmp_path.iterdir())) == 3


def no_link(*_: object) -> None:
    """`os.link` as on a FAT disk."""
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_exports_at_the_same_time_all_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    texts = [f"{number}\n" * 1000 for number in range(12)]
    with ThreadPoolExecutor(len(texts)) as threads:
        list(threads.map(lambda text: write_export(tmp_path / "a.md", text), texts))
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == sorted(texts)


def test_what_cannot_be_written_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        write_export(tmp_path / "nowhere" / "a.md", "text")
    with pytest.raises(UnicodeEncodeError):
        write_export(tmp_path / "a.md", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_an_error_when_it_is_written(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 300)
    assert unwritable(str(place)) == ""
    with pytest.raises(UsageError, match="name too long"):
        write_export(place, "text")
    assert "There is no folder" in unwritable(str(place / "talk.md"))
