"""The offer of a model on a terminal, from the question to the answer; and the model that plan and frames assume."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.hub_server import HubServer, hub_server
from tests.tui.conftest import clean_environment
from tests.tui.terminal import Terminal
from vidqa.cli import model_offer
from vidqa.cli.console import ExitCode, StderrReporter
from vidqa.cli.main import run
from vidqa.config import EngineConfig
from vidqa.errors import ModelMissing
from vidqa.models.hub import CachedModel, demo_folder
from vidqa.models.registry import AUTO

DEMO = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
SMALL = "Qwen/Qwen3-VL-2B-Instruct"
CACHED = CachedModel(SMALL, "qwen3_vl", 1, Path(), runnable=True)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server(demo_folder()) as server:
        yield server


def ask_in_terminal(hub: HubServer, home: Path, *options: str) -> Terminal:
    command = [sys.executable, "-m", "vidqa", "ask", DEMO, "what happens?", *options]
    return Terminal(command, environment=clean_environment(home) | hub.environment(home / "hub"))


def test_a_question_without_a_model_goes_from_the_offer_to_a_true_answer(hub: HubServer, tmp_path: Path) -> None:
    hub.block_seconds = 0.01
    with ask_in_terminal(hub, tmp_path) as terminal:
        terminal.wait_for("Which one?", 60)
        assert "the best that fits here (" in terminal.text and "first word in about" in terminal.text
        smallest = next(line for line in terminal.text.splitlines() if f"fetch {SMALL}" in line)
        assert "(4.3 GB), and go on" in smallest
        terminal.write(f"{smallest.split()[0]}\n")
        terminal.wait_for("of 7.3 MB (", 60)
        terminal.wait_for("red circle moves right", 120)
        assert terminal.wait_exit() == ExitCode.OK


def test_a_download_that_is_stopped_by_ctrl_c_ends_the_command(hub: HubServer, tmp_path: Path) -> None:
    hub.block_seconds = 0.05
    with ask_in_terminal(hub, tmp_path, "--model", "3-vl-2b") as terminal:
        terminal.wait_for(f"{SMALL} is not on this machine.", 60)
        terminal.write("\n")
        terminal.wait_for("MB of 7.3 MB (", 60)
        terminal.press("ctrl+c")
        terminal.wait_for("`vidqa pull 3-vl-2b` goes on from", 60)
        assert terminal.wait_exit() == ExitCode.INTERRUPTED


def test_no_choice_is_an_error(hub: HubServer, tmp_path: Path) -> None:
    with ask_in_terminal(hub, tmp_path, "--model", "3-vl-2b") as terminal:
        terminal.wait_for("Which one? [1/2/3, Enter is 1]", 60)
        terminal.write("9\n")
        terminal.wait_for("Type one of 1, 2, 3:")
        terminal.write("3\n")
        terminal.wait_for("No model was chosen.")
        assert terminal.wait_exit() == ExitCode.MODEL_MISSING
    assert hub.ranges == []


def test_without_a_terminal_the_command_to_type_names_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", DEMO, "what happens?", "--device", "cpu", "--vram", "16GiB"]) == ExitCode.MODEL_MISSING
    error = " ".join(capsys.readouterr().err.split())
    assert "none that runs is cached. Fetch the best that fits here with `vidqa pull 3-vl-" in error
    assert "--model demo (coloured shapes only)" in error


def test_auto_is_as_no_name_where_nothing_is_cached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_offer, "is_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    reporter, config = StderrReporter(True), EngineConfig(model=AUTO, device="cpu", vram_bytes=16 * 2**30)
    with pytest.raises(ModelMissing, match="No model was chosen"):
        model_offer.offer_model(AUTO, config, reporter, None)
    assert "No model is on this machine.\n  1  fetch Qwen/" in capsys.readouterr().err
    monkeypatch.setattr("vidqa.models.registry.cached_models", lambda: [CACHED])
    assert model_offer.offer_model(AUTO, config, reporter, None) == AUTO
    assert model_offer.offer_model(None, config, reporter, None) == SMALL


def test_where_nothing_fits_nothing_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", DEMO, "what?", "--device", "cpu", "--vram", "1GiB"]) == ExitCode.MODEL_MISSING
    error = " ".join(capsys.readouterr().err.split())
    assert "no released one fits the memory, time and disk of" in error and "vidqa pull" not in error


def test_plan_and_frames_assume_the_model_that_would_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--device", "cpu", "--vram", "16GiB", "--decode-in-process"]
    assert run(["ask", DEMO, "what?", *limits]) == ExitCode.MODEL_MISSING
    short = capsys.readouterr().err.split("`vidqa pull ")[1].split("`")[0]
    said = []
    for command in (["plan", DEMO], ["frames", DEMO, "-o", str(tmp_path / "sheet.png")]):
        assert run([*command, *limits]) == ExitCode.OK
        out, err = capsys.readouterr()
        said.append(next(line for line in err.splitlines() if line.startswith("model: ")))
        assert f"`vidqa pull {short}` fetches this one" in said[-1]
        assert command[0] != "plan" or said[-1].split()[1] in out
    assert said[0] == said[1]
