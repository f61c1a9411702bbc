"""`vidqa frames` writes the frames that the model gets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidqa import EngineConfig, Request, Session
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.video.contact_sheet import lay_out

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")


def test_the_sheet_shows_what_the_model_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert run(["frames", CLIP, "-o", str(sheet), "--model", "demo", "--frames", "6"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out == "" and "6 frames of 140×112" in err
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
