"""Every family against transformers: prompts, positions, vision features, logits and tokens of tiny random models."""

import json
from pathlib import Path

import pytest
import torch

from tests.families.cases import CASES
from tests.families.parity import (
    CLIP,
    CPU,
    QUESTION,
    SYSTEM,
    Pair,
    ask,
    assert_same_until_a_tie,
    config_of,
    copy_with,
    greedy,
    made_inputs,
    made_plan,
    oracle_text,
    request_of,
    run_prompt,
)
from vidqa.errors import ModelError
from vidqa.models.registry import find_checkpoints
from vidqa.profiling.hf_baseline import HFBaseline
from vidqa.types import Turn
from vidqa.video.reader import open_video

ALL_VIDEOS = pytest.mark.parametrize(
    ("pair", "video"),
    [
        pytest.param((case, layout), name, id=f"{case}-{layout}-{name}")
        for case in CASES
        for layout in case.specs
        for name in case.videos
    ],
    indirect=["pair"],
)
ROPE_INPUTS = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")


@ALL_VIDEOS
def test_prompt_positions_and_features_equal_transformers(pair: Pair, video: str) -> None:
    plan = made_plan(pair.spec, pair.case.videos[video], vision_chunk=2)
    ran, inputs = run_prompt(pair, plan), made_inputs(pair, plan)
    assert ran.ids == inputs["input_ids"][0].tolist()
    positions, _ = pair.oracle.model.get_rope_index(**{name: inputs[name] for name in ROPE_INPUTS if name in inputs})
    assert torch.equal(ran.positions, positions[:, 0])
    with torch.no_grad():
        expected = pair.oracle.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    features = torch.cat((expected.pooler_output, *getattr(expected, "deepstack_features", ())), dim=1)
    embeddings = ran.runner.vision_embeddings
    assert embeddings is not None
    assert torch.allclose(embeddings.rows[: embeddings.filled], features, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
@ALL_VIDEOS
def test_last_logits_equal_transformers(pair: Pair, video: str, chunk: int) -> None:
    plan = made_plan(
        pair.spec, pair.case.videos[video], vision_chunk=1 if chunk == 7 else 8, prefill_chunk=chunk
    )  # fmt: skip
    with torch.no_grad():
        expected = pair.oracle(**made_inputs(pair, plan)).logits[0, -1]
    assert torch.allclose(run_prompt(pair, plan).logits[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_sixty_four_greedy_tokens_equal_generate(pair: Pair, system: str | None) -> None:
    video = list(pair.case.videos.values())[1]
    plan = made_plan(pair.spec, video, vision_chunk=2, prefill_chunk=64)
    ours = greedy(pair, run_prompt(pair, plan, system), 64)
    assert len(set(ours)) > 2  # the model does not repeat one token
    assert_same_until_a_tie(ours, pair.oracle, made_inputs(pair, plan, system))


def test_follow_ups_equal_transformers(large: Pair) -> None:
    side = large.spec.pixel_factor
    first = request_of(large, frames=6, size=(9 * side, 5 * side), max_tokens=24)  # wider than long in time
    (one,) = ask(config_of(large), first)
    history = (Turn(QUESTION, one.text),)
    fields = {"frames": 6, "size": first.size, "max_tokens": 24, "history": history}
    _, two = ask(config_of(large), first, request_of(large, "why?", **fields))
    assert one.text == oracle_text(large, one.plan, (), QUESTION, 24)
    assert two.text == oracle_text(large, two.plan, history, "why?", 24)


def test_the_baseline_of_sweeps_runs_the_family(large: Pair) -> None:
    """`sweep` and `profile` compare with transformers: the same tokens, and the same prompt."""
    side = large.spec.pixel_factor
    request = request_of(large, size=(7 * side, 5 * side), max_tokens=12)
    (ours,) = ask(config_of(large), request)
    config = ours.plan.run_config
    with open_video(CLIP, isolated=False) as reader:
        theirs = HFBaseline(large.folder, CPU, "fp32").ask(
            request, reader, ours.plan.indices, (config.height, config.width)
        )
    assert theirs.text == ours.text
    assert (theirs.visual_tokens, theirs.prompt_tokens) == (ours.plan.visual_tokens, ours.plan.prompt_tokens)


@pytest.mark.parametrize("section", ["image_processor", "video_processor"])
@pytest.mark.parametrize("shared", [False, True], ids=["its own file", "processor_config.json"])
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("patch_size", "patch_size"), ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ],
)  # fmt: skip
def test_a_processor_that_contradicts_the_model_is_refused(
    large: Pair, tmp_path: Path, section: str, shared: bool, key: str, named: str
) -> None:
    """Both values are named; other files beside it agree with config.json."""
    folder = copy_with(large.folder, tmp_path)
    tower = large.spec.vision
    right = {"patch_size": tower.patch, "merge_size": tower.merge, "temporal_patch_size": tower.temporal_patch}
    wrong = right | {key: right[key] + 1}
    own = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    for name, file in own.items():
        (folder / file).write_text(json.dumps(wrong if name == section and not shared else right))
    both = {name: wrong if name == section and shared else right for name in own}
    (folder / "processor_config.json").write_text(json.dumps(both))
    path = f"processor_config.json: {section}.{key}" if shared else f"{own[section]}: {key}"
    message = rf"{path} is {wrong[key]}; it must be {right[key]}, config.json's vision_config\.{named}"
    for local in (True, False):
        with pytest.raises(ModelError, match=message):
            find_checkpoints(str(folder), local=local)


def test_channel_statistics_that_the_model_was_not_trained_with_are_refused(large: Pair, tmp_path: Path) -> None:
    folder = copy_with(large.folder, tmp_path)
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": {"image_std": [0.2, 0.3, 0.3]}}))
    with pytest.raises(ModelError, match=r"image_std is \[0.2, 0.3, 0.3\]; it must be \[0\.[25]"):
        find_checkpoints(str(folder), local=True)


def test_an_unknown_family_is_refused_with_the_known_ones(large: Pair, tmp_path: Path) -> None:
    folder = copy_with(large.folder, tmp_path, "model_type", "qwen9_vl")
    known = r"Qwen2-VL \(qwen2_vl\), Qwen2.5-VL \(qwen2_5_vl\) and Qwen3-VL \(qwen3_vl\)"
    for local in (True, False):
        with pytest.raises(ModelError, match=f"model_type is 'qwen9_vl'; vidqa runs {known}"):
            find_checkpoints(str(folder), local=local)
