"""The journal of measured peaks; one that cannot be read or written is no error."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.planner.plan_builders import made_device
from vidqa.planner import calibration


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_runs_are_stored_per_device(folder: Path) -> None:
    device = made_device(8)
    assert calibration.summary() is None and calibration.measured_runtime(device) is None
    for measured, runtime in ((900, 300), (1000, 410), (1100, 400)):
        calibration.remember(device, "2b", "bf16", 1000, measured, runtime)
    assert calibration.summary() == (3, 1.0)
    assert calibration.measured_runtime(device) == 410  # the largest of the last: a plan may rather be high
    assert calibration.measured_runtime(made_device(8, bf16=False)) == 410  # the same name
    assert [row["measured_bytes"] for row in calibration.runs()] == [900, 1000, 1100]


def test_broken_lines_are_skipped_and_old_ones_dropped(folder: Path) -> None:
    device = made_device(8)
    calibration.remember(device, "2b", "bf16", 1000, 1000, None)
    journal = folder / "memory.jsonl"
    journal.write_text(journal.read_text() + '{"device": "torn\n[]\n{}\n')
    assert len(list(calibration.runs())) == 1
    for _ in range(600):
        calibration.remember(device, "2b", "bf16", 1000, 1200, None)
    assert len(list(calibration.runs())) == 500
    assert calibration.summary() == (500, 1.2)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("VIDQA_STATE", str(blocked / "below"))
    calibration.remember(made_device(8), "2b", "bf16", 1000, 1000, None)
    assert calibration.summary() is None


def test_on_a_cpu_only_runs_of_tensors_are_compared(folder: Path) -> None:
    device = replace(made_device(8), kind="cpu", name="a processor")
    folder.mkdir()
    old = '{"device": "cpu:a processor", "predicted_bytes": 1000, "measured_bytes": 1300, "runtime_bytes": 900}'
    (folder / "memory.jsonl").write_text(old + "\n")
    assert calibration.summary() is None and calibration.measured_runtime(device) is None
    calibration.remember(device, "demo", "fp32", 1000, 950, 800)
    assert calibration.summary() == (1, 0.95) and calibration.measured_runtime(device) == 800
