"""What Qwen2.5-VL alone has: positions in time, windows, and rules for its config.json."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.cases import END, QWEN2_5_VL, at_rate
from tests.families.parity import (
    QUESTION,
    SYSTEM,
    Pair,
    copy_with,
    made_inputs,
    made_plan,
    pictures,
    processed,
    rendered,
    run_prompt,
)
from vidqa.engine.prompt import build_prompt
from vidqa.errors import ModelError
from vidqa.models.checkpoint import read_spec
from vidqa.models.families.qwen2_5_vl.runtime import window_order
from vidqa.models.registry import find_checkpoints, released
from vidqa.utils.frame_choice import Sampling

SMALL = pytest.mark.parametrize("pair", [(QWEN2_5_VL, "3B")], indirect=True, ids=["3B"])

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


@SMALL
def test_a_long_video_goes_on_after_its_time(pair: Pair) -> None:
    """Text goes on after max(T, H, W), as in training; transformers is given these positions and must agree."""
    plan = made_plan(pair.spec, (at_rate(12, 1), (56, 56)), vision_chunk=2)
    ran, inputs = run_prompt(pair, plan), made_inputs(pair, plan)
    time = ran.positions[0, ran.positions[0] != ran.positions[1]]
    assert sorted(set((time - time.min()).tolist())) == [0, 4, 8, 12, 16, 20]  # 2 positions a second
    after = ran.ids.index(END)
    assert ran.positions[:, after].unique().tolist() == [int(time.max()) + 1]
    with torch.no_grad():
        expected = pair.oracle(**inputs, position_ids=ran.positions[:, None]).logits[0, -1]
    assert torch.allclose(ran.logits[0], expected, atol=1e-4, rtol=0)


@SMALL
@pytest.mark.parametrize(
    ("times", "ours"),
    [
        ((0, 0.5, 1, 1.5, 2, 2.5), 1.0),
        ((0, 0.1, 0.2, 0.3, 4.0, 4.1), 1.64),  # a rate that varies: 4.1 s in 5 steps
    ],
)
def test_positions_in_time_are_those_of_the_true_times(pair: Pair, times: Sequence[float], ours: float) -> None:
    """transformers divides the header's rate; the frames' own times say how far apart slices are."""
    plan = made_plan(pair.spec, (times, (84, 84)))
    assert 2 * plan.interval_seconds == pytest.approx(ours)
    # A header of 2 frames per second, all six read: transformers' answer is 1 s between slices, whatever the times.
    theirs = processed(pair, pictures(plan), rendered(pair), fps=2.0)["second_per_grid_ts"]
    assert float(theirs[0]) == 1.0
    positions = run_prompt(pair, plan).positions
    seen = positions[0, 1 + rendered_head(pair) :: 9][:3]  # a token of each slice of 3x3
    assert (seen - seen[0]).tolist() == [0, int(2 * ours), int(4 * ours)]


def rendered_head(pair: Pair) -> int:
    """The number of ids before the first video token, less one."""
    return len(build_prompt(pair.loaded, QUESTION, SYSTEM).head) - 1


def test_window_order_is_a_partition_into_windows() -> None:
    order, windows = window_order(5, 9, 4)
    assert sorted(order.tolist()) == list(range(45))
    assert [(one.count, one.tokens) for one in windows] == [(2, 16), (1, 4), (2, 4), (1, 1)]
    assert order[:16].tolist() == [row * 9 + column for row in range(4) for column in range(4)]
    assert order[-1] == 44


@SMALL
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_config.window_size", 14, "window_size is 14; it must be at least a token's side, 28"),
        ("vision_config.out_hidden_size", 300, "out_hidden_size is 300; it must be the language model's, 256"),
        ("vision_config.tokens_per_second", 0, "tokens_per_second is 0"),
        ("vision_config.fullatt_block_indexes", [-1], "fullatt_block_indexes"),
    ],
)
def test_impossible_values_are_refused(pair: Pair, tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_checkpoints(str(copy_with(pair.folder, tmp_path, key, value)), local=False)


def test_the_release_is_read_as_it_is_planned(tmp_path: Path) -> None:
    """config.json as the hub has it, without what has no rule."""
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    assert replace(read_spec(tmp_path), stop_tokens=()) == released()["Qwen/Qwen2.5-VL-3B-Instruct"]


@SMALL
def test_uneven_frames_have_the_positions_of_their_own_times(pair: Pair) -> None:
    """Two positions a second; slices closer than half a second still follow each other."""
    times = (0.0, 0.5, 10.0, 10.1, 10.2, 10.3, 30.0, 30.1)
    plan = made_plan(pair.spec, (times, (84, 84)))
    plan = replace(plan, sampling=Sampling("change", "it changes there"))
    ran = run_prompt(pair, plan)
    seen = ran.positions[0, 1 + rendered_head(pair) :: 9][:4]
    assert (seen - seen[0]).tolist() == [0, 19, 20, 59]
    after = ran.ids.index(END)
    assert int(ran.positions[0, after]) == int(seen[3]) + 1
