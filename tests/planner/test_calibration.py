"""What is stored of past runs; a file that cannot be read or written is no error."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.planner.plan_builders import made_device
from vidqa.planner import calibration
from vidqa.planner.calibration import Rates


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_runs_are_stored_per_device(folder: Path) -> None:
    device = made_device(8)
    assert calibration.summary() is None and calibration.measured_runtime(device) is None
    for measured, runtime in ((900, 300), (1000, 410), (1100, 400)):
        calibration.remember_peaks(device, "2b", "bf16", 1000, measured, runtime)
    assert calibration.summary() == (3, 1.0)
    assert calibration.measured_runtime(device) == 410  # the largest of the last: a plan may rather be high
    assert calibration.measured_runtime(made_device(8, bf16=False)) == 410  # the same name
    assert [row["measured_bytes"] for row in calibration.runs()] == [900, 1000, 1100]


def test_broken_lines_are_skipped_and_old_ones_dropped(folder: Path) -> None:
    device = made_device(8)
    calibration.remember_peaks(device, "2b", "bf16", 1000, 1000, None)
    journal = folder / "memory.jsonl"
    journal.write_text(journal.read_text() + '{"device": "torn\n[]\n{}\n')
    assert len(list(calibration.runs())) == 1
    for _ in range(600):
        calibration.remember_peaks(device, "2b", "bf16", 1000, 1200, None)
    assert len(list(calibration.runs())) == 500
    assert calibration.summary() == (500, 1.2)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("VIDQA_STATE", str(blocked / "below"))
    calibration.remember_peaks(made_device(8), "2b", "bf16", 1000, 1000, None)
    assert calibration.summary() is None


def test_on_a_cpu_only_runs_of_tensors_are_compared(folder: Path) -> None:
    device = replace(made_device(8), kind="cpu", name="a processor")
    folder.mkdir()
    old = '{"device": "cpu:a processor", "predicted_bytes": 1000, "measured_bytes": 1300, "runtime_bytes": 900}'
    (folder / "memory.jsonl").write_text(old + "\n")
    assert calibration.summary() is None and calibration.measured_runtime(device) is None
    calibration.remember_peaks(device, "demo", "fp32", 1000, 950, 800)
    assert calibration.summary() == (1, 0.95) and calibration.measured_runtime(device) == 800


RATES = Rates(4e11, 8e10, 2.8e10, 2e-6)
KEY = "cpu:a CPU:2"


def test_rates_are_kept_by_device_and_precision_until_torch_changes() -> None:
    assert calibration.stored_speed(KEY, "2b") == calibration.DeviceSpeed()
    calibration.store_rates(KEY, {"bf16": RATES}, "2.15", now=1.0)
    calibration.store_rates("cuda:a GPU", {"bf16": replace(RATES, operation_seconds=1e-5)}, "2.15", now=1.0)
    calibration.store_rates(KEY, {"fp32": replace(RATES, matmul_flops_per_second=1e11)}, "2.15", now=2.0)
    measured = calibration.stored_speed(KEY, "2b").measured
    assert measured == {"bf16": RATES, "fp32": replace(RATES, matmul_flops_per_second=1e11)}
    assert calibration.stored_precisions(KEY, "2.15") == {"bf16", "fp32"}
    assert calibration.stored_precisions(KEY, "2.16") == frozenset()  # other kernels: measured anew
    calibration.store_rates(KEY, {"bf16": RATES}, "2.16", now=3.0)
    assert calibration.stored_speed(KEY, "2b").measured == {"bf16": RATES}


def remember(model: str = "2b", weights: str = "bf16", since: float = 1.0, **ratios: float) -> None:
    """Store an answer whose stages took `ratios` times what was predicted by the rates of `since`."""
    predicted, measured = dict.fromkeys(ratios, 2.0), {stage: 2.0 * ratio for stage, ratio in ratios.items()}
    calibration.remember_times(KEY, since, model, weights, predicted, measured)


def test_corrections_are_medians_of_the_last_answers_of_a_model() -> None:
    calibration.store_rates(KEY, {"bf16": RATES}, "2.15", now=1.0)
    for ratio in (9.0, *[1.0] * 4, *[1.5] * 5):
        remember(vision=ratio, start=ratio)
    remember("7b", vision=3.0, start=3.0)
    remember(weights="fp32", vision=5.0)
    speed = calibration.stored_speed(KEY, "2b")
    assert speed.corrections["bf16"] == {"start": 1.5, "vision": 1.5}  # start is shared by all models
    assert speed.corrections["fp32"]["vision"] == 5.0
    assert calibration.stored_speed(KEY, "7b").corrections["bf16"]["vision"] == 3.0
    assert calibration.stored_speed("cpu:a CPU:1", "2b").corrections == {}
    assert speed.corrections["nf4"] == {"start": 1.5}  # what every precision shares


def test_times_of_before_a_new_calibration_do_not_count() -> None:
    calibration.store_rates(KEY, {"bf16": RATES}, "2.15", now=1.0)
    remember(vision=2.0)
    calibration.store_rates(KEY, {"fp32": RATES}, "2.15", now=2.0)  # one more precision: the others' times still hold
    assert calibration.stored_speed(KEY, "2b").corrections["bf16"] == {"vision": 2.0}
    calibration.store_rates(KEY, {"bf16": replace(RATES, operation_seconds=1.0)}, "2.15", now=3.0)
    speed = calibration.stored_speed(KEY, "2b")
    assert speed.measured["bf16"] == RATES and speed.measured_at == 1.0  # another process was first
    calibration.store_rates(KEY, {"bf16": RATES}, "2.16", now=4.0)
    remember(vision=0.1, since=1.0)  # an answer that the old rates predicted ends late
    assert calibration.stored_speed(KEY, "2b").corrections == {}


def test_rates_that_an_answer_refutes_are_forgotten() -> None:
    def measured() -> dict[str, Rates]:
        return dict(calibration.stored_speed(KEY, "2b").measured)

    calibration.store_rates(KEY, {"bf16": RATES, "int8": RATES}, "2.15", now=1.0)
    calibration.store_rates("cuda:a GPU", {"bf16": RATES}, "2.15", now=1.0)
    remember(decode=0.06)  # slow rates, but not impossible ones: a correction is enough
    calibration.remember_times(KEY, 1.0, "2b", "bf16", {"decode": 0.05}, {"decode": 1e-4})  # too short to tell
    calibration.remember_times(KEY, 1.0, "2b", "bf16", {"start": 2.0}, {"start": 1e-4})  # no rate predicts it
    calibration.remember_times(KEY, 0.5, "2b", "bf16", {"decode": 2.0}, {"decode": 0.02})  # by earlier rates
    assert measured() == {"bf16": RATES, "int8": RATES}
    remember(decode=0.04)
    assert measured() == {} and calibration.stored_precisions(KEY, "2.15") == frozenset()
    assert calibration.stored_speed("cuda:a GPU", "2b").measured == {"bf16": RATES}
    calibration.store_rates(KEY, {"bf16": RATES}, "2.15", now=9.0)
    assert calibration.stored_speed(KEY, "2b").corrections == {}  # answers that the old rates predicted do not count


@pytest.mark.parametrize("ratio", [1e-3, 50.0])
def test_a_timing_out_of_reason_corrects_nothing(ratio: float) -> None:
    calibration.store_rates(KEY, {"bf16": RATES}, "2.15", now=1.0)
    remember(vision=ratio)
    assert calibration.stored_speed(KEY, "2b").corrections == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"cpu:a CPU:2": 3}', '{"cpu:a CPU:2": {"rates": {"bf16": {"matmul_flops_per_second": -1}}}}',
     '{"cpu:a CPU:2": {"rates": {"bf16": {"matmul_flops_per_second": Infinity}, "fp32": null}}}', "[" * 100_000,
     '{"cpu:a CPU:2": {"rates": {"bf16": {"matmul_flops_per_second": 1' + "0" * 400 + "}}}}"],
)  # fmt: skip
def test_damaged_files_count_as_nothing_measured(text: str) -> None:
    folder = calibration.state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rates.json").write_text(text)
    (folder / "times.jsonl").write_text(f"{text}\nnull\n" + '{"device": 1}\n')
    assert calibration.stored_speed(KEY, "2b").measured == {}
    calibration.store_rates(KEY, {"bf16": RATES}, "2.15", now=1.0)
    remember(vision=2.0)
    assert calibration.stored_speed(KEY, "2b").corrections["bf16"] == {"vision": 2.0}


def test_a_damaged_rate_is_measured_anew() -> None:
    calibration.store_rates(KEY, {"bf16": RATES, "int8": RATES}, "2.15", now=1.0)
    path = calibration.state_folder() / "rates.json"
    path.write_text(path.read_text().replace("400000000000.0", "0", 1))
    (damaged,) = {"bf16", "int8"} - calibration.stored_precisions(KEY, "2.15")
    calibration.store_rates(KEY, {damaged: RATES}, "2.15", now=2.0)
    assert calibration.stored_speed(KEY, "2b").measured == {"bf16": RATES, "int8": RATES}


def test_only_the_last_200_answers_are_kept() -> None:
    for _ in range(205):
        remember(vision=1.0)
    assert len((calibration.state_folder() / "times.jsonl").read_text().splitlines()) == 200


def test_a_folder_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIDQA_STATE", str(tmp_path / "file" / "state"))
    calibration.store_rates(KEY, {"bf16": RATES}, "2.15", now=1.0)
    remember(vision=1.0)
    assert calibration.stored_speed(KEY, "2b") == calibration.DeviceSpeed()
