"""`vidqa profile` end to end on the demo model: phases, files, and cumulative never below peak."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vidqa.cli.console import ExitCode
from vidqa.cli.main import run

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")


def profile(folder: Path, *words: str) -> int:
    fixed = ("--model", "demo", "--device", "cpu", "--decode-in-process", "--max-tokens", "8", "--out", str(folder))
    return run(["profile", CLIP, *fixed, *words])


def profiled(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert profile(folder, "--json", *words) == ExitCode.OK
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert values["schema_version"] == 1
    return values


def check_sums(values: dict[str, Any]) -> None:
    """Cumulative is never below peak, and every way of adding up gives the same sum."""
    sums = {name: sum(one["cumulative_bytes"] for one in values[name]) for name in ("operators", "kinds", "phases")}
    assert len(set(sums.values())) == 1, sums
    for one in (*values["operators"], *values["kinds"]):
        assert one["cumulative_bytes"] >= one["peak_bytes"] > 0
    weights = values["asked"]["weights_bytes"]
    assert values["peak_bytes"] == max(phase["peak_bytes"] for phase in values["phases"]) > weights
    assert sum(one["size_bytes"] for one in values["at_peak"]) == values["peak_bytes"] - weights


def test_a_question_is_taken_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = profiled(tmp_path / "new", capsys, "--picture", "svg")
    assert values["asked"]["answer"] == "a red circle moves right."
    assert values["notes"] == []  # every stage of this thread was seen
    phases = {phase["name"]: phase for phase in values["phases"]}
    assert list(phases)[:5] == ["load", "video", "vision", "prefill", "decode"]
    for name in ("vision", "prefill", "decode"):
        assert phases[name]["seconds"] > 0 and phases[name]["cumulative_bytes"] > 0
    assert phases["video"]["seconds"] > 0  # its tensors are another thread's
    check_sums(values)
    kinds = {kind["name"]: kind for kind in values["kinds"]}
    assert {"MLP", "logits", "KV cache", "frames and patches", "attention output"} <= kinds.keys()
    assert not {"score matrices", "KV concatenation"} & kinds.keys()  # what the engine is made to avoid
    spec_bytes = 128 * 2 * 4 * 2 * 32 * 4  # one block of tokens: keys and values of 4 layers, 2 heads, 32, fp32
    assert kinds["KV cache"]["peak_bytes"] % spec_bytes == 0
    trace = json.loads(Path(values["files"]["trace"]).read_text())
    assert any(event.get("cat") == "cpu_op" for event in trace["traceEvents"])
    assert Path(values["files"]["picture"]).read_text().lstrip().startswith("<?xml")


def test_plain_transformers_shows_what_the_engine_avoids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = profiled(tmp_path, capsys, "--baseline", "--picture", "none")
    assert values["asked"]["side"] == "transformers"
    assert values["asked"]["answer"] == "a red circle moves right."
    check_sums(values)
    kinds = {kind["name"]: kind for kind in values["kinds"]}
    appended = kinds["KV concatenation"]
    assert appended["cumulative_bytes"] > 2 * appended["peak_bytes"]
    assert list(values["files"]) == ["trace"]


def test_the_table_sets_cumulative_beside_peak_even_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidqa.cli.charts.find_spec", lambda name: None)
    assert profile(tmp_path, "--picture", "svg") == ExitCode.USAGE
    assert "matplotlib" in capsys.readouterr().err
    assert profile(tmp_path) == ExitCode.OK
    out, err = capsys.readouterr()
    for word in ("phase", "prefill", "what it is", "operator", "cumulative", "peak", "MLP", "largest at the peak",
                 "cumulative is not peak"):  # fmt: skip
        assert word in out
    assert 'pip install "vidqa[plot]"' in err and "trace.json" in err
    assert not (tmp_path / "memory.png").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert profile(tmp_path / "file" / "out") == ExitCode.USAGE
    assert "cannot be written" in capsys.readouterr().err


def test_the_profiler_says_nothing_where_the_model_loads_in_a_thread() -> None:
    """In a fresh process, as torch reports the thread that it was first imported in."""
    code = (
        "import threading\n"
        "from vidqa.profiling.profiler import _quiet_profiler\n"
        "_quiet_profiler()\n"
        "thread = threading.Thread(target=__import__, args=('torch.profiler',)); thread.start(); thread.join()\n"
        "import torch\n"
        "with torch.profiler.profile():\n    torch.ones(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
