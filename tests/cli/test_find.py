"""`vidqa find`: moments on stdout, a sheet, a further question about the best one, and errors with a remedy."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make_demo_clips import SCENES
from PIL import Image

from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from demo_world.world import Scene
from vidqa.cli import ask
from vidqa.cli.main import run
from vidqa.engine.slice_selection import Moment
from vidqa.events import Event, StageStarted

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
RED = SCENES["demo.mp4"].actors[0]
BLUE = replace(RED, shape="square", color="blue", end_color="blue", direction="left", x=RED.end_x, end_x=RED.x)
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


def test_a_brief_event_that_was_found_is_seen_by_the_further_question(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, sheet = tmp_path / "long.mp4", tmp_path / "found.png"
    write_long_clip(LongClip(40.0, (LongEvent(Scene((BLUE,), "plain", 0), 30.1, 0.9),), seed=4), path)
    options = ["--then", "what happens?", "--moments", "1", "-o", str(sheet)]
    assert run(["find", str(path), "a blue square", *COMMON, *options]) == 0
    out, err = capfd.readouterr()
    moment, answer = out.splitlines()
    assert LINE.fullmatch(moment) and answer == "a blue square moves left."
    assert "plan: 16 frames of " in err and "shorter events" not in err
    assert not re.search(r"\d+ of [\d,]+ frames", err), "a search reads none of its plan's frames"
    assert "found.png: 1 moment in " in err


def test_the_sheet_has_the_moments_in_their_order_with_range_and_score(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = (Moment(2.5, 3.0, 9.0), Moment(0.0, 0.5, 4.0), Moment(1.0, 1.5, 2.0))
    written: list[Any] = []

    def record(pictures: Any, times: Any, path: str, captions: Any) -> tuple[int, int]:
        written.append((pictures, times, captions))
        return 1, 1

    monkeypatch.setattr("vidqa.engine.slice_selection.find_moments", lambda *_: moments)
    monkeypatch.setattr("vidqa.video.contact_sheet.write_sheet", record)
    assert run(["find", CLIP, "a red circle", *COMMON, "-o", str(tmp_path / "found.png")]) == 0
    (pictures, times, captions), lines = written[0], capfd.readouterr().out.splitlines()
    assert captions == [f"#{number}  {line}" for number, line in enumerate(lines, 1)] and times == [2.75, 0.25, 1.25]
    in_order = sorted(range(3), key=lambda place: times[place])
    circle = [_middle_of_red(pictures[place]) for place in in_order]
    assert circle == sorted(circle) and circle[0] < circle[-1], "the circle moves right"


def _middle_of_red(picture: Any) -> float:
    red = (picture[..., 0].astype(int) - picture[..., 1] > 80).any(axis=0).nonzero()[0]
    return float(red.mean()) if len(red) else 0.0


def test_options_of_the_further_question_are_listed_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["find", "--help"])
    search, further = capfd.readouterr().out.split("further question")
    for flag in ("--then", "--prune", "--focus", "--max-tokens", "--subs ", "--subs-share"):
        assert flag in further and f"\n  {flag}" not in search
    assert run(["find", CLIP, "a red circle", *COMMON, "--prune", "0.3", "--subs", "missing.srt"]) == 0
    err = capfd.readouterr().err
    assert "note: --prune does nothing without --then" in err and "note: --subs does nothing without --then" in err
    assert run(["find", CLIP, "a red circle", *COMMON]) == 0
    assert "note:" not in capfd.readouterr().err


def test_a_range_of_one_frame_has_no_moments(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["find", CLIP, "a red circle", *COMMON, "--start", "1.0", "--end", "1.01"]) == 2
    assert "The range is one frame: there are no moments to find in it." in capfd.readouterr().err


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
    monkeypatch.setattr(ask, "render", lambda events, *rest, **how: render(stopped(events), *rest, **how))
    assert run(["find", CLIP, "a red circle", *COMMON, "--then", "what happens?"]) == code
    out, err = capfd.readouterr()
    assert "a red circle moves right." not in out and "answer in " in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.mp4", "a red circle"], "There is no video"),
        ([CLIP, "a red circle", "--moments", "0"], "--moments 0 is not 1 or more"),
        ([CLIP, ""], "The text to find is empty. Give for example"),
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
