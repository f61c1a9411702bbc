"""`vidqa sweep` on a GPU: the driver's and the allocator's numbers, and a limit that holds."""

import json
from pathlib import Path

import pytest

from vidqa.cli.console import ExitCode
from vidqa.cli.main import run

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")

pytestmark = pytest.mark.needs_cuda


def test_both_sides_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "demo", "--device", "cuda", "--frames", "4,16", "--baseline", "--json")
    assert run(["sweep", CLIP, *words]) == ExitCode.OK
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["outcome"] for row in rows] == ["ok"] * 4
    for row in rows:
        assert row["peak_bytes"] > row["runtime_bytes"] + row["weights_bytes"]


def test_a_limit_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "demo", "--device", "cuda", "--frames", "80", "--size", "420x420", "--baseline", "--json")
    assert run(["sweep", CLIP, *words, "--limit", "700MiB"]) == ExitCode.OK
    for row in json.loads(capsys.readouterr().out)["rows"]:
        if row["outcome"] == "ok":
            assert row["peak_bytes"] <= 700 * 2**20
        else:
            assert row["outcome"] in {"out_of_memory", "does_not_fit"}
