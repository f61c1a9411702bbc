"""Qwen3-VL against transformers: prompts, positions, vision and DeepStack features, logits, tokens of tiny models."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

from tests.clips import write_clip
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
from tests.planner.plan_builders import made_problem
from vidqa.config import EngineConfig
from vidqa.engine.prompt import build_prompt, layout_of, slice_times
from vidqa.engine.session import Session
from vidqa.errors import ModelError
from vidqa.models.checkpoint import check_supported, read_spec
from vidqa.models.families import qwen3_vl as family
from vidqa.models.families.qwen3_vl.runtime import layout
from vidqa.models.family import TextSegment
from vidqa.models.hub import demo_folder
from vidqa.models.registry import find_checkpoints, released
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.planner.planner import plan_video
from vidqa.profiling.hf_baseline import HFBaseline
from vidqa.types import Placement, Plan, Request, Turn
from vidqa.video.reader import open_video

CLIP = str(Path(__file__).parents[2] / "assets/demo.mp4")
HEAD_LAYOUTS = {"2B": (16, 8), "8B": (32, 8)}
RATE = 2.0
CASES = {  # number and rate of frames, (height, width)
    "two frames": (2, 2.0, (64, 96)),
    "wide": (6, 2.0, (96, 256)),
    "one token high": (4, 25.0, (32, 320)),
    "odd frames and rate": (5, 29.97, (160, 128)),
}
START, END = 763, 764


HUB_CONFIG = {  # Qwen3-VL-4B-Instruct
    "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "initializer_range": 0.02,
        "intermediate_size": 9728, "max_position_embeddings": 262144, "model_type": "qwen3_vl_text",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "tie_word_embeddings": True, "use_cache": True, "vocab_size": 151936,
    },
    "tie_word_embeddings": True, "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 4096, "model_type": "qwen3_vl",
        "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2560, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653, "vision_start_token_id": 151652,
}  # fmt: skip


def spec_of(heads_of: str) -> ModelSpec:
    heads, kv_heads = HEAD_LAYOUTS[heads_of]
    tower = VisionSpec(
        depth=4, embed_dim=64, heads=4, patch=16, temporal_patch=2, merge=2, mlp_hidden=92, position_rows=36,
        deepstack_blocks=(0, 1, 3),
    )  # fmt: skip
    return ModelSpec(
        "qwen3_vl", 4, 128, 128, heads, kv_heads, 16, VOCABULARY, 32768, VIDEO_TOKEN, False, tower,
        attention_bias=False, qk_norm=True, deepstack=3, slice_text_tokens=19,
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    video = Qwen3VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    return Qwen3VLProcessor(Qwen2VLImageProcessor(patch_size=16), tokenizer, video)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A checkpoint of each head layout, loaded both ways."""
    folder = tmp_path_factory.mktemp("models")
    return {
        heads_of: load_pair(family, write_checkpoint(family, spec_of(heads_of), folder / heads_of), processor)
        for heads_of in HEAD_LAYOUTS
    }


def case_plan(pair: Pair, case: str, **fields: Any) -> Plan:
    count, rate, size = CASES[case]
    return made_plan(pair.loaded.model.spec, [index / rate for index in range(count)], size, **fields)


def inputs_of(pair: Pair, frames: Any, text: str, **metadata: Any) -> dict[str, Any]:
    """transformers' inputs without the chat template's brackets around the whole video, as in training."""
    inputs = oracle_inputs(pair, frames, text, **metadata)
    ids = inputs["input_ids"][0].tolist()
    outer = (ids.index(START), len(ids) - 1 - ids[::-1].index(END))
    assert ids[outer[1] - 1] == END and ids[outer[0] + 1] != VIDEO_TOKEN  # transformers from 5.10 on keeps them
    stay = torch.tensor([place for place in range(len(ids)) if place not in outer])
    return inputs | {name: inputs[name][:, stay] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}


def case_inputs(pair: Pair, plan: Plan, case: str, system: str | None = SYSTEM) -> dict[str, Any]:
    return inputs_of(pair, pictures(plan), rendered(pair, system), fps=CASES[case][1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads_of", HEAD_LAYOUTS)
def test_prompt_positions_and_features_equal_transformers(pairs: dict[str, Pair], heads_of: str, case: str) -> None:
    pair = pairs[heads_of]
    plan = case_plan(pair, case, vision_chunk=2)
    ran, inputs = run_prompt(pair, plan), case_inputs(pair, plan, case)
    assert ran.ids == inputs["input_ids"][0].tolist()
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw")
    positions, _ = pair.oracle.model.get_rope_index(**{name: inputs[name] for name in names})
    assert torch.equal(ran.positions, positions[:, 0])
    with torch.no_grad():
        expected = pair.oracle.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    embeddings = ran.runner.vision_embeddings
    assert embeddings is not None
    features = torch.cat((expected.pooler_output, *expected.deepstack_features), dim=1)
    assert torch.allclose(embeddings.rows[: embeddings.filled], features, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads_of", HEAD_LAYOUTS)
def test_last_logits_equal_transformers(pairs: dict[str, Pair], heads_of: str, case: str, chunk: int) -> None:
    pair = pairs[heads_of]
    plan = case_plan(pair, case, vision_chunk=1 if chunk == 7 else 8, prefill_chunk=chunk)
    with torch.no_grad():
        expected = pair.oracle(**case_inputs(pair, plan, case)).logits[0, -1]
    assert torch.allclose(run_prompt(pair, plan).logits[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("heads_of", HEAD_LAYOUTS)
def test_sixty_four_greedy_tokens_equal_generate(pairs: dict[str, Pair], heads_of: str, system: str | None) -> None:
    pair = pairs[heads_of]
    plan = case_plan(pair, "wide", vision_chunk=2, prefill_chunk=64)
    ours = greedy(pair, run_prompt(pair, plan, system), 64)
    assert len(set(ours)) > 2  # the model does not repeat one token
    assert_same_until_a_tie(ours, pair.oracle, case_inputs(pair, plan, "wide", system))


def times_in(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The times that a prompt shows."""
    return [piece.split(">")[0] for piece in tokenizer.decode(list(ids)).split("<") if " seconds>" in piece]


def test_times_are_the_true_ones_of_a_rate_that_varies(pairs: dict[str, Pair]) -> None:
    """A screen recording that stood still: transformers divides a frame's number by the mean rate, and is off."""
    pair = pairs["2B"]
    times = (0.0, 0.2, 0.4, 9.0, 9.2, 10.0)
    plan = made_plan(pair.loaded.model.spec, times, (64, 64))
    ours, theirs = run_prompt(pair, plan).ids, inputs_of(pair, pictures(plan), rendered(pair), fps=0.6)["input_ids"][0]
    tokenizer = pair.loaded.tokenizer
    assert times_in(ours, tokenizer) == ["0.1 seconds", "4.7 seconds", "9.6 seconds"]  # means of two frames
    assert times_in(theirs.tolist(), tokenizer) == ["0.8 seconds", "4.2 seconds", "7.5 seconds"]


def test_a_file_of_a_variable_rate_shows_its_own_times(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """Four pictures in a second, a stand-still of eight, four pictures more."""
    pair, milliseconds = pairs["2B"], [0, 250, 500, 750, 9000, 9250, 9500, 9750]
    clip = write_clip(tmp_path / "still.mkv", len(milliseconds), size=(128, 96), pts=milliseconds)
    with Session(config_of(pair)) as session:
        plan = session.plan(Request(str(clip), QUESTION, frames=8, size=(128, 96)))
    loaded = pair.loaded
    layout = layout_of(build_prompt(loaded, QUESTION, None), plan, loaded)
    ids = [token for one in layout if isinstance(one, TextSegment) for token in one.ids]
    times = plan.timestamps_seconds
    means = [(first + second) / 2 for first, second in zip(times[::2], times[1::2], strict=True)]
    assert set(times) <= {one / 1000 for one in milliseconds}
    assert times_in(ids, loaded.tokenizer) == [f"{mean:.1f} seconds" for mean in means]
    rate = len(milliseconds) / 10  # what a header says: transformers would show 1.9 s for the second slice
    assert [index / rate for index in plan.indices] != pytest.approx(list(times), abs=0.5)


def test_a_template_without_brackets_and_text_before_the_time() -> None:
    """The text's last characters and the time are tokenized together, as transformers does."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(demo_folder() / "tokenizer.json"))
    head = tokenizer("<|im_start|>user\nvideo 1: ", add_special_tokens=False)["input_ids"]
    segments = layout(head, [9], [0.25, 1.5], tokenizer)
    texts = [list(one.ids) for one in segments if isinstance(one, TextSegment)]
    whole = "<|im_start|>user\nvideo 1: <0.2 seconds><|vision_start|>"
    assert texts[0] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(texts[1]) == "<|vision_end|><1.5 seconds><|vision_start|>"
    assert texts[2] == [END, 9]
    assert len(segments) == 5


def test_no_time_has_more_tokens_than_are_planned() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(demo_folder() / "tokenizer.json"))
    segments = layout([], [], [99_998.94] * 3, tokenizer)
    assert max(len(one.ids) for one in segments if isinstance(one, TextSegment)) <= spec_of("2B").slice_text_tokens


def config_of(pair: Pair, **fields: Any) -> EngineConfig:
    options = {"weights": "fp32", "kv": "native", "vision_chunk": 2, "prefill_chunk": 64} | fields
    return EngineConfig(model=str(pair.folder), device="cpu", isolate_decoder=False, remember=False, **options)


def oracle_text(pair: Pair, plan: Plan, history: Sequence[Turn], question: str, tokens: int) -> str:
    """transformers' greedy answer to a question about the clip, after earlier turns."""
    prompt = build_prompt(pair.loaded, question, None, history)
    text = pair.loaded.tokenizer.decode([*prompt.head, VIDEO_TOKEN, *prompt.tail])
    with open_video(CLIP, isolated=False) as reader:  # of a constant rate: transformers' times are right
        rate, count = reader.info.fps, reader.info.frame_count
    metadata = {"fps": rate, "frames_indices": list(plan.indices), "total_num_frames": count}
    inputs = inputs_of(pair, frames_of(pair, CLIP, plan), text, **metadata)
    out = pair.oracle.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=756, pad_token_id=0)
    decoded: str = pair.loaded.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return decoded.strip()


def test_follow_ups_equal_transformers(pairs: dict[str, Pair]) -> None:
    pair = pairs["8B"]
    first = Request(CLIP, QUESTION, frames=6, size=(192, 128), max_tokens=24)
    (one,) = ask(config_of(pair), first)
    history = (Turn(QUESTION, one.text),)
    _, two = ask(config_of(pair), first, Request(**vars_of(first) | {"question": "why?", "history": history}))
    assert one.text == oracle_text(pair, one.plan, (), QUESTION, 24)
    assert two.text == oracle_text(pair, two.plan, history, "why?", 24)
    assert slice_times(one.plan, pair.loaded.model.spec) == pytest.approx([0.4, 2.0, 3.6], abs=0.1)


def vars_of(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in Request.__dataclass_fields__}


def test_two_requests_at_once_answer_as_alone(pairs: dict[str, Pair]) -> None:
    pair = pairs["2B"]
    requests = [Request(CLIP, question, frames=4, size=(128, 96), max_tokens=16) for question in (QUESTION, "why?")]
    alone = [ask(config_of(pair), one)[0].text for one in requests]
    assert ask_together(config_of(pair), requests) == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize(
    "fields",
    [{"kv": "int8"}, {"weights": "nf4"}, {"weights": "int8"}, {"vision_chunk": 1, "prefill_chunk": 7}],
)
def test_every_lever_answers(pairs: dict[str, Pair], fields: dict[str, Any]) -> None:
    """int8 KV changes little; quantized weights change a random model's words, and must still run."""
    request = Request(CLIP, QUESTION, frames=4, size=(128, 96), max_tokens=8)
    (plain,), (other,) = (ask(config_of(pairs["8B"], **one), request) for one in ({}, fields))
    assert other.timing.tokens == plain.timing.tokens == 8
    if "weights" not in fields:
        assert other.text.split()[:2] == plain.text.split()[:2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_config.num_position_embeddings", 35, "num_position_embeddings is 35; it must be a square number"),
        ("vision_config.deepstack_visual_indexes", [0, 4], "at most 4 ascending numbers below depth, 4"),
        ("vision_config.deepstack_visual_indexes", [1, 0], "ascending"),
        ("vision_config.out_hidden_size", 300, "out_hidden_size is 300; it must be the language model's, 128"),
        ("text_config.attention_bias", True, "attention_bias is true; it must be false"),
        ("text_config.rope_parameters.mrope_interleaved", False, "mrope_interleaved is false; it must be true"),
        ("model_type", "qwen9_vl", r"Qwen2-VL \(qwen2_vl\), Qwen2.5-VL \(qwen2_5_vl\) and Qwen3-VL \(qwen3_vl\)"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    folder = write_checkpoint(family, spec_of("2B"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    *sections, name = key.split(".")
    values = config
    for section in sections:
        values = values[section]
    values[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        find_checkpoints(str(folder), local=False)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 14}, "patch_size is 14; it must be 16, config.json's"),
        ("video_preprocessor_config.json", {"image_std": [0.2, 0.2, 0.2]}, "image_std is"),
    ],
)
def test_a_processor_that_contradicts_the_model_is_refused(
    tmp_path: Path, file: str, content: dict[str, Any], message: str
) -> None:
    folder = write_checkpoint(family, spec_of("2B"), tmp_path / "m")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        find_checkpoints(str(folder), local=True)


def test_size_bounds_the_pixels_of_all_frames(tmp_path: Path) -> None:
    folder = write_checkpoint(family, spec_of("2B"), tmp_path / "m")
    own = {"size": {"shortest_edge": 4096, "longest_edge": 25_165_824}, "patch_size": 16}  # as released
    (folder / "video_preprocessor_config.json").write_text(json.dumps(own))
    (found,) = find_checkpoints(str(folder), local=False)
    bounds = found.bounds
    assert (bounds.min_pixels, bounds.max_pixels) == (2048, 768 * 1024)
    assert bounds.total_pixels == 12_288 * 1024  # of slices, which have two frames
    plan = plan_video(made_problem(80, 600, found.spec, bounds=bounds, quality="best"))
    frames, pixels = plan.run_config.frames, plan.run_config.height * plan.run_config.width
    assert frames * pixels <= 25_165_824
    assert plan.visual_tokens > 9_000
    assert any("the most that the checkpoint's video processor allows" in limit for limit in plan.limits)
    asked = plan_video(made_problem(80, 600, found.spec, bounds=bounds, frames=256, size=(512, 320)))
    assert asked.visual_tokens == 128 * 16 * 10  # what is asked for is kept


def test_a_model_with_experts_is_planned_and_refused_to_run() -> None:
    spec = released()["Qwen/Qwen3-VL-30B-A3B-Instruct"]
    plan = plan_video(made_problem(80, 60, spec))
    assert 58 < sum(line.bytes for line in plan.lines if line.name.startswith("weights")) / 1e9 < 63
    with pytest.raises(ModelError, match="'qwen3_vl_moe' checkpoint, with experts in its layers: it can be planned"):
        check_supported(spec, "Qwen/Qwen3-VL-30B-A3B-Instruct")


def test_float16_does_not_overflow(tmp_path: Path) -> None:
    folder = write_checkpoint(family, spec_of("2B"), tmp_path / "m")
    magnify(folder, ("blocks.1.attn.proj.weight", "blocks.1.mlp.linear_fc2.weight"), 3e4)
    assert_float16_is_finite_and_close(family, folder, (64, 96))


@pytest.mark.parametrize("placement", [Placement(vision_offloaded=True), Placement(kv_on_host=True)])
def test_placements_change_nothing(pairs: dict[str, Pair], placement: Placement) -> None:
    request = Request(CLIP, QUESTION, frames=4, size=(128, 96), max_tokens=12)
    (plain,), (other,) = (ask(config_of(pairs["2B"], **one), request) for one in ({}, {"placement": placement}))
    assert other.text == plain.text and other.plan.run_config.placement == placement


def test_the_baseline_of_sweeps_runs_the_family(pairs: dict[str, Pair]) -> None:
    """`sweep` and `profile` compare with transformers: the same tokens, and the same prompt."""
    pair = pairs["2B"]
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
    assert replace(read_spec(tmp_path), stop_tokens=()) == released()["Qwen/Qwen3-VL-4B-Instruct"]
