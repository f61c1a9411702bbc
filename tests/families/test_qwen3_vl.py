"""What Qwen3-VL alone has: times in the prompt, rules for its config.json, bounds of all frames, and experts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.clips import write_clip
from tests.families.cases import END, QWEN3_VL
from tests.families.parity import (
    QUESTION,
    Pair,
    ask,
    config_of,
    copy_with,
    made_plan,
    pictures,
    processed,
    rendered,
    request_of,
    run_prompt,
)
from tests.planner.plan_builders import made_problem
from vidqa.engine.prompt import build_prompt, layout_of, slice_times
from vidqa.engine.session import Session
from vidqa.errors import ModelError
from vidqa.models.checkpoint import check_supported, read_spec
from vidqa.models.families.qwen3_vl.runtime import layout
from vidqa.models.family import TextSegment
from vidqa.models.hub import demo_folder
from vidqa.models.registry import find_checkpoints, released
from vidqa.planner.planner import plan_video
from vidqa.types import Request

SMALL = pytest.mark.parametrize("pair", [(QWEN3_VL, "2B")], indirect=True, ids=["2B"])

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


def times_in(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The times that a prompt shows."""
    return [piece.split(">")[0] for piece in tokenizer.decode(list(ids)).split("<") if " seconds>" in piece]


@SMALL
def test_times_are_the_true_ones_of_a_rate_that_varies(pair: Pair) -> None:
    """A screen recording that stood still: transformers divides a frame's number by the mean rate, and is off."""
    times = (0.0, 0.2, 0.4, 9.0, 9.2, 10.0)
    plan = made_plan(pair.spec, (times, (64, 64)))
    theirs = QWEN3_VL.complete(processed(pair, pictures(plan), rendered(pair), fps=0.6), plan)["input_ids"][0]
    ours = run_prompt(pair, plan).ids
    tokenizer = pair.loaded.tokenizer
    assert times_in(ours, tokenizer) == ["0.1 seconds", "4.7 seconds", "9.6 seconds"]  # means of two frames
    assert times_in(theirs.tolist(), tokenizer) == ["0.8 seconds", "4.2 seconds", "7.5 seconds"]


@SMALL
def test_a_file_of_a_variable_rate_shows_its_own_times(pair: Pair, tmp_path: Path) -> None:
    """Four pictures in a second, a stand-still of eight, four pictures more."""
    milliseconds = [0, 250, 500, 750, 9000, 9250, 9500, 9750]
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


@SMALL
def test_slices_of_the_clip_have_their_times(pair: Pair) -> None:
    (answer,) = ask(config_of(pair), request_of(pair, frames=6))
    assert slice_times(answer.plan, pair.spec) == pytest.approx([0.4, 2.0, 3.6], abs=0.1)


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
    assert (
        max(len(one.ids) for one in segments if isinstance(one, TextSegment)) <= QWEN3_VL.specs["2B"].slice_text_tokens
    )


@SMALL
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_config.num_position_embeddings", 35, "num_position_embeddings is 35; it must be a square number"),
        ("vision_config.deepstack_visual_indexes", [0, 4], "at most 4 ascending numbers below depth, 4"),
        ("vision_config.deepstack_visual_indexes", [1, 0], "ascending"),
        ("vision_config.out_hidden_size", 300, "out_hidden_size is 300; it must be the language model's, 128"),
        ("text_config.attention_bias", True, "attention_bias is true; it must be false"),
        ("text_config.rope_parameters.mrope_interleaved", False, "mrope_interleaved is false; it must be true"),
    ],
)
def test_impossible_values_are_refused(pair: Pair, tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_checkpoints(str(copy_with(pair.folder, tmp_path, key, value)), local=False)


@SMALL
def test_size_bounds_the_pixels_of_all_frames(pair: Pair, tmp_path: Path) -> None:
    folder = copy_with(pair.folder, tmp_path)
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


def test_the_release_is_read_as_it_is_planned(tmp_path: Path) -> None:
    """config.json as the hub has it, without what has no rule."""
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    assert replace(read_spec(tmp_path), stop_tokens=()) == released()["Qwen/Qwen3-VL-4B-Instruct"]
