"""What the benchmarks share: models, the twin of a device, exactness, planned memory, and tests as rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check import BARS
from torch import nn

from benchlib import capped_sweep, captioning, decoding, device_tests, exactness, planned
from benchlib.accelerator import Host
from benchlib.bench import Bench
from benchlib.device_tests import needs_cuda_files, row_of
from benchlib.exactness import captured_step
from benchlib.models import build, load, reduced, write_random_model
from benchlib.planned import Measured, Setup, measure, plan_row, summarise
from benchlib.rows import Row
from benchlib.sections import Skipped
from tests.engine.asking import ask
from vidqa import EngineConfig, Session
from vidqa.models.checkpoint import read_spec
from vidqa.planner.weight_memory import part_bytes
from vidqa.types import Placement


def test_models_have_the_bytes_that_a_plan_gives_them() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    spec = reduced("2b", 2, 192)
    for weights in ("bf16", "nf4", "nf4-dq", "int8"):
        for place in (Placement(), Placement(vision_quantized=True, lm_head_quantized=True)):
            if weights == "int8" and place.vision_quantized:
                continue  # no plan has it
            model = build(spec, torch.device("cpu"), torch.bfloat16, weights, place)
            loaded = load(model, torch.device("cpu"), torch.bfloat16, weights, place)
            parts = ("layers", "embedding", "lm_head", "vision")
            wanted = sum(part_bytes(spec, part, weights, "bf16", place) for part in parts)
            assert loaded.model.weights_bytes == pytest.approx(wanted, rel=0.02), (weights, place)


def test_a_table_on_the_host_and_a_shared_one() -> None:
    host = build(
        reduced("2b", 1, 192), torch.device("cpu"), torch.bfloat16, "native", Placement(embedding_on_host=True)
    )
    assert host.get_input_embeddings().weight.device.type == "cpu"

    tied = build(replace(reduced("2b", 1, 192), tied=True), torch.device("cpu"), torch.bfloat16)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert not any(tensor.is_meta for tensor in (*tied.parameters(), *tied.buffers()))


def test_a_written_model_answers(tmp_path: Path) -> None:
    """The benches' checkpoints are Qwen2-VL's, with the tokenizer of a demo model of another family."""
    spec, folder = reduced("2b", 1, 192), tmp_path / "model"
    write_random_model(spec, folder)
    written = read_spec(folder)
    names = ("model_type", "layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary", "tied", "vision")
    assert [getattr(written, name) for name in names] == [getattr(spec, name) for name in names]
    with Session(EngineConfig(model=str(folder), isolate_decoder=False, remember=False)) as session:
        assert ask(session, frames=2, size=(56, 56), max_tokens=2).plan.visual_tokens == 4


def test_a_wrong_step_is_no_longer_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    make_step = exactness.make_step

    def shifted(kind: str, loaded: Any, caches: Any, positions: Any, sampler: Any) -> Any:
        if kind in ("captured", "plain"):
            caches[0].length -= 1  # the newest cached token is overwritten
        return make_step(kind, loaded, caches, positions, sampler)

    monkeypatch.setattr(exactness, "make_step", shifted)
    torch.set_num_threads(1)
    for row in captured_step(Bench(Host(), tiny=True)):
        if row.name.endswith("fused layers"):
            assert (row.value, row.note) == (0.0, "on cpu it runs as it is")
            continue
        assert row.value is not None and not BARS[row.key].met_by(row.value), row


def test_a_device_is_usable_after_a_failed_section() -> None:
    class Broken(Host):
        def wait(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert Bench(Host(), tiny=True).usable()
    assert not Bench(Broken(), tiny=True).usable()
    assert Bench(Host(), tiny=False).spec("7b").layers == 28


def test_the_host_counts_and_caps_what_lives() -> None:
    host, held = Host(), nn.Linear(256, 256, bias=False)
    with host.peak(held) as peak:
        torch.zeros(2**20, dtype=torch.uint8)
    assert peak.tensors == peak.reserved == 4 * 256 * 256 + 2**20
    host.cap(4 * 256 * 256 + 2**19)
    with pytest.raises(torch.OutOfMemoryError), host.peak(held):
        torch.zeros(2**20, dtype=torch.uint8)
    host.cap(None)
    with host.peak(held):
        torch.zeros(2**20, dtype=torch.uint8)


@pytest.mark.parametrize("section", [
    decoding.decoding("decode-nf4", "7b", "nf4"), planned.planned("memory-nf4", "7b", "nf4", 2),
])  # fmt: skip
def test_what_is_missing_is_said(section: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decoding, planned):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Skipped, match="bitsandbytes is not installed"):
        next(section(Bench(Host(), tiny=True)))


def test_no_pytest_and_no_av_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (device_tests, captioning):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Skipped, match="pytest is not installed"):
        next(device_tests.device_tests(Bench(Host(), tiny=True)))
    with pytest.raises(Skipped, match="av is not installed"):
        next(captioning.captioning(Bench(Host(), tiny=True)))


def measured(**settings: Any) -> Measured:
    made: dict[str, Any] = {
        "model": "2b", "weights": "bf16", "cap_gib": 8, "frames": 8, "width": 56, "height": 56, "tokens": 20,
        "answer_tokens": 4, "predicted": 1010, "reserved": 900, "runtime": 100, "driver": 1000, "out_of_memory": False,
    }  # fmt: skip
    return Measured(**made | settings)


def test_plans_are_summed_up() -> None:
    mib = 2**20
    few = summarise([measured(), measured(predicted=990), measured(predicted=10, out_of_memory=True)])
    assert few["median_error"] == 0.01 and few["worst_under_bytes"] == 10 and few["beyond_margin_bytes"] == 0
    assert (few["plans"], few["out_of_memory"], few["stopped"]) == (3, 1, 0)
    far = summarise([measured(predicted=1000 * mib, reserved=1100 * mib, runtime=0)])
    assert far["beyond_margin_bytes"] == 36 * mib  # the least margin is 64 MiB
    assert summarise([measured(stopped=True)])["median_error"] == float("inf")
    assert plan_row("memory-2b", 1, measured(stopped=True)).value is None
    assert "stopped after its time" in plan_row("memory-2b", 1, measured(stopped=True)).note


def test_a_setup_without_a_plan_is_skipped() -> None:
    bench = Bench(Host(), tiny=True)
    setup = Setup("2b", bench.spec("2b"), "fp32", 0.01)  # less than the weights
    with pytest.raises(Skipped, match=r"no plan fits under 0.01 GiB"):
        next(measure(bench.accelerator, setup, bench.sizes.plans, 5.0))


def test_tests_are_rows_as_they_end() -> None:
    line = "tests/models/test_fp16.py::test_one[bf16-a b] PASSED    [ 5%]"
    row = row_of(line)
    assert row is not None and (row.name, row.value) == ("tests/models/test_fp16.py::test_one[bf16-a b]", 1.0)
    failed, skipped = row_of(line.replace("PASSED", "FAILED")), row_of(line.replace("PASSED", "SKIPPED (no)"))
    assert failed is not None and failed.value == 0.0
    assert skipped is not None and skipped.value is None
    broken = row_of("ERROR tests/gpu/test_gpu_memory.py - ModuleNotFoundError: No module named 'av'")
    assert broken is not None and broken.value == 0.0 and "No module named 'av'" in broken.note
    assert row_of("2 passed in 1.00s") is None and row_of("") is None


def test_files_of_device_tests_are_found() -> None:
    files = needs_cuda_files()
    assert "tests/gpu/test_gpu_memory.py" in files and "tests/models/test_attention.py" in files
    assert files[-1] == "tests/gpu/test_gpu_sweep.py"
    assert not any("benchmarks" in name or "conftest" in name for name in files)


def test_a_run_that_takes_too_long_is_not_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, ends = Bench(Host(), tiny=True), {"vidqa": "ok", "transformers": "out of memory"}

    def scripted(bench: Bench, loaded: Any, name: str, run: Any) -> tuple[Row, float | None]:
        end = ends.get(name.partition(", ")[2], "stopped")
        share = 0.5 if end == "ok" else None
        return Row("sweep", name, share, "GiB", "", note=end), share

    monkeypatch.setattr(capped_sweep, "_run", scripted)
    rows = {row.name: row.value for row in capped_sweep.capped_sweep(bench)}
    assert rows["vidqa, most frames"] == bench.sizes.sweep_frames[-1]
    assert rows["transformers: out of memory from"] == bench.sizes.sweep_frames[0]
    assert rows["transformers, unfused attention: out of memory from"] is None  # it was stopped
    assert [name for name in rows if "frames, transformers" in name] == [  # neither is asked for more
        "2 frames, transformers", "2 frames, transformers, unfused attention",
    ]  # fmt: skip
