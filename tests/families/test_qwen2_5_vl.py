"""Qwen2.5-VL against transformers: prompts, positions, vision embeddings, logits and tokens of tiny random models."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from tests.families.parity import (
    QUESTION,
    SYSTEM,
    VIDEO_TOKEN,
    VOCABULARY,
    Pair,
    ask,
    ask_together,
    assert_float16_is_finite_and_close,
    assert_same_until_a_tie,
    frames_of,
    greedy,
    load_pair,
    made_plan,
    magnify,
    oracle_inputs,
    pictures,
    rendered,
    run_prompt,
    write_checkpoint,
)
from vidqa.config import EngineConfig
from vidqa.engine.prompt import build_prompt
from vidqa.errors import ModelError
from vidqa.models.checkpoint import read_spec
from vidqa.models.families import qwen2_5_vl as family
from vidqa.models.families.qwen2_5_vl.runtime import window_order
from vidqa.models.registry import find_checkpoints, released
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.profiling.hf_baseline import HFBaseline
from vidqa.types import Placement, Plan, Request, Sampling, Turn
from vidqa.video.reader import open_video

CLIP = str(Path(__file__).parents[2] / "assets/demo.mp4")
HEAD_LAYOUTS = {"3B": (16, 2), "7B": (28, 4)}
HALF_SECONDS = tuple(index / 2 for index in range(6))
ODD_RATE = tuple(index / 1.7 for index in range(5))  # an odd number of frames too
CASES = {  # times of frames, (height, width); windows have 4 tokens a side
    "two frames": ((0.0, 0.5), (56, 84)),
    "windows cut at both edges": (HALF_SECONDS, (140, 252)),
    "whole windows": (HALF_SECONDS, (112, 224)),
    "odd frames and rate": (ODD_RATE, (140, 112)),
}


HUB_CONFIG = {  # Qwen2.5-VL-3B-Instruct
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 128000, "max_window_layers": 70,
    "model_type": "qwen2_5_vl", "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip


def spec_of(layout: str) -> ModelSpec:
    heads, kv_heads = HEAD_LAYOUTS[layout]
    tower = VisionSpec(
        depth=3, embed_dim=64, heads=4, patch=14, temporal_patch=2, merge=2, mlp_hidden=92, window=112,
        full_attention=(1,), tokens_per_second=2,
    )  # fmt: skip
    return ModelSpec(
        "qwen2_5_vl", 2, heads * 16, 128, heads, kv_heads, 16, VOCABULARY, 32768, VIDEO_TOKEN, False, tower
    )


def processor(tokenizer: Any) -> Any:
    video = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, video)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A checkpoint of each head layout, loaded both ways."""
    folder = tmp_path_factory.mktemp("models")
    return {
        layout: load_pair(family, write_checkpoint(family, spec_of(layout), folder / layout), processor)
        for layout in HEAD_LAYOUTS
    }


def inputs_of(pair: Pair, plan: Plan, system: str | None = SYSTEM, frames: Any = None) -> dict[str, Any]:
    """transformers' inputs with the plan's own distance between slices."""
    inputs = oracle_inputs(pair, pictures(plan) if frames is None else frames, rendered(pair, system))
    return inputs | {"second_per_grid_ts": torch.tensor([2 * plan.interval_seconds])}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", HEAD_LAYOUTS)
def test_prompt_positions_and_embeddings_equal_transformers(pairs: dict[str, Pair], layout: str, case: str) -> None:
    pair, (times, size) = pairs[layout], CASES[case]
    plan = made_plan(pair.loaded.model.spec, times, size, vision_chunk=2)
    ran, inputs = run_prompt(pair, plan), inputs_of(pair, plan)
    assert ran.ids == inputs["input_ids"][0].tolist()
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    positions, _ = pair.oracle.model.get_rope_index(**{name: inputs[name] for name in names})
    assert torch.equal(ran.positions, positions[:, 0])
    with torch.no_grad():
        expected = pair.oracle.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    embeddings = ran.runner.vision_embeddings
    assert embeddings is not None
    assert torch.allclose(embeddings.rows[: embeddings.filled], expected.pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", HEAD_LAYOUTS)
def test_last_logits_equal_transformers(pairs: dict[str, Pair], layout: str, case: str, chunk: int) -> None:
    pair, (times, size) = pairs[layout], CASES[case]
    plan = made_plan(pair.loaded.model.spec, times, size, vision_chunk=1 if chunk == 7 else 8, prefill_chunk=chunk)
    with torch.no_grad():
        expected = pair.oracle(**inputs_of(pair, plan)).logits[0, -1]
    assert torch.allclose(run_prompt(pair, plan).logits[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("layout", HEAD_LAYOUTS)
def test_sixty_four_greedy_tokens_equal_generate(pairs: dict[str, Pair], layout: str, system: str | None) -> None:
    pair, (times, size) = pairs[layout], CASES["windows cut at both edges"]
    plan = made_plan(pair.loaded.model.spec, times, size, vision_chunk=2, prefill_chunk=64)
    ours = greedy(pair, run_prompt(pair, plan, system), 64)
    assert len(set(ours)) > 2  # the model does not repeat one token
    assert_same_until_a_tie(ours, pair.oracle, inputs_of(pair, plan, system))


def test_a_long_video_goes_on_after_its_time(pairs: dict[str, Pair]) -> None:
    """Text goes on after max(T, H, W), as in training; transformers is given these positions and must agree."""
    pair = pairs["3B"]
    plan = made_plan(pair.loaded.model.spec, [index * 1.0 for index in range(12)], (56, 56), vision_chunk=2)
    ran, inputs = run_prompt(pair, plan), inputs_of(pair, plan)
    time = ran.positions[0, ran.positions[0] != ran.positions[1]]
    assert sorted(set((time - time.min()).tolist())) == [0, 4, 8, 12, 16, 20]  # 2 positions a second
    after = ran.ids.index(764)  # vision_end
    assert ran.positions[:, after].unique().tolist() == [int(time.max()) + 1]
    with torch.no_grad():
        expected = pair.oracle(**inputs, position_ids=ran.positions[:, None]).logits[0, -1]
    assert torch.allclose(ran.logits[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("times", "ours"),
    [
        ((0, 0.5, 1, 1.5, 2, 2.5), 1.0),
        ((0, 0.1, 0.2, 0.3, 4.0, 4.1), 1.64),  # a rate that varies: 4.1 s in 5 steps
    ],
)
def test_positions_in_time_are_those_of_the_true_times(
    pairs: dict[str, Pair], times: Sequence[float], ours: float
) -> None:
    """transformers divides the header's rate; the frames' own times say how far apart slices are."""
    pair = pairs["3B"]
    plan = made_plan(pair.loaded.model.spec, times, (84, 84))
    assert 2 * plan.interval_seconds == pytest.approx(ours)
    # A header of 2 frames per second, all six read: transformers' answer is 1 s between slices, whatever the times.
    theirs = oracle_inputs(pair, pictures(plan), rendered(pair), fps=2.0)["second_per_grid_ts"]
    assert float(theirs[0]) == 1.0
    positions = run_prompt(pair, plan).positions
    seen = positions[0, 1 + rendered_head(pair) :: 9][:3]  # a token of each slice of 3x3
    assert (seen - seen[0]).tolist() == [0, int(2 * ours), int(4 * ours)]


def rendered_head(pair: Pair) -> int:
    """The number of ids before the first video token, less one."""
    return len(build_prompt(pair.loaded, QUESTION, SYSTEM).head) - 1


def config_of(pair: Pair, **fields: Any) -> EngineConfig:
    options = {"weights": "fp32", "kv": "native", "vision_chunk": 2, "prefill_chunk": 64} | fields
    return EngineConfig(model=str(pair.folder), device="cpu", isolate_decoder=False, remember=False, **options)


def oracle_text(pair: Pair, plan: Plan, history: Sequence[Turn], question: str, tokens: int) -> str:
    """transformers' greedy answer to a question about the clip, after earlier turns."""
    prompt = build_prompt(pair.loaded, question, None, history)
    text = pair.loaded.tokenizer.decode([*prompt.head, VIDEO_TOKEN, *prompt.tail])
    inputs = oracle_inputs(pair, frames_of(pair, CLIP, plan), text)
    inputs |= {"second_per_grid_ts": torch.tensor([2 * plan.interval_seconds])}
    out = pair.oracle.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=756, pad_token_id=0)
    decoded: str = pair.loaded.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return decoded.strip()


def test_follow_ups_equal_transformers(pairs: dict[str, Pair]) -> None:
    pair = pairs["7B"]
    first = Request(CLIP, QUESTION, frames=6, size=(252, 140), max_tokens=24)
    (one,) = ask(config_of(pair), first)
    history = (Turn(QUESTION, one.text),)
    _, two = ask(config_of(pair), first, Request(**vars_of(first) | {"question": "why?", "history": history}))
    assert one.text == oracle_text(pair, one.plan, (), QUESTION, 24)
    assert two.text == oracle_text(pair, two.plan, history, "why?", 24)


def vars_of(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


def test_two_requests_at_once_answer_as_alone(pairs: dict[str, Pair]) -> None:
    pair = pairs["3B"]
    requests = [Request(CLIP, question, frames=4, size=(112, 84), max_tokens=16) for question in (QUESTION, "why?")]
    alone = [ask(config_of(pair), one)[0].text for one in requests]
    assert ask_together(config_of(pair), requests) == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"kv": "int8"}, {"weights": "nf4"}, {"weights": "int8"}, {"vision_chunk": 1, "prefill_chunk": 7},
    ],
)  # fmt: skip
def test_every_lever_answers(pairs: dict[str, Pair], fields: dict[str, Any]) -> None:
    """int8 KV changes little; quantized weights change a random model's words, and must still run."""
    request = Request(CLIP, QUESTION, frames=4, size=(112, 84), max_tokens=8)
    (plain,), (other,) = (ask(config_of(pairs["7B"], **one), request) for one in ({}, fields))
    assert other.timing.tokens == plain.timing.tokens == 8
    if "weights" not in fields:
        assert other.text.split()[:2] == plain.text.split()[:2]


def test_window_order_is_a_partition_into_windows() -> None:
    order, windows = window_order(5, 9, 4)
    assert sorted(order.tolist()) == list(range(45))
    assert [(one.count, one.tokens) for one in windows] == [(2, 16), (1, 4), (2, 4), (1, 1)]
    assert order[:16].tolist() == [row * 9 + column for row in range(4) for column in range(4)]
    assert order[-1] == 44


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size is 16; it must be 14, config.json's"),
        ("video_preprocessor_config.json", {"merge_size": 4}, "merge_size is 4; it must be 2"),
        ("video_preprocessor_config.json", {"temporal_patch_size": 1}, "temporal_patch_size is 1; it must be 2"),
        ("processor_config.json", {"video_processor": {"image_mean": [0.5, 0.5, 0.5]}}, "image_mean is"),
    ],
)
def test_a_processor_that_contradicts_the_model_is_refused(
    pairs: dict[str, Pair], tmp_path: Path, file: str, content: dict[str, Any], message: str
) -> None:
    folder = write_checkpoint(family, spec_of("3B"), tmp_path / "m")
    find_checkpoints(str(folder), local=True)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        find_checkpoints(str(folder), local=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("window_size", 14, "window_size is 14; it must be at least a token's side, 28"),
        ("out_hidden_size", 300, "out_hidden_size is 300; it must be the language model's, 256"),
        ("tokens_per_second", 0, "tokens_per_second is 0"),
        ("fullatt_block_indexes", [-1], "fullatt_block_indexes"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    folder = write_checkpoint(family, spec_of("3B"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        find_checkpoints(str(folder), local=False)


def test_float16_does_not_overflow(tmp_path: Path) -> None:
    folder = write_checkpoint(family, spec_of("3B"), tmp_path / "m")
    magnify(folder, ("blocks.1.attn.proj.weight", "blocks.1.mlp.down_proj.weight"), 3e4)
    assert_float16_is_finite_and_close(family, folder, (112, 84))


@pytest.mark.parametrize("placement", [Placement(vision_offloaded=True), Placement(kv_on_host=True)])
def test_placements_change_nothing(pairs: dict[str, Pair], placement: Placement) -> None:
    request = Request(CLIP, QUESTION, frames=4, size=(128, 96), max_tokens=12)
    (plain,), (other,) = (ask(config_of(pairs["3B"], **one), request) for one in ({}, {"placement": placement}))
    assert other.text == plain.text and other.plan.run_config.placement == placement


def test_the_baseline_of_sweeps_runs_the_family(pairs: dict[str, Pair]) -> None:
    """`sweep` and `profile` compare with transformers: the same tokens, and the same prompt."""
    pair = pairs["3B"]
    request = Request(CLIP, QUESTION, frames=4, size=(224, 160), max_tokens=12)
    (ours,) = ask(config_of(pair), request)
    config = ours.plan.run_config
    with open_video(CLIP, isolated=False) as reader:
        baseline = HFBaseline(pair.folder, torch.device("cpu"), "fp32")
        theirs = baseline.ask(request, reader, ours.plan.indices, (config.height, config.width))
    assert theirs.text == ours.text
    assert (theirs.visual_tokens, theirs.prompt_tokens) == (ours.plan.visual_tokens, ours.plan.prompt_tokens)


def test_the_release_is_read_as_it_is_planned(tmp_path: Path) -> None:
    """config.json as the hub has it, without what has no rule."""
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    assert replace(read_spec(tmp_path), stop_tokens=()) == released()["Qwen/Qwen2.5-VL-3B-Instruct"]


def test_uneven_frames_have_the_positions_of_their_own_times(pairs: dict[str, Pair]) -> None:
    """Two positions a second; slices closer than half a second still follow each other."""
    pair = pairs["3B"]
    times = (0.0, 0.5, 10.0, 10.1, 10.2, 10.3, 30.0, 30.1)
    plan = made_plan(pair.loaded.model.spec, times, (84, 84))
    plan = replace(plan, sampling=Sampling("change", "it changes there"))
    ran = run_prompt(pair, plan)
    seen = ran.positions[0, 1 + rendered_head(pair) :: 9][:4]
    assert (seen - seen[0]).tolist() == [0, 19, 20, 59]
    after = ran.ids.index(764)  # vision_end
    assert int(ran.positions[0, after]) == int(seen[3]) + 1
