"""`vidqa sweep` end to end on the demo model, and what it prints, draws and refuses."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vidqa.cli.console import ExitCode
from vidqa.cli.main import run
from vidqa.profiling import sweep_runner
from vidqa.profiling.isolated_run import IsolatedRun

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
MIB = 2**20


def sweep(*words: str) -> int:
    return run(["sweep", CLIP, "--model", "demo", "--device", "cpu", *words])


def test_both_sides_are_measured_and_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "sweep.svg"
    words = ("--frames", "3,8", "--size", "160x128", "--baseline", "--max-tokens", "8", "--decode-in-process")
    assert sweep(*words, "--json", "--plot", str(plot)) == ExitCode.OK
    out, err = capsys.readouterr()
    values = json.loads(out)
    rows = values["rows"]
    assert values["schema_version"] == 1
    assert [(row["side"], row["asked"], row["frames"]) for row in rows] == [
        ("vidqa", 3, 2), ("transformers", 3, 2), ("vidqa", 8, 8), ("transformers", 8, 8),
    ]  # fmt: skip
    for row in rows:
        assert row["outcome"] == "ok", row["detail"]
        assert row["visual_tokens"] == row["frames"] // 2 * (160 // 32) * (128 // 32)
        assert row["answer"] == "a red circle moves right."
        assert row["peak_bytes"] > row["runtime_bytes"] > 100 * MIB
        assert row["predicted_peak_bytes"] > 100 * MIB
        assert row["first_token_s"] > 0
    ours, theirs = rows[0::2], rows[1::2]
    assert [row["prompt_tokens"] for row in ours] == [row["prompt_tokens"] for row in theirs]
    assert [row["answer_tokens"] for row in ours] == [row["answer_tokens"] for row in theirs]
    assert values["summary"]["same_answers"] is True
    assert values["notes"] == ["--frames 3 becomes 2: a temporal slice is 2 frames"]
    assert err.count("first token after") == len(rows)
    assert plot.read_text().lstrip().startswith("<?xml") and plot.stat().st_size > 5000


def scripted(*results: dict[str, Any] | type[BaseException]) -> Callable[..., dict[str, Any]]:
    """Runs with these results, one after the other."""
    waiting = list(results)

    def run_job(job: IsolatedRun, command: Sequence[str]) -> dict[str, Any]:
        result = waiting.pop(0)
        if isinstance(result, type):
            raise result
        return result

    return run_job


def good(peak_mib: int) -> dict[str, Any]:
    return {"outcome": "ok", "peak_bytes": peak_mib * MIB, "runtime_bytes": 700 * MIB, "first_token_seconds": 0.5,
            "answer": "red.", "prompt_tokens": 50, "answer_tokens": 2}  # fmt: skip


def test_out_of_memory_is_a_row_and_the_sweep_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = {"outcome": "out_of_memory", "detail": "killed by signal 9\x1b[2J"}
    results = (good(800), good(900), good(801), killed, good(802), killed)
    monkeypatch.setattr(sweep_runner, "run_job", scripted(*results))
    assert sweep("--frames", "2,4,6", "--baseline") == ExitCode.OK
    out, err = capsys.readouterr()
    assert "transformers  1 measured, out of memory from 4 frames on" in out
    assert out.count("out of memory") == 3
    assert (
        "[6/6] transformers, 6 frames of 160×128, 60 visual tokens: out of memory (killed by signal 9\\x1b[2J)" in err
    )
    assert "\x1b" not in out + err
    monkeypatch.setattr(sweep_runner, "run_job", scripted(*results))
    assert sweep("--frames", "2,4,6", "--baseline", "--json", "--quiet") == ExitCode.OK
    values = json.loads(capsys.readouterr().out)
    assert [row["outcome"] for row in values["rows"]] == ["ok", "ok", "ok", "out_of_memory", "ok", "out_of_memory"]
    assert values["rows"][3]["peak_bytes"] is None
    assert values["summary"]["sides"]["transformers"]["out_of_memory_from_frames"] == 4


def test_ctrl_c_keeps_the_rows_that_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = tmp_path / "part.png"
    monkeypatch.setattr(sweep_runner, "run_job", scripted(good(800), good(801), KeyboardInterrupt))
    assert sweep("--frames", "2,4,6", "--json", "--plot", str(plot)) == ExitCode.INTERRUPTED
    out, err = capsys.readouterr()
    values = json.loads(out)
    assert values["interrupted"] is True
    assert [row["frames"] for row in values["rows"]] == [2, 4]
    assert "stopped after 2 of 3 runs" in err
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_is_a_row_without_a_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_runner, "run_job", scripted(good(800)))
    assert sweep("--frames", "2,90", "--size", "1120x1120", "--vram", "1500MiB") == ExitCode.OK
    out, err = capsys.readouterr()
    assert "does not fit" in out
    assert "tokens, and the model's context is" in err


def test_sizes_hold_the_tokens_and_say_how_flat_the_peak_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_runner, "run_job", scripted(good(800), good(820), good(808)))
    plot = tmp_path / "sizes.png"
    assert sweep("--sizes", "320x320,160x160,128x96", "--frames", "4", "--plot", str(plot)) == ExitCode.OK
    out, err = capsys.readouterr()
    assert [line.split()[:3] for line in out.splitlines() if "×" in line] == [
        ["4", "320×320", "200"], ["16", "160×160", "200"], ["34", "128×96", "204"],
    ]  # fmt: skip
    assert "peaks within 2.5% (20.0% without the runtime)" in out  # 100 and 120 MiB beside 700
    assert "one token budget for every size: 204 visual tokens, at most 2.0% fewer" in err
    assert plot.stat().st_size > 5000


def test_when_nothing_ran_the_command_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_runner, "run_job", scripted({"outcome": "failed", "detail": "no such kernel"}))
    assert sweep("--frames", "2") == ExitCode.FAILED
    assert "no such kernel" in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidqa.cli.charts.find_spec", lambda name: None)
    monkeypatch.setattr(sweep_runner, "run_job", scripted())
    assert sweep("--plot", "x.png") == ExitCode.USAGE
    assert 'pip install "vidqa[plot]"' in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "two"], "no list of frame counts"),
        (["--sizes", "140x140", "--frames", "2,4"], "several counts"),
        (["--sizes", "140x140", "--size", "140x140"], "exclude each other"),
        (["--sizes", "1120x1120,28x28"], "the video has"),
        (["--plot", "picture.pdf"], "neither a PNG nor an SVG"),
        (["--plot", "nowhere/picture.png"], "folder of nowhere/picture.png does not exist"),
        (["--limit", "much"], "not a size"),
        (["--question", " "], "question is empty"),
        (["--weights", "fp8"], "does not run them yet"),
    ],
)
def test_a_refusal_is_one_paragraph(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_runner, "run_job", scripted())
    assert sweep(*words) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert said in " ".join(err.split())
