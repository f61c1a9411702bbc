"""What the commands say where the demo model is asked about a video that it cannot know."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clips import write_clip
from tests.docs.schemas import problems
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run

DEMO = Path(__file__).parents[2] / "assets" / "demo.mp4"
SENTENCE = "The demo model knows only drawn shapes: its answer about this video means nothing."
COMMON = ("--model", "demo", "--decode-in-process")


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("bars") / "bars.mp4", 50, size=(320, 240))


def test_ask_warns_before_and_after_the_answer(bars: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", str(bars), "how many buses?", *COMMON]) == ExitCode.OK
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if SENTENCE in line]
    assert out.strip() and len(lines) == 2
    assert lines[0].startswith(f"warning: {SENTENCE} `vidqa pull ") and lines[1] == f"warning: {SENTENCE}"
    assert run(["ask", str(DEMO), "what happens?", *COMMON]) == ExitCode.OK
    assert "warning" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "schema"),
    [(["ask", "{}", "what?"], "ask"), (["find", "{}", "a bus"], "find"), (["frames", "{}"], "frames")],
)
def test_json_says_whether_the_video_is_out_of_the_domain(
    bars: Path, command: list[str], schema: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    extra = ["-o", str(tmp_path / "sheet.png")] if schema == "frames" else []
    for clip, expected in ((bars, True), (DEMO, False)):
        words = [word.format(clip) for word in command]
        assert run([*words, *extra, *COMMON, "--json"]) == ExitCode.OK
        out, err = capfd.readouterr()
        found: dict[str, Any] = json.loads(out)
        assert found["out_of_domain"] is expected and not problems(schema, found)
        assert (SENTENCE in err) is (expected and schema != "frames"), "a sheet of frames is no answer"


def test_a_sheet_of_frames_warns_of_no_answer(bars: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["frames", str(bars), "-o", str(tmp_path / "sheet.png"), *COMMON]) == ExitCode.OK
    err = capfd.readouterr().err
    assert "pixels" in err and "warning" not in err and "answer" not in err


def test_caption_refuses_what_the_demo_cannot_know_and_captions_the_rest(
    bars: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(bars, folder / "bars.mp4")
    shutil.copy(DEMO, folder / "demo.mp4")
    command = ["caption", str(folder), *COMMON, "--prompt", "what happens?"]
    assert run(command) == ExitCode.SOME_FAILED
    err = capfd.readouterr().err
    assert "failed: bars.mp4 (video): The demo model knows only drawn shapes" in err and "--allow-demo" in err
    assert "1 captioned, 1 failed" in err
    assert (folder / "demo.txt").read_text().strip() == "a red circle moves right."
    assert not (folder / "bars.txt").exists()
    assert _errors(folder) == {"bars.mp4": "VideoOutOfDomain"}
    assert run([*command, "--allow-demo", "--retry-failed"]) == ExitCode.OK
    assert "1 captioned, 0 failed" in capfd.readouterr().err
    assert (folder / "bars.txt").read_text().strip()
    (last,) = [record for record in _records(folder) if record.get("name") == "bars.mp4" and record["status"] == "done"]
    assert any(note.startswith(SENTENCE) for note in last["notes"])


def _records(folder: Path) -> list[dict[str, Any]]:
    (journal,) = (folder / ".vidqa").glob("*.jsonl")
    lines = map(json.loads, journal.read_text().splitlines())
    return [line["record"] for line in lines if "record" in line]


def _errors(folder: Path) -> dict[str, str]:
    return {record["name"]: record["error"]["kind"] for record in _records(folder) if "error" in record}
