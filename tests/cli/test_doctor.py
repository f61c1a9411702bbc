"""`vidqa doctor`: each check's status and remedy, also where the check itself fails."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.devices.scripted_nvml import GIB, Card, ScriptedNvml, machine, no_driver
from vidqa.cli import doctor
from vidqa.cli.main import run
from vidqa.devices.device import find_device
from vidqa.devices.host import Machine, usable_cores
from vidqa.diagnostics import health_checks
from vidqa.diagnostics.health_checks import Check, Subject, passed, run_checks
from vidqa.planner import calibration

HERE = machine(no_driver())


def call(*words: str) -> int:
    return run(["doctor", *words])


def look(*names: str, device: str = "auto", model: str | None = None, here: Machine = HERE) -> dict[str, Check]:
    """The findings of the questions with these names."""
    subject = Subject(model, device, False, here, deep=True)
    found = [check for name in names for check in health_checks._guarded(name, health_checks._CHECKS[name], subject)]
    return {check.name: check for check in found}


def test_on_a_processor_all_is_well(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path))  # without the peaks that other tests saved
    assert call("--device", "cpu", "--model", "demo") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert all(line.startswith(("✓", "–", " ")) for line in lines)
    for name in ("torch", "device", "ffmpeg", "bitsandbytes", "attention", "model", "predictions"):
        assert any(line[2:].startswith(name) for line in lines)
    dtype = "bfloat16" if find_device("cpu").bf16 else "float32"
    assert f"6/2 heads of 32, {dtype}" in out


def test_without_deep_nothing_slow_is_loaded() -> None:
    subject = Subject(None, "cpu", False, HERE)
    (found,) = health_checks._guarded("bitsandbytes", health_checks._CHECKS["bitsandbytes"], subject)
    assert found.status == "ok" and "not loaded" in found.detail and found.remedy.startswith("--deep")
    card = machine(ScriptedNvml(Card("NVIDIA A10G", total=22 * GIB, reserved=0, free=20 * GIB, capability=(8, 6))))
    step = health_checks._guarded(
        "decode step", health_checks._CHECKS["decode step"], Subject(None, "auto", False, card)
    )
    assert [(check.status, check.detail) for check in step] == [("absent", "not tried")]


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--device", "cpu", "--model", "demo", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert all(set(row) == {"name", "status", "detail", "remedy"} for row in found["checks"])
    assert {row["status"] for row in found["checks"]} <= {"ok", "bad", "absent"}
    assert found["device"]["kind"] == "cpu"
    assert found["device"]["free_bytes"] > 0


def test_a_missing_model_fails_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--device", "cpu", "--model", "some/model") == 1
    out = capsys.readouterr().out
    assert "✗ model" in out and "→ Fetch it with `vidqa pull some/model`" in out


def test_a_missing_device_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--device", "cuda:99", "--model", "demo", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["device"] is None
    assert {row["name"] for row in found["checks"] if row["status"] == "bad"} >= {"device", "attention"}


def test_a_check_that_raises_is_a_finding() -> None:
    def broken() -> Any:
        raise OSError("libnvidia-ml.so: wrong ELF class\nmore")

    found = [*run_checks(Subject("demo", "cpu", False, Machine(nvml=broken)))]
    shown = (found[0].name, found[0].status, found[0].detail)
    assert shown == ("driver", "bad", "OSError: libnvidia-ml.so: wrong ELF class")
    assert passed(found)  # a CPU needs no driver


def test_no_driver_is_no_fault_unless_a_gpu_was_asked_for() -> None:
    assert look("driver")["driver"].status == "absent"
    assert look("driver", device="cuda")["driver"].status == "bad"
    check = look("driver", here=machine(ScriptedNvml(Card())))["driver"]
    assert (check.status, check.detail) == ("ok", "NVIDIA 570.86.15, runs CUDA up to 12.8")


def test_a_gpu_with_its_processes_and_kernels() -> None:
    card = Card("Tesla T4\x1b[2J", total=15 * GIB, reserved=0, free=9 * GIB, capability=(7, 5))
    found = look("device", "triton", here=machine(ScriptedNvml(card)))
    assert found["device"].detail.endswith(": 9.0 GiB free of 15.0 GiB; compute capability 7.5")
    assert found["other processes"].detail == "hold 6.0 GiB; this process 0 B"
    assert found["triton"].status == "absent"
    assert "7.5" in found["triton"].detail


def test_escape_codes_of_a_name_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    doctor._show(Check("device", "bad", "Tesla T4\x1b[2J\nnext", "do\x07 this"))
    out = capsys.readouterr().out
    assert out == f"✗ {'device':27} Tesla T4\\x1b[2J\\nnext\n{'':29} → do\\x07 this\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")
def test_a_gpu_that_torch_cannot_use() -> None:
    check = look("torch", here=machine(ScriptedNvml(Card())))["torch"]
    assert check.status == "bad"
    assert "cannot use the GPU" in check.detail
    assert check.remedy
    assert look("torch", device="cpu", here=machine(ScriptedNvml(Card())))["torch"].status == "ok"


@pytest.mark.parametrize(
    ("libavcodec", "status"), [((61, 19, 101), "bad"), ((62, 11, 100), "bad"), ((62, 28, 0), "ok")]
)
def test_an_old_ffmpeg_is_named(libavcodec: tuple[int, ...], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"libavcodec": libavcodec, "libavformat": (62, 0, 0), "libswscale": (9, 0, 0)}
    av = SimpleNamespace(library_versions=libraries, ffmpeg_version_info="n", __version__="1")
    monkeypatch.setitem(sys.modules, "av", av)
    check = look("ffmpeg")["ffmpeg"]
    assert check.status == status
    assert ("CVE-2026-40962" in check.detail) == (status == "bad")
    assert passed([check])  # a risk, but it answers


def test_without_a_compiler_flex_cannot_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = look("compiler")["compiler"]
    assert (check.status, check.remedy) == ("absent", "Install g++ or clang.")


def test_the_measured_speed_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path))
    assert look("speed")["speed"].status == "absent"
    key = calibration.device_key(find_device("cpu", HERE), usable_cores(HERE))
    calibration.store_rates(key, {"bf16": calibration.Rates(4.3e11, 8e10, 2.8e10, 2e-6)}, "2.15", 0.0)
    check = look("speed")["speed"]
    assert (check.status, check.detail) == (
        "ok", "measured here: bf16 products 430 GFLOP/s, weights read at 28 GB/s",
    )  # fmt: skip


@pytest.mark.parametrize(("ratio", "status"), [(0.9, "ok"), (1.02, "ok"), (1.06, "bad")])
def test_predictions_that_are_too_low_are_a_fault(ratio: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks.calibration, "summary", lambda: (12, ratio))
    check = look("predictions")["predictions"]
    assert check.status == status
    assert f"{(ratio - 1) * 100:+.1f} % of planned ones, 12 run(s)" in check.detail


def test_a_terminal_without_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="cp1252"))
    assert [doctor._mark(status) for status in ("ok", "bad", "absent")] == ["ok", "BAD", "-"]


@pytest.mark.needs_cuda
def test_on_a_gpu_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--device", "cuda", "--model", "demo", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {row["name"]: row for row in found["checks"]}
    assert found["device"]["kind"] == "cuda"
    assert by_name["driver"]["status"] == by_name["torch"]["status"] == "ok"
    assert "math" not in by_name["attention"]["detail"]
