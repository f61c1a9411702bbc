"""Events of long clips: sampled closely, asked by name; dropped tokens leave the positions of the others."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from demo_world.batches import Unusual, assemble, make_batch
from demo_world.questions import ask, draw_named
from demo_world.recipes import RECIPES
from demo_world.render import render_clips
from demo_world.sampled import SampledScene, draw_brief, draw_crowd, even
from demo_world.subtitles import with_subtitles
from demo_world.targets import make_targets
from demo_world.token_dropping import draw_kept
from demo_world.tokenizer import DEFAULT_SYSTEM, build_tokenizer
from demo_world.world import Shot
from tests.demo_world.test_questions import ONE, TWO

RECIPE = RECIPES["qwen3_vl"]


def _seen(clip: SampledScene) -> list[list[int]]:
    """Return which sampled frames show each actor."""
    return [
        [place for place, moment in enumerate(clip.fractions) if actor.appear <= moment < actor.leave]
        for actor in clip.scene.actors
    ]


def test_a_brief_event_is_seen_in_frames_in_the_middle_alone() -> None:
    rng = random.Random(3)
    for frames in (8, 9, 12, 32):
        for _ in range(50):
            clip = draw_brief(rng, Shot(frames, 96, 96))
            ((first, *rest),) = _seen(clip)
            assert first >= 1 and len(rest) >= 2 and rest[-1] < frames - 1
            assert rest == list(range(first + 1, rest[-1] + 1))
            assert len(clip.fractions) == frames and sorted(set(clip.fractions)) == list(clip.fractions)
            assert clip.fractions[0] == 0.0 and clip.fractions[-1] == 1.0
            assert clip.seconds <= 60 or not clip.timed


def test_events_of_a_crowd_follow_each_other_and_differ() -> None:
    rng = random.Random(4)
    for _ in range(100):
        clip = draw_crowd(rng, Shot(16, 96, 96))
        shown = _seen(clip)
        assert 3 <= len(shown) <= 4 and all(len(frames) >= 2 for frames in shown)
        flat = [place for frames in shown for place in frames]
        assert flat == sorted(set(flat))
        names = [set(actor.names) for actor in clip.scene.actors]
        assert sum(map(len, names)) == len(set.union(*names))
        for actor in clip.scene.actors:
            assert actor.kind != "still" and actor.appear < actor.leave


def test_named_questions_are_true() -> None:
    rng, absent = random.Random(5), 0
    for _ in range(300):
        turn = draw_named(rng, TWO)
        named = [actor for actor in TWO.actors if actor.names[0] in turn.question]
        absent += not named
        assert turn.answer.startswith("the " if named else "there is no ")
        assert not named or named[0].names[0] in turn.answer
    assert 20 < absent < 90


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(timed=True)


def test_dropped_tokens_leave_the_positions_of_the_others(tokenizer: Any) -> None:
    shot = Shot(8, 96, 128)
    clips = (even(ONE, 8, 4.0), even(TWO, 8, 4.0))
    turns = tuple((ask(clip.scene, "happens", "what happens?"),) for clip in clips)
    systems = [DEFAULT_SYSTEM] * 2
    whole = assemble(shot, clips, turns, systems, tokenizer, RECIPE)
    fewer = assemble(shot, clips, turns, systems, tokenizer, RECIPE, Unusual(random.Random(1), dropped=True))
    video = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert bool(whole.kept.all()) and not bool(fewer.kept.all())
    for clip in range(2):
        is_video = whole.ids[clip] == video
        expected = is_video.logical_not() & (whole.ids[clip] != tokenizer.pad_token_id)
        expected[is_video] = fewer.kept.view(2, -1)[clip]
        length = int(expected.sum())
        assert torch.equal(fewer.ids[clip, :length], whole.ids[clip][expected])
        assert torch.equal(fewer.positions[:, clip, :length], whole.positions[:, clip][:, expected])


def test_the_tokens_that_moved_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.zeros(1, 4, 3, 64, 64, dtype=torch.uint8)
    pixels[:, 2:, :, :32, 32:] = 200
    rng = random.Random(0)
    for _ in range(40):
        kept = draw_kept(rng, pixels, 32)
        assert bool(kept[0, 0].all()) and bool(kept[0, 1].any())
    monkeypatch.setattr(rng, "random", lambda: 0.5)
    monkeypatch.setattr(rng, "uniform", lambda low, high: 0.25)
    assert draw_kept(rng, pixels, 32)[0, 1].tolist() == [False, True, False, False]


@pytest.mark.parametrize(("choice", "busy"), [(max, 16), (min, 5)])
def test_in_half_of_the_clips_a_slice_that_changes_keeps_most_of_its_tokens(
    monkeypatch: pytest.MonkeyPatch, choice: Callable[[tuple[int, ...]], int], busy: int
) -> None:
    pixels = torch.zeros(1, 12, 3, 128, 128, dtype=torch.uint8)
    pixels[:, 6:, :, :32, 32:64] = 200  # from the fourth slice on
    rng = random.Random(0)
    monkeypatch.setattr(rng, "random", lambda: 0.4)
    monkeypatch.setattr(rng, "randint", lambda low, high: low)
    monkeypatch.setattr(rng, "choice", choice)
    assert draw_kept(rng, pixels, 32)[0].sum(1).tolist() == [16, 1, 1, busy, 1, 1]


def test_the_last_stage_has_everything(tokenizer: Any) -> None:
    seen: set[str] = set()
    for step in range(60):
        batch = make_batch(2, step, 3, 1.0, 60, tokenizer, RECIPE)
        seen |= {turn.kind for turns in batch.turns for turn in turns}
        seen |= {"crowd"} if any(len(clip.scene.actors) > 2 for clip in batch.clips) else set()
        seen |= {"dropped"} if not batch.kept.all() else set()
        seen |= {name for name, value in (("grain", batch.shot.grain), ("pan", any(batch.shot.pan))) if value}
    assert {"when", "between", "named", "crowd", "dropped", "grain", "pan"} <= seen


def test_subtitles_stand_before_the_slice_that_follows(tokenizer: Any) -> None:
    layout = RECIPE.layout([0.5, 2.5])
    lines = [(0.1, "Hello."), (0.5, "Yes."), (9.0, "No.")]
    assert "".join(map(str, with_subtitles(layout, [0.5, 2.5], lines))) == (
        "<0.1 seconds>Subtitle: Hello.\n<0.5 seconds><|vision_start|>1<|vision_end|><0.5 seconds>Subtitle: Yes.\n"
        "<2.5 seconds><|vision_start|>1<|vision_end|><9.0 seconds>Subtitle: No.\n"
    )
    clips = (even(ONE, 4, 4.0),)
    turns = ((ask(ONE, "happens", "what happens?"),),)
    batch = assemble(Shot(4, 96, 96), clips, turns, [""], tokenizer, RECIPE, Unusual(random.Random(1), subtitles=True))
    assert "seconds>Subtitle: " in tokenizer.decode(batch.ids[0])
    times = batch.positions[0, 0]
    assert bool((times[1:] >= times[:-1]).all())


def test_a_moving_background_leaves_the_shapes_where_they_are() -> None:
    scene, shot = replace(ONE, background="noisy"), Shot(8, 96, 96)
    moments = [even(scene, 8).fractions]
    plain, moving = (render_clips([scene], moments, each).float() for each in (shot, replace(shot, pan=(1.0, 0.5))))
    changed = (plain - moving).abs().amax(2)[0]
    assert bool((changed[0] < 4).all()) and bool((changed[4] > 8).any())


def test_slices_know_the_times_of_what_comes() -> None:
    actor = replace(ONE.actors[0], appear=0.5)
    clip = even(replace(ONE, actors=(actor,)), 8, 14.0)  # a frame every 2 s, the shape is there from 8 s on
    timing = {name: values.tolist() for name, values in make_targets([clip]).timing.items()}
    assert timing["onset"] == [0, 0, 2, 0]
    assert timing["slice_ones"] == [1, 5, 9, 3] and timing["slice_tens"] == [0, 0, 0, 1]
    assert timing["between_ones"] == [0, 3, 7, 1] and set(timing["between_tenths"]) == {0}
