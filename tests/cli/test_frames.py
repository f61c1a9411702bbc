"""`vidqa frames` writes the frames that the model gets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidqa import EngineConfig, Request, Session
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.video.contact_sheet import lay_out
from vidqa.video.signal_strip import STRIP_HEIGHT

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")


def test_the_sheet_shows_what_the_model_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert run(["frames", CLIP, "-o", str(sheet), "--model", "demo", "--frames", "6"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out == "" and "6 frames of 160×128" in err
    with Session(EngineConfig(model="demo", isolate_decoder=False)) as session:
        plan, pictures = session.see(Request(CLIP, "what happens?", frames=6))
        assert session.loaded is None  # no weights
    with Image.open(sheet) as opened:
        shown = np.asarray(opened.convert("RGB"))
    height, width = plan.run_config.height, plan.run_config.width
    layout = lay_out(len(pictures), width, height + 20, None)
    for place, picture in enumerate(pictures):
        x, y = layout.corner(place)
        assert (shown[y : y + height, x : x + width] == picture).all(), place


def test_a_missing_folder_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["frames", CLIP, "-o", "/no/such/folder/x.png", "--model", "demo"]) == ExitCode.USAGE
    assert "/no/such/folder" in capsys.readouterr().err.replace("\n", " ")


def test_a_scanned_video_has_its_change_below_the_frames_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["frames", CLIP, "--model", "demo", "--frames", "6", "--decode-in-process", "-o"]
    assert run([*command, str(tmp_path / "even.png"), "--sample", "uniform"]) == ExitCode.OK
    assert run([*command, str(tmp_path / "auto.png"), "--prune", "auto", "--json"]) == ExitCode.OK
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed["plan"]["sampling"]["kind"] == "uniform" and "even frames: " in err
    assert printed["signal"]["complete"] and len(printed["signal"]["seconds"]) == 96
    with Image.open(tmp_path / "even.png") as even, Image.open(tmp_path / "auto.png") as auto:
        assert auto.size == (even.width, even.height + STRIP_HEIGHT)
        assert [printed["sheet"]["width"], printed["sheet"]["height"]] == list(auto.size)
        plain, drawn = np.asarray(even.convert("RGB")), np.asarray(auto.convert("RGB"))
    assert (drawn[: len(plain)] == plain).all()
    strip = drawn[len(plain) :]
    bars, marks = ((strip == colour).all(2).any(0) for colour in ((90, 150, 220), (240, 180, 60)))
    assert bars.sum() > plain.shape[1] / 2  # the circle moves most of the time
    assert 6 <= marks.sum() <= 12


def test_with_focus_it_says_that_a_question_selects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "demo", "--frames", "2", "--focus", "auto", "-o", str(tmp_path / "sheet.png"))
    assert run(["frames", CLIP, *words]) == ExitCode.OK
    assert "select its frames from 8" in capsys.readouterr().err
