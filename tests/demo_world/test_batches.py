"""Training batches: repeatable, labelled on answers alone, positioned as transformers positions them."""

import random
from typing import Any

import pytest
import torch

from demo_world.batches import Batch, assemble, make_batch
from demo_world.questions import QUESTIONS, ask
from demo_world.recipes import RECIPES
from demo_world.sampled import even
from demo_world.subtitles import draw_lines
from demo_world.targets import IGNORED, make_targets
from demo_world.tokenizer import DEFAULT_SYSTEM, build_tokenizer
from demo_world.world import Shot
from tests.conftest import ROOT
from tests.demo_world.test_questions import ONE, TWO

RECIPE = RECIPES["qwen2_vl"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def _batch(tokenizer: Any, shot: Shot) -> Batch:
    turns = tuple((ask(scene, "happens", "what happens?"), ask(scene, "count", "how many?")) for scene in (ONE, TWO))
    clips = (even(ONE, shot.frames), even(TWO, shot.frames))
    return assemble(shot, clips, turns, [DEFAULT_SYSTEM, "Be brief."], tokenizer, RECIPE)


def test_a_seed_and_a_step_give_one_batch(tokenizer: Any) -> None:
    first, second = (make_batch(5, 3, 3, 0.0, 60, tokenizer, RECIPE) for _ in range(2))
    assert torch.equal(first.patches, second.patches) and torch.equal(first.ids, second.ids)
    other = make_batch(5, 4, 3, 0.0, 60, tokenizer, RECIPE)
    assert other.ids.shape != first.ids.shape or not torch.equal(other.ids, first.ids)


def test_only_answers_carry_labels(tokenizer: Any) -> None:
    batch = _batch(tokenizer, Shot(6, 84, 112))
    for row, turns in enumerate(batch.turns):
        labels = batch.labels[row]
        assert tokenizer.decode(labels[labels != IGNORED]) == "".join(f"{turn.answer}<|im_end|>" for turn in turns)
        for turn, (start, end) in zip(turns, batch.answers[row], strict=True):
            assert tokenizer.decode(batch.ids[row, start:end]) == f"{turn.answer}<|im_end|>"


@pytest.mark.parametrize("frames", [1, 2, 6, 8])
def test_positions_are_those_of_transformers(tokenizer: Any, frames: int) -> None:
    batch = _batch(tokenizer, Shot(frames, 84, 112))
    model: Any = RECIPE.build(tokenizer)
    token = model.config.video_token_id if frames > 1 else model.config.image_token_id
    row = 0 if frames > 1 else 1  # every other single frame is an image
    ids = batch.ids[row][batch.ids[row] != tokenizer.pad_token_id][None]
    grid = torch.tensor([[-(-frames // 2), 84 // 14, 112 // 14]])
    kinds = (ids == token).int() * (2 if frames > 1 else 1)
    grids = {"video_grid_thw": grid} if frames > 1 else {"image_grid_thw": grid}
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, **grids)
    assert torch.equal(batch.positions[:, row, : ids.shape[1]], positions[:, 0])


def test_the_video_is_as_long_as_its_slices(tokenizer: Any) -> None:
    batch = _batch(tokenizer, Shot(6, 84, 112))
    video = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert (batch.ids == video).sum(1).tolist() == [3 * 3 * 4] * 2
    assert batch.patches.shape == (2 * 3, 6 * 8, 1176)


def test_targets_follow_the_scene() -> None:
    targets = make_targets([even(ONE, 8), even(TWO, 8)])
    assert targets.clip["count"].tolist() == [1, 2]
    assert targets.clip["kind1"].tolist() == [IGNORED, 2]
    assert targets.slices["shape"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert targets.slices["motion"].tolist()[:4] == [1, 1, 1, 1]


def test_a_card_takes_new_figures() -> None:
    from demo_world.card import training_card, with_accuracy

    card = training_card(
        recipe=RECIPE, command="train", seed=3, parameters=2_830_080, steps=9, minutes=4.2, device="cpu",
        curve=[{"stage": 2, "step": 9, "minutes": 4.2, "all": 0.5}],
        earlier={"runs": 2, "steps": 1900, "minutes": 61.2},
    )  # fmt: skip
    assert "runs: 2; together 1,900 steps and 61 minutes" in card
    assert "Seed 3" in card and "| 2 | 9 | 4 | one event 50.0 % |" in card and f"{len(QUESTIONS)} kinds" in card
    renewed = with_accuracy(card, "evaluate", {"all": {"right": 0.875, "count": 8}})
    assert "| all | 87.5 % | 8 |" in renewed and "Not measured" not in renewed and "Not measured" in card
    assert with_accuracy(renewed, "evaluate", {"all": {"right": 0.875, "count": 8}}) == renewed


def test_a_card_says_how_many_subtitles_training_had() -> None:
    from demo_world.card import training_card

    most = max(len(draw_lines(random.Random(seed), 10.0)) for seed in range(50))
    card = training_card(
        recipe=RECIPES["qwen3_vl"], command="train", seed=3, parameters=1, steps=1, minutes=1.0, device="cpu", curve=[],
        earlier={"runs": 0, "steps": 0, "minutes": 0},
    )  # fmt: skip
    (line,) = (line for line in card.splitlines() if line.endswith("lines"))
    assert line.endswith(f"up to {most} lines")
    assert line in (ROOT / "assets" / "demo-model" / "README.md").read_text(encoding="utf-8")
