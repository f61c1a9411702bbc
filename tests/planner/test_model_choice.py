"""The released models: what they download, need and score, and the table of every card against every model."""

from pathlib import Path

import pytest

from tests.planner.plan_builders import GIB, made_video
from vidqa.config import EngineConfig
from vidqa.devices.gpu_catalog import as_device, find_gpu
from vidqa.models.registry import find_checkpoints, runnable_models, short_names
from vidqa.planner.model_choice import forecast, gpu_model_matrix, released_models
from vidqa.planner.planner import try_plan
from vidqa.planner.problem import planning_problems
from vidqa.types import Request


def test_released_models_have_sizes_needs_and_scores_with_their_source() -> None:
    known = {model.short_name: model for model in released_models()}
    assert known.keys() == short_names().keys()
    small, large = known["2b"], known["3-vl-8b"]
    assert small.download_bytes == pytest.approx(4.42e9, rel=0.01) and large.download_bytes == pytest.approx(
        17.5e9, rel=0.01
    )
    assert small.score == pytest.approx(55.6, abs=0.1) and small.family == "Qwen2-VL"
    assert "2409.12191" in small.score_source
    assert large.score == pytest.approx(71.4, abs=0.1) and "2511.21631" in large.score_source
    assert known["3-vl-4b"].score_source == "interpolated by size"
    assert known["3-vl-2b"].score == pytest.approx(61.9, abs=0.1) and "quoted" in known["3-vl-2b"].score_source
    experts = known["3-vl-30b"]
    assert not experts.runs and experts.score_source == "extrapolated by size"
    assert {name for name, model in known.items() if model.runs} == known.keys() - {"3-vl-30b"}
    assert runnable_models() == tuple(model.repository for model in known.values() if model.runs)


@pytest.mark.parametrize("name", ["2b", "2.5-vl-3b", "3-vl-4b"])
def test_the_least_memory_is_enough_and_less_is_not(name: str) -> None:
    least = next(model.least_bytes for model in released_models() if model.short_name == name)

    def plans(budget: int) -> bool:
        config = EngineConfig(vram_bytes=budget, max_wait_seconds=None)
        card, video = as_device(find_gpu("rtx4090")), made_video(60, fps=30)
        (problem,) = planning_problems(
            find_checkpoints(name, local=False), video, Request("", "what happens?"), config, card
        )
        return try_plan(problem).plan is not None

    assert plans(least) and not plans(least - GIB // 16)


def test_the_table_of_all_models_has_the_planners_choice_for_each() -> None:
    checkpoints = [found for name in ("2b", "3-vl-8b") for found in find_checkpoints(name, local=False)]
    cards = [as_device(find_gpu(name)) for name in ("rtx4060", "a100-80")]
    request, config = Request("clip.mp4", "what happens?"), EngineConfig()
    small, large = gpu_model_matrix(checkpoints, cards, made_video(60), request, config)
    assert "4060" in small.device.name and "A100" in large.device.name
    (_, plan), (_, other) = small.plans
    assert plan is not None and plan.run_config.weights == "bf16"
    assert other is not None and other.run_config.weights in ("nf4", "nf4-dq") and other.score > plan.score
    assert small.best is other
    only = gpu_model_matrix(checkpoints, cards[:1], made_video(60), request, EngineConfig(weights="bf16"))
    assert [plan is None for _, plan in only[0].plans] == [False, True] and only[0].best is only[0].plans[0][1]


def test_a_refusal_names_a_model_that_fits_also_where_the_files_of_one_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = planning_problems(
        find_checkpoints("7b", local=False), made_video(60), Request("", "what happens?"),
        EngineConfig(vram_bytes=4 * GIB), as_device(find_gpu("t4")),
    )  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "qw')
    monkeypatch.setattr("vidqa.models.registry.resolve_model", lambda name: tmp_path)
    refusal = forecast([problem]).refusal
    assert refusal is not None and "Qwen3-VL-4B would fit: --model 3-vl-4b, " in refusal.remedy
