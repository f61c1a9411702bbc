"""`vidqa caption --sample auto`: clips are scanned, and dry run and records say where their frames lie."""

import json
from pathlib import Path

import pytest

from demo_world.long_clips import LongClip, LongEvent, write_long_clip
from demo_world.world import Actor, Scene
from tests.batch.commands import plans_of
from tests.cli.test_caption import caption
from vidqa.cli.console import ExitCode


def test_clips_are_scanned_and_have_their_own_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clips of one shape, each with a second of its own event in a minute of stillness."""
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "none.toml"))
    folder = tmp_path / "clips"
    folder.mkdir()
    events = {"red": ("circle", "right", 0.16, 0.84, 11.3), "blue": ("square", "left", 0.84, 0.16, 43.1)}
    for colour, (shape, way, x, end_x, start) in events.items():
        actor = Actor(
            kind="moves", shape=shape, color=colour, end_color=colour, direction=way, across=0.34, x=x, y=0.5,
            end_x=end_x, end_y=0.5, appear=0.0, leave=2.0, start=0.0, stop=1.0, change=0.5, turn_degrees=0,
        )  # fmt: skip
        event = LongEvent(Scene((actor,), "plain", 0), start, 1.0)
        write_long_clip(LongClip(60.0, (event,), seed=3, fps=25), folder / f"{colour}.mp4")
    write_long_clip(LongClip(60.0, (), seed=3, fps=25), folder / "still.mp4")
    options = ("--frames", "12", "--sample", "auto")
    assert caption(folder, *options, "--dry-run") == ExitCode.OK
    counted, _, *lines = capsys.readouterr().out.splitlines()
    assert counted.startswith("3 clips: 3 to caption")
    assert {"".join(line.split("160×128")[0].split()) for line in lines[:2]} == {"2212bychange", "1112"}
    assert len(list((tmp_path / "state" / "scans").iterdir())) == 3
    assert caption(folder, *options, "--dry-run", "--json") == ExitCode.OK
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert {(plan["clips"], plan["sampling"], plan["by_question"]) for plan in plans} == {
        (2, "change", False), (1, "uniform", False),
    }  # fmt: skip
    assert caption(folder, *options) == ExitCode.OK
    assert {path.stem: path.read_text().strip() for path in folder.glob("*.txt")} == {
        "red": "a red circle moves right.", "blue": "a blue square moves left.", "still": "nothing visible.",
    }  # fmt: skip
    placed = {name: plan["sampling"] for name, plan in plans_of(folder).items()}
    assert placed["still.mp4"] == {"kind": "uniform", "reason": "nothing changes", "parts": []}
    for name, start in (("red.mp4", 11.3), ("blue.mp4", 43.1)):
        (part,) = placed[name]["parts"]
        assert placed[name]["kind"] == "change" and part["frames"] >= 4
        assert start - 0.1 < part["start_s"] < part["end_s"] < start + 1.1
