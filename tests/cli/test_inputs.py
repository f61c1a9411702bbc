"""What is given as VIDEO: standard input, addresses and folders of pictures, and the demo's true answers about them."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from tests.docs.schemas import problems
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.history.store import FILE_NAME

DEMO = Path(__file__).parents[2] / "assets" / "demo.mp4"
TRUE_ANSWER = "a red circle moves right.\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo clip's frames as 1.png to 96.png."""
    folder = tmp_path_factory.mktemp("pictures")
    with av.open(str(DEMO)) as container:
        for number, frame in enumerate(container.decode(video=0), 1):
            frame.to_image().save(folder / f"{number}.png", compress_level=1)
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of temporary files, in which no copy of standard input is left after the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [*folder.glob("vidqa-stdin-*")] == []


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def vidqa(*words: str) -> int:
    return run([*words, "--model", "demo", "--decode-in-process"])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed on stderr, on one line."""
    return " ".join(capsys.readouterr().err.split())


def test_a_piped_video_gets_the_true_answer(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    pipe(monkeypatch, DEMO.read_bytes())
    assert vidqa("ask", "-", "what happens?") == ExitCode.OK
    assert capsys.readouterr().out == TRUE_ANSWER
    assert not (tmp_path / "state" / FILE_NAME).exists(), "a video that is gone is not in the history"


@pytest.mark.parametrize(("words", "schema"), [(("ask", "-", "what happens?"), "ask"), (("plan", "-"), "plan")])
def test_json_names_standard_input_by_a_dash(
    words: tuple[str, ...],
    schema: str,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe(monkeypatch, DEMO.read_bytes())
    assert vidqa(*words, "--json") == ExitCode.OK
    out = capsys.readouterr().out
    assert json.loads(out)["video"]["path"] == "-" and str(temporary) not in out
    assert problems(schema, json.loads(out)) == []


def test_a_sheet_of_a_piped_video(temporary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sheets = []
    for name, video in (("file", str(DEMO)), ("pipe", "-")):
        pipe(monkeypatch, DEMO.read_bytes())
        assert vidqa("frames", video, "-o", str(tmp_path / f"{name}.png")) == ExitCode.OK
        sheets.append((tmp_path / f"{name}.png").read_bytes())
    assert sheets[0] == sheets[1]


@pytest.mark.parametrize("command", ["ask", "plan", "frames", "sweep", "profile"])
def test_empty_standard_input_is_a_usage_error(
    command: str, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b"")
    assert vidqa(command, "-", *(["what?"] if command == "ask" else [])) == ExitCode.USAGE
    assert "Standard input is empty. Pipe a video into it" in said(capsys)


def test_a_terminal_as_standard_input_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, terminal = os.openpty()
    with open(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert vidqa("ask", "-", "what happens?") == ExitCode.USAGE
    os.close(main)
    assert "which is a terminal or closed. Pipe a video into it, for example `cat clip.mp4 |" in said(capsys)


def test_no_standard_input_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert vidqa("plan", "-") == ExitCode.USAGE


def test_what_is_no_video_on_standard_input_is_unreadable(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b"no video" * 100)
    assert vidqa("ask", "-", "what happens?") == ExitCode.UNREADABLE_VIDEO
    assert "stdin " in said(capsys)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
)
def test_a_signal_while_the_video_still_comes_leaves_no_file(
    number: signal.Signals, code: ExitCode, temporary: Path
) -> None:
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = (sys.executable, "-m", "vidqa", "ask", "-", "what?", "--model", "demo")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(3 * 2**20))
        process.stdin.flush()
        until = time.monotonic() + 60
        while not [*temporary.glob("vidqa-stdin-*/stdin")] and time.monotonic() < until:
            time.sleep(0.02)
        assert [*temporary.glob("vidqa-stdin-*/stdin")]
        process.send_signal(number)
        assert process.wait(60) == code


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_address_is_its_file(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "my clip.mp4"
    clip.write_bytes(DEMO.read_bytes())
    assert vidqa("ask", f"file://{host}{tmp_path}/my%20clip.mp4", "what happens?") == ExitCode.OK
    assert capsys.readouterr().out == TRUE_ANSWER
    assert vidqa("plan", f"file://{host}{tmp_path}/my%20clip.mp4", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["video"]["path"] == str(clip)


@pytest.mark.parametrize("command", ["ask", "plan", "frames", "tui", "sweep", "profile"])
def test_an_address_of_the_network_is_a_usage_error_with_a_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "https://example.org/watch?v=" + "x" * 100
    assert run([command, address, *(["what?"] if command == "ask" else [])], lambda arguments: 0) == ExitCode.USAGE
    line = f"yt-dlp -f \"bv*[height<=720]\" -o clip.mp4 '{address}'"
    assert line in capsys.readouterr().err, "on one line, so that it can be copied"


def test_standard_input_makes_no_session(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(monkeypatch, DEMO.read_bytes())
    assert run(["tui", "-"], lambda arguments: 0) == ExitCode.USAGE
    assert "The session reads keys from standard input" in said(capsys)


def test_a_folder_of_pictures_gets_the_true_answer(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", str(pictures), "what happens?", "--fps", "24", "--model", "demo"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out == TRUE_ANSWER
    assert "320×240 png, 0:04.0" in err and "plan: 8 frames of 160×128" in err and "assumed" not in err


def test_a_folder_is_planned_as_the_clip_of_its_pictures(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = []
    for words in ((str(DEMO),), (str(pictures), "--fps", "24"), (f"file://{pictures}", "--fps", "24")):
        assert vidqa("plan", *words, "--json") == ExitCode.OK
        found = json.loads(capsys.readouterr().out)
        plans.append((found["plan"]["timestamps_s"], found["plan"]["frames"], found["video"]["duration_s"]))
    assert plans[0] == plans[1] == plans[2] and plans[0][1:] == (8, 4.0)


def test_a_sheet_of_a_folder_of_pictures(pictures: Path, tmp_path: Path) -> None:
    for name, words in (("clip", (str(DEMO),)), ("pictures", (str(pictures), "--fps", "24"))):
        assert vidqa("frames", *words, "--sample", "uniform", "-o", str(tmp_path / f"{name}.png")) == ExitCode.OK
    assert (tmp_path / "clip.png").read_bytes() == (tmp_path / "pictures.png").read_bytes()


def test_times_of_a_file(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = tmp_path / "times"
    times.write_text("".join(f"{100 + number / 24}\n" for number in range(96)))
    assert vidqa("plan", str(pictures), "--timestamps", str(times), "--start", "102", "--json") == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["timestamps_s"][0] == 102.0 and found["video"]["lead_s"] == 100.0


def test_a_rate_and_times_contradict_each_other(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "1.png").write_bytes((pictures / "1.png").read_bytes())
    (folder / "timestamps.txt").write_text("0\n")
    assert vidqa("plan", str(folder), "--fps", "10") == ExitCode.USAGE
    assert "--fps 10 and" in (text := said(capsys)) and "timestamps.txt both say when the pictures are shown" in text
    assert vidqa("plan", str(pictures), "--fps", "10", "--timestamps", "t.txt") == ExitCode.USAGE
    assert "--fps 10 and t.txt both say" in said(capsys)


@pytest.mark.parametrize("fps", ["0", "-1", "nan", "inf"])
def test_a_rate_that_cannot_be_is_a_usage_error(fps: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vidqa("ask", str(pictures), "what?", f"--fps={fps}") == ExitCode.USAGE
    assert f"--fps {fps} is not above 0." in said(capsys)


def test_times_are_for_folders_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert vidqa("plan", str(DEMO), "--timestamps", "t.txt") == ExitCode.USAGE
    assert "the video is a file" in said(capsys)
    for video, why in (([str(DEMO)], "the video is a file."), ([], "no video is named.")):
        for option, what in ((["--fps", "2"], "the rate"), (["--timestamps", "t.txt"], "the times")):
            assert run(["tui", *video, *option], lambda _: ExitCode.OK) == ExitCode.USAGE
            assert f"{option[0]} gives {what} of a folder of pictures, and {why}" in said(capsys)


def test_the_session_takes_the_rate_of_a_folder_alone(pictures: Path) -> None:
    opened: list[tuple[float | None, float | None]] = []

    def open_session(arguments: argparse.Namespace) -> int:
        opened.append((arguments.picture_fps, arguments.fps))
        return ExitCode.OK

    assert run(["tui", str(pictures), "--fps", "24"], open_session) == ExitCode.OK
    assert opened == [(24.0, None)]


def test_captioning_takes_a_folder_as_a_folder_of_clips(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes((pictures / f"{number}.png").read_bytes())
    assert run(["caption", str(folder), "--dry-run", "--json", "--model", "demo"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["clips"] == 2
