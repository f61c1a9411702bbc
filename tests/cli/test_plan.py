"""`vidqa plan`: its text, matrix and JSON, its refusals, and that it imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vidqa.cli.console import ExitCode
from vidqa.cli.main import run

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")


def plan(*words: str) -> int:
    return run(["plan", CLIP, *words])


def plan_object(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert plan(*words, "--json") == ExitCode.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_table_shows_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu", "rtx4060", "--model", "7b") == ExitCode.OK
    shown = capsys.readouterr().out
    for word in ("nf4 weights", "8 frames", "budget 7.6 GiB", "6,525,621,760 parameters in nf4", "margin", "total",
                 "phases", "limit     nf4 weights: bf16 would need", "frames at 0:00.0 0:00.6"):  # fmt: skip
        assert word in shown
    assert "[█" in shown


def test_the_table_and_the_legend_use_the_same_words_and_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu", "rtx4060", "--model", "7b") == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    rows = lines[lines.index("memory at its peak, in the prefill phase") + 1 :]
    table = [line for line in rows[: next(n for n, line in enumerate(rows) if line.startswith("  ["))]]
    shares = list(dict.fromkeys(line[2:15].strip() for line in table))
    assert shares == ["weights", "KV cache", "activations", "runtime", "margin", "total"]
    legend = next(line for line in rows if line.startswith("  [")).partition("] ")[2]
    assert [part[2:].rsplit(" ", 2)[0] for part in legend.split(", ")] == shares[:-1]
    assert "· margin 198.3 MiB" in legend and "  margin " in table[-2] and "198.3 MiB" in table[-2]


def test_one_pass_is_compared_with_the_same_weights_frames_runtime_and_margin(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("--gpu", "rtx4060", "--model", "7b") == ExitCode.OK
    shown = capsys.readouterr().out
    assert "compare   6.6 GiB here, 7.7 GiB in one pass with unfused attention: same weights and frames" in shown
    assert "96 frames of 392×280 fit here in 7.0 GiB; one pass would need 19.5 GiB for them, and holds none" in shown


def test_the_object_has_the_documented_fields(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan_object(capsys, "--gpu", "t4", "--model", "2b", "--max-tokens", "32")
    assert set(found) == {"schema_version", "video", "plan", "alternatives"}
    planned = found["plan"]
    assert sum(line["bytes"] for line in planned["lines"]) == planned["required_bytes"]
    assert planned["required_bytes"] == planned["predicted_peak_bytes"] + planned["margin_bytes"]
    assert planned["required_bytes"] <= planned["budget_bytes"]
    assert max(planned["phase_bytes"].values()) == planned["predicted_peak_bytes"]
    assert planned["weights"] == planned["dtype"] == "fp16"
    assert all({"name", "bytes", "formula", "kind"} == set(line) for line in planned["lines"])
    assert [other["kind"] for other in found["alternatives"]] == ["cheaper"]


def test_it_is_the_object_of_ask(capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan_object(capsys, "--model", "demo", "--device", "cpu")["plan"]
    assert run(["ask", CLIP, "what happens?", "--model", "demo", "--device", "cpu", "--json"]) == ExitCode.OK
    ran = json.loads(capsys.readouterr().out)["plan"]
    assert planned.keys() == ran.keys()
    same = ("model", "device", "weights", "kv", "frames", "height", "width", "timestamps_s", "kv_capacity_tokens")
    assert {key: planned[key] for key in same} == {key: ran[key] for key in same}


def test_a_plan_without_a_question_says_nothing_about_one(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    words = ("--model", "demo", "--device", "cpu", "--frames", "2", "--focus", "auto")
    for question in (None, "what happens?", "what color is the circle?"):
        assert plan(*words, *(("--question", question) if question else ())) == ExitCode.OK
        shown[question] = capsys.readouterr().out
    assert "8 frames are looked at, and the 2 that a question points to are read" in shown[None]
    assert "focus     even, the question is about the whole video" in shown["what happens?"]
    assert (
        "8 frames are looked at, and the 2 that the question points to are read" in shown["what color is the circle?"]
    )
    assert plan(*words, "--question", "") == ExitCode.USAGE
    assert "The question is empty." in capsys.readouterr().err


def test_every_gpu_of_the_catalog(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu", "all") == ExitCode.OK
    shown = capsys.readouterr().out
    first, *others = shown.splitlines()
    assert first == (
        "recommended: Qwen3-VL-8B (vidqa pull 3-vl-8b, 17.5 GB): the best expected score on 33 of 36 cards"
    )
    assert "Qwen3-VL-4B on 2 (--model 3-vl-4b)" in shown
    heads = next(line for line in others if line.startswith("cards"))
    assert heads.split()[-5:] == ["size", "first", "word", "memory", "head-room"]
    twelve = next(line for line in others if "RTX 4070, RTX 3060 12 GB, RTX 3080 12 GB" in line)
    assert {"Qwen3-VL-8B", "int8", "8", "448×320"} <= set(twelve.split())  # cards with the same plan share a row
    assert sum(line.count("RTX 4070") for line in others) == 1
    assert plan("--gpu", "all", "--model", "7b") == ExitCode.OK
    named = capsys.readouterr().out
    assert named.startswith("Qwen2-VL-7B fits on 33 of 36 cards") and "nothing fits on: Apple M1 8 GB" in named
    assert plan("--gpu", "all", "--model", "all") == ExitCode.OK
    matrix = capsys.readouterr().out.splitlines()
    assert len(matrix) > 30 and "8 × 392×280 nf4 118" in next(line for line in matrix if "NVIDIA T4" in line)
    cells = plan_object(capsys, "--gpu", "all", "--model", "demo", "--weights", "nf4")["matrix"]
    assert {cell["model"] for cell in cells} == {"demo"}
    assert all(cell["plan"]["weights"] == "nf4" for cell in cells if cell["plan"])


def test_every_gpu_says_what_a_question_selects(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--gpu", "all", "--model", "7b", "--frames", "2", "--focus", "auto", "--no-calibrate")
    for more, said in (
        (("--prune", "0.25"), "focus: even, since visual tokens are dropped (--prune)"),
        (("--max-wait", "1.5"), "focus: a question selects the frames on 30 of 33 cards; --gpu NAME says why not on"),
        (("--question", "what happens?"), "focus: even, the question is about the whole video"),
        (("--focus", "off"), None),
    ):
        assert plan(*words, *more) == ExitCode.OK
        shown = capsys.readouterr().out
        assert (said in shown) if said else ("focus" not in shown)


def test_auto_says_which_model_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu", "rtx4060", "--model", "auto") == ExitCode.OK
    shown = capsys.readouterr().out
    assert "Qwen/Qwen3-VL-8B-Instruct in nf4 is expected to answer best here" in shown
    assert "72B-Instruct needs" in shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--gpu", "rtx4060", "--model", "7b", "--weights", "bf16"], ExitCode.DOES_NOT_FIT, "What fits: --weights nf4"),
        (["--gpu", "abacus"], ExitCode.USAGE, "abacus"),
        (["--vram", "100MiB", "--model", "2b"], ExitCode.DOES_NOT_FIT, "100.0 MiB are allowed by --vram"),
        (
            ["--gpu", "t4", "--vram", "4GiB", "--model", "7b"],
            ExitCode.DOES_NOT_FIT,
            "Qwen3-VL-4B would fit: --model 3-vl-4b, ",
        ),
        (
            ["--gpu", "t4", "--vram", "1GiB", "--model", "7b"],
            ExitCode.DOES_NOT_FIT,
            "No released model fits; the smallest is Qwen2-VL-2B (--model 2b), from 2.0 GiB.",
        ),
        (["--vram", "1GiB", "--reserve", "2GiB", "--model", "2b"], ExitCode.USAGE, "Nothing is left"),
        (["--max-wait", "never"], ExitCode.USAGE, "--max-wait never is not allowed. Allowed: a time"),
        (["--prefill-chunk", "0"], ExitCode.USAGE, "--prefill-chunk 0"),
        (["--model", "someone/else"], ExitCode.MODEL_MISSING, "someone/else"),
        (["--question", " ", "--gpu", "t4"], ExitCode.USAGE, "question is empty"),
    ],
)
def test_a_refusal_is_one_paragraph(
    words: Sequence[str], code: ExitCode, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*words) == code
    out, err = capsys.readouterr()
    assert out == "" and said in " ".join(err.split())


def test_a_model_with_experts_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu", "h100", "--model", "Qwen/Qwen3-VL-30B-A3B-Instruct") == ExitCode.OK
    assert "Qwen3-VL-30B-A3B" in capsys.readouterr().out


def test_frames_past_the_usual_wait_are_planned_with_the_time_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--model", "2b", "--gpu", "m-16", "--frames", "48", "--size", "560x392") == ExitCode.OK
    out = capsys.readouterr().out
    assert "these frames take about" in out and "past the usual 30 s (--max-wait auto); --frames" in out


def test_a_plan_says_why_its_frames_lie_where_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--gpu", "rtx4060", "--model", "2b", "--frames", "4")
    assert plan(*words) == ExitCode.OK
    usual = capsys.readouterr().out
    assert "sampling  even frames: they are 1.3 s apart and miss little" in usual and "change  " not in usual
    assert plan(*words, "--sample", "uniform") == ExitCode.OK
    even = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("note      frames every 1.3")]
    assert even == [line for line in usual.splitlines() if not line.startswith("sampling")]
    assert plan(*words, "--sample", "change") == ExitCode.OK
    shown = capsys.readouterr().out
    assert "4 frames of" in shown and " by change, " in shown
    assert "sampling  frames by change: 4 of 4 where it happens" in shown and "change    ▁▁▁▂" in shown


def test_the_scan_of_an_even_plan_is_not_in_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = plan_object(capsys, "--gpu", "t4", "--model", "2b")["plan"]["predicted_s"]
    assert seconds["scan"] == 0
