"""`vidqa find`: moments on stdout, a sheet, a further question about the best one, and errors with a remedy."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vidqa.cli import ask
from vidqa.cli.main import run
from vidqa.events import Event, StageStarted

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
COMMON = ("--model", "demo", "--decode-in-process", "--no-calibrate")
LINE = re.compile(r"\d+:\d\d\.\d-\d+:\d\d\.\d  \d+\.\d\d")


def test_moments_are_printed_the_best_first(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["find", CLIP, "a red circle", *COMMON]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines and all(LINE.fullmatch(line) for line in lines)
    scores = [float(line.split()[-1]) for line in lines]
    assert scores == sorted(scores, reverse=True) and len(lines) <= 5
    assert "frames are looked at" in err


def test_subtitles_and_dropped_tokens_are_no_obstacle(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Many lines beside the video, and a setting that drops tokens of what is read: nothing is read here."""
    clip = Path(shutil.copy(CLIP, tmp_path / "clip.mp4"))
    lines = (
        f"{n}\n00:00:0{n // 10},{n % 10}00 --> 00:00:0{n // 10},{n % 10}90\nLine {n} is said.\n" for n in range(36)
    )
    clip.with_suffix(".srt").write_text("\n".join(lines))
    assert run(["find", str(clip), "a red circle", "--prune", "auto", *COMMON]) == 0
    assert LINE.fullmatch(capfd.readouterr().out.splitlines()[0])
    asked = ["ask", str(clip), "what color is it?", "--frames", "2", "--focus", "auto", *COMMON]
    assert run([*asked, "--then", "and what shape is it?"]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2 and "the question points to" in err and "subtitles: " in err


def test_json_a_sheet_and_a_question_about_the_best_moment(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sheet = tmp_path / "found.png"
    options = ["--json", "-o", str(sheet), "--then", "what color is it?", "--moments", "1", "--quiet"]
    assert run(["find", CLIP, "a red circle", *COMMON, *options]) == 0
    out, err = capfd.readouterr()
    found, answer = map(json.loads, out.splitlines())
    (moment,) = found["moments"]
    focus: dict[str, Any] = found["plan"]["focus"]
    assert moment["score"] == max(focus["scores"]) and moment["start_s"] < moment["end_s"]
    assert len(focus["scores"]) == len(focus["slice_times_s"]) == focus["candidates"] // 2
    assert answer["answer"].startswith("red") and err == ""
    assert run(["find", CLIP, "a red circle", *COMMON, "--then", "what color is it?"]) == 0
    assert "answer in " in capfd.readouterr().err
    assert all(moment["start_s"] - 2 <= time <= moment["end_s"] + 2 for time in answer["plan"]["timestamps_s"])
    with Image.open(sheet) as picture:
        assert picture.width > 100


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_further_question_as_it_ends_a_question(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            yield event
            if event == StageStarted("decode", 256):
                os.kill(os.getpid(), number)

    render = ask.render
    monkeypatch.setattr(ask, "render", lambda events, *rest: render(stopped(events), *rest))
    assert run(["find", CLIP, "a red circle", *COMMON, "--then", "what happens?"]) == code
    out, err = capfd.readouterr()
    assert "a red circle moves right." not in out and "answer in " in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.mp4", "a red circle"], "There is no video"),
        ([CLIP, "a red circle", "--moments", "0"], "--moments 0 is not 1 or more"),
        ([CLIP, ""], "question"),
        ([CLIP, "a red circle", "--then", " "], "The question is empty"),
    ],
)
def test_bad_input_has_a_remedy(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["find", *arguments, *COMMON]) != 0
    out, err = capfd.readouterr()
    assert words in err and out == "", "before anything is searched"


def test_a_single_picture_has_no_moments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "one.png")
    assert run(["find", str(tmp_path / "one.png"), "a red circle", *COMMON]) == 2
    assert "one.png is one picture: there are no moments to find in it." in capfd.readouterr().err
