"""The recipe of Qwen3-VL's architecture: patches, positions and vision tower as transformers', and true times."""

import random
from typing import Any

import pytest
import torch

from demo_world.batches import make_batch
from demo_world.questions import NOTHING
from demo_world.recipes import RECIPES
from demo_world.targets import IGNORED
from demo_world.times import NEVER, is_near, seen_at, time_in, timed_turn
from demo_world.tokenizer import build_tokenizer
from demo_world.training import Heads, run_batch
from demo_world.world import Shot, draw_scene, frame_times

RECIPE = RECIPES["qwen3_vl"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(timed=True)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return RECIPE.build(tokenizer).eval()


@torch.no_grad()
@pytest.mark.parametrize("step", [1, 5, 9])
def test_prompt_positions_and_tower_are_those_of_transformers(model: Any, tokenizer: Any, step: int) -> None:
    batch = make_batch(1, step, 2, 1.0, 60, tokenizer, RECIPE)  # the last stage drops tokens
    rows, columns = batch.shot.height // 16, batch.shot.width // 16
    seen, further = RECIPE.encode(model.model.visual, batch.patches, rows, columns)
    grids = torch.tensor([[1, rows, columns]] * len(batch.patches))
    theirs = model.model.visual(batch.patches.flatten(0, 1), grid_thw=grids)
    torch.testing.assert_close(seen.flatten(0, 1), theirs.pooler_output, rtol=0, atol=1e-5)
    for ours, features in zip(further, theirs.deepstack_features, strict=True):
        torch.testing.assert_close(ours, features, rtol=0, atol=1e-5)
    slices = -(-batch.shot.frames // 2)
    for row, ids in enumerate(batch.ids):
        ids = ids[ids != tokenizer.pad_token_id][None]
        if (is_video := (ids == model.config.video_token_id)).any():
            positions, _ = model.model.get_rope_index(
                ids, mm_token_type_ids=is_video.int() * 2, video_grid_thw=torch.tensor([[slices, rows, columns]])
            )
            assert torch.equal(batch.positions[:, row, : ids.shape[1]], positions[:, 0])


def test_patches_are_those_of_its_video_processor() -> None:
    from transformers import Qwen3VLVideoProcessor

    pixels = torch.randint(0, 256, (4, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    processor: Any = Qwen3VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    theirs = processor(videos=[pixels], return_tensors="pt", do_sample_frames=False)["pixel_values_videos"]
    torch.testing.assert_close(RECIPE.patches(pixels).flatten(0, 1), theirs, rtol=0, atol=1e-5)


def test_the_model_runs_a_batch_with_deepstack(model: Any, tokenizer: Any) -> None:
    batch = make_batch(1, 5, 3, 1.0, 60, tokenizer, RECIPE)
    out = run_batch(model, Heads(), batch, RECIPE)
    assert out.answer.isfinite() and (batch.labels != IGNORED).any()


def test_what_is_first_seen_in_a_frame_happened_since_the_frame_before() -> None:
    fractions = frame_times(5)  # 0, 0.25 and so on
    assert seen_at(0.0, fractions, 8.0) == 0.0
    assert seen_at(0.3, fractions, 8.0) == pytest.approx(3.0)
    assert seen_at(0.26, [0.0, 0.25], 8.0) is None


def test_drawn_times_are_true_and_the_middle_of_two_frames() -> None:
    rng, kinds = random.Random(5), set()
    for _ in range(1500):
        frames = rng.choice((4, 6, 8, 12, 16))
        seconds, scene = rng.uniform(1, 20), draw_scene(rng, Shot(frames, 96, 96))
        turn = timed_turn(rng, scene, frame_times(frames), seconds)
        if turn is None:
            continue
        kinds.add((turn.kind, turn.answer in (NEVER, NOTHING)))
        if turn.seconds is not None:
            given, distance = time_in(turn.answer), seconds / (frames - 1)
            assert given is not None and abs(given - turn.seconds) <= distance / 2 + 0.051
    assert kinds == {("when", False), ("when", True), ("between", False), ("between", True)}


def test_a_time_is_right_within_half_a_second_or_half_of_the_frames_distance() -> None:
    assert time_in("at 1:02.5.") == 62.5 and time_in("never.") is None
    assert is_near("at 0:03.5.", 3.9, 0.5) and not is_near("at 0:03.5.", 4.1, 0.5)
    assert is_near("at 0:03.5.", 4.4, 2.0) and not is_near("never.", 4.4, 2.0)
