"""benchmarks/README.md is what the committed results say, and every kind of result has its section."""

import re
from pathlib import Path
from typing import Any

import pytest
from render_benchmarks import draw, load, render

from benchlib.rows import RESULTS, Bar, Row, row_object, seconds_row

ENVIRONMENT = {"device": "a card", "torch": "2", "transformers": "5", "python": "3", "date": "2026-01-01"}
SWEPT = {
    "side": "vidqa", "asked": 8, "frames": 8, "width": 56, "height": 56, "visual_tokens": 16, "outcome": "ok",
    "predicted_peak_bytes": 2**30, "peak_bytes": 2**30, "first_token_s": 0.5, "notes": ["one"],
}  # fmt: skip
SWEEP = {
    "swept": "frames", "model": "m", "device": {"name": "a card"}, "limit_bytes": None,
    "rows": [SWEPT, SWEPT | {"frames": 16, "outcome": "out_of_memory", "peak_bytes": None, "first_token_s": None}],
}  # fmt: skip
PRECISIONS = {
    "environment": ENVIRONMENT, "clips": 2000, "questions_per_clip": 4, "missed": ["nf4 loses 3 points"],
    "rows": {"nf4": {"weights_bytes": 10**6, "right": 0.97, "count": 8000, "points": -0.5, "points_error": 0.1,
                     "kl_mean": 0.01, "kl_p99": 0.2, "lost": 50, "won": 10}},
}  # fmt: skip


def gpu_result() -> dict[str, Any]:
    rows = [
        row_object(seconds_row("decode-2b", "compiled, a token", [0.001, 0.002, 0.003]), None),
        row_object(Row("decode-2b", "share|of", 0.5, "share", "a / b"), Bar(0.4, goal=0.55)),
        row_object(Row("follow-up", "second / first", 0.2, "share", "c / d"), Bar(0.1, "<=")),
    ]
    ends = [{"section": "nf4", "outcome": "skipped", "detail": "bitsandbytes is not installed", "seconds": 0.0}]
    return {"kind": "gpu", "environment": ENVIRONMENT, "tiny": False, "finished": True, "sections": ends,
            "missed": ["follow-up: second / first: 0.2 is not <= 0.1"], "rows": rows}  # fmt: skip


def test_the_committed_page_is_what_the_committed_results_say() -> None:
    page = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert page == render(load(RESULTS)), "run scripts/render_benchmarks.py"
    for picture in re.findall(r"\]\(([^)]+\.svg)\)", page):
        assert (RESULTS.parent / picture).exists()


def test_nothing_measured_is_said_in_a_line_each() -> None:
    page = render({})
    assert page.count("Not measured yet") == 14
    assert "`scripts/gpu_check` has not been run on a GPU" in page


def test_the_sessions_latencies_are_a_table_with_bars() -> None:
    row = row_object(Row("keys", "idle, p99", 0.2, "s", "nearest rank"), Bar(0.15, "<="))
    told = {"kind": "tui", "environment": ENVIRONMENT, "cores": 2, "missed": ["keys: idle, p99"], "rows": [row]}
    page = render({"tui-cpu": told})
    assert "| keys: idle, p99 | 0.2 s | <= 0.15 MISSED |" in page
    assert "- missed: keys: idle, p99" in page and "2 cores." in page


def test_a_gpu_result_shows_bars_misses_and_what_was_skipped() -> None:
    page = render({"gpu-card": gpu_result()})
    assert "1 of 2 measured bars are met." in page
    assert "- missed: follow-up: second / first: 0.2 is not <= 0.1" in page
    assert "- nf4 skipped: bitsandbytes is not installed" in page
    assert "| share\\|of | 50.0% | >= 40% ok (goal 55%) |" in page
    assert "| compiled, a token | 0.002 s |  | 0.002 | 0.003 | 3 | median |" in page


def test_sweeps_and_precisions_have_their_tables() -> None:
    page = render({"sweep-card": SWEEP, "precisions-cpu": PRECISIONS})
    assert "| vidqa | 16 | 56×56 | 16 | 1.0 GiB | out of memory | – |" in page
    assert "-0.50 ± 0.10" in page
    assert "- missed: nf4 loses 3 points" in page


def test_what_no_benchmark_writes_is_refused() -> None:
    with pytest.raises(ValueError, match="strange"):
        render({"strange": {"rows": []}})


@pytest.mark.parametrize("result", [gpu_result(), SWEEP, load(RESULTS)["memory-cpu"]])
def test_pictures_are_the_same_each_time(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    for _ in range(2):
        name = draw("x", result, tmp_path)
        assert name == "x.svg"
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1]


def test_a_result_without_a_picture_draws_none(tmp_path: Path) -> None:
    assert draw("x", PRECISIONS, tmp_path) is None
    assert not list(tmp_path.iterdir())
