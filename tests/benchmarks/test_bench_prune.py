"""bench_prune: its clips, its random side and its paired differences."""

import bench_prune
import numpy as np
import pytest
import torch
from bench_prune import camera_clip, random_tokens, rows_of, sides, still_clip

from benchlib.paired import Marks
from demo_world.moving_camera import render_panned
from demo_world.recipes import RECIPES
from vidqa.engine import token_pruning

RECIPE = RECIPES["qwen3_vl"]


def test_a_still_recording_has_one_short_event() -> None:
    specs = [still_clip(seed, RECIPE) for seed in range(20)]
    assert {spec.sampled_frames for spec in specs} == {bench_prune.STILL_FRAMES}
    actors = [actor for spec in specs for actor in spec.scene.actors]
    assert len(actors) >= 15 and all(actor.stop - actor.start == pytest.approx(bench_prune.EVENT) for actor in actors)
    assert all(actor.leave > 1 and (actor.kind == "appears" or actor.appear == 0) for actor in actors)


def test_behind_a_moving_camera_the_whole_backdrop_changes() -> None:
    spec = camera_clip(3, RECIPE)
    pictures = render_panned(spec.scene, [0.0, 0.25, 0.5, 1.0], 112, 140).astype(int)
    assert pictures.shape == (4, 112, 140, 3)
    changed = np.abs(pictures[1:] - pictures[:-1]).max(axis=-1) > 2
    assert changed.mean() > 0.6
    assert np.array_equal(pictures, render_panned(spec.scene, [0.0, 0.25, 0.5, 1.0], 112, 140))


def test_tokens_are_drawn_at_random_within_the_block_only() -> None:
    rows = torch.ones(50, 4)
    with random_tokens(1):
        drawn = token_pruning.cosine_similarities(rows, rows)
    assert drawn.min() < 0.3 and drawn.max() < 1
    assert token_pruning.cosine_similarities(rows, rows).min() == pytest.approx(1)


def test_rows_and_bars_have_the_same_names() -> None:
    found = [{name: Marks(right, 20, 80) for name, *_ in sides(16)} | {"all": Marks(1.0, 80, 80)} for right in (1, 0.5)]
    keys = {row.key: row.value for section in ("still", "camera") for row in rows_of(section, found)}
    assert set(bench_prune.BARS) <= set(keys)
    assert keys["still: auto, times fewer tokens"] == 4.0 and keys["still: auto, points lost"] == 25.0
