"""Training batches: clips of one shape with conversations about them, from a seed and a step.

The same seed and step give the same batch, so training resumes anywhere. Knows tensors
and tokens; knows no model.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from demo_world.questions import STILL_PICTURE_QUESTIONS, SYSTEM_PROMPTS, Turn, ask, draw_named, draw_turns
from demo_world.recipes import SPEC, Recipe
from demo_world.render import render_clips
from demo_world.sampled import (
    MIN_BRIEF_FRAMES,
    MIN_CROWD_FRAMES,
    SampledScene,
    draw_brief,
    draw_crowd,
    draw_even,
    draw_glimpses,
)
from demo_world.subtitles import draw_lines, with_subtitles
from demo_world.targets import IGNORED
from demo_world.times import timed_turn
from demo_world.token_dropping import draw_kept
from demo_world.tokenizer import DEFAULT_SYSTEM
from demo_world.world import Shot
from vidqa.engine.prompt import text_positions
from vidqa.models.families.qwen2_vl.runtime import position_after, vision_positions
from vidqa.models.family import VisionGrid

# Of the turns, in a family that reads times.
_TIMED_SHARE, _NAMED_SHARE = 0.35, 0.3
# Of the last stage's batches, in a family that reads times.
_BRIEF_SHARE, _GLIMPSES_SHARE, _CROWD_SHARE = 0.12, 0.15, 0.4
_GRAIN_SHARE, _PAN_SHARE = 0.15, 0.08
_DROPPED_SHARE, _GAPS_SHARE, _SUBTITLES_SHARE = 0.4, 0.15, 0.1
# (frames, weight): mostly what the default plan gives real clips.
_FRAMES = ((1, 3), (2, 5), (4, 18), (6, 14), (8, 20), (10, 12), (12, 10), (14, 6), (16, 10), (24, 4), (32, 10), (48, 6))


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips and conversations as tensors.

    patches: (clips·slices, patches, 1176); kept: (clips·slices, visual tokens) of those that the decoder gets;
    ids, labels: (clips, tokens); positions: (3, clips, tokens); answers[i][j] and questions[i][j] are
    the (start, end) of turn j's in clip i.
    """

    shot: Shot
    clips: tuple[SampledScene, ...]
    turns: tuple[tuple[Turn, ...], ...]
    patches: Tensor
    kept: Tensor
    ids: Tensor
    labels: Tensor
    positions: Tensor
    after_video: Tensor
    answers: tuple[tuple[tuple[int, int], ...], ...]
    questions: tuple[tuple[tuple[int, int], ...], ...]


def draw_shot(rng: random.Random, stage: int, progress: float, recipe: Recipe) -> Shot:
    """The shape of a batch: stage 1 is single slices, big shapes first; stage 2 is short clips."""
    if stage == 1:
        height, width, _ = rng.choice(recipe.sizes[:6])
        return Shot(2, height, width, min_across=0.55 * (1 - progress) ** 2)
    choices = _FRAMES[2:5] if stage == 2 else _FRAMES
    sizes = recipe.sizes[:6] if stage == 2 else recipe.sizes
    frames = rng.choices([f for f, _ in choices], [w for _, w in choices])[0]
    height, width, _ = rng.choices(sizes, [weight for *_, weight in sizes])[0]
    return Shot(frames, height, width)


def _draw_disturbance(rng: random.Random, shot: Shot) -> Shot:
    """Draw noise and a moving background for some batches."""
    grain = rng.uniform(4, 24) if rng.random() < _GRAIN_SHARE else 0.0
    pan = (rng.uniform(-1.5, 1.5), rng.uniform(-1.5, 1.5)) if rng.random() < _PAN_SHARE else (0.0, 0.0)
    return replace(shot, grain=grain, pan=pan)


def _draw_clips(rng: random.Random, shot: Shot, count: int, *, timed: bool, uneven: bool) -> tuple[SampledScene, ...]:
    """Draw scenes of one kind: sampled evenly, or closely around one event or several ones."""
    chance = rng.random() if uneven else 1.0
    if chance < _BRIEF_SHARE and shot.frames >= MIN_BRIEF_FRAMES:
        return tuple(draw_brief(rng, shot) for _ in range(count))
    if _BRIEF_SHARE <= chance < _BRIEF_SHARE + _GLIMPSES_SHARE and shot.frames >= MIN_BRIEF_FRAMES:
        return tuple(draw_glimpses(rng, shot) for _ in range(count))
    if 1 - _CROWD_SHARE <= chance < 1 and shot.frames >= MIN_CROWD_FRAMES:
        return tuple(draw_crowd(rng, shot) for _ in range(count))
    return tuple(draw_even(rng, shot, timed=timed) for _ in range(count))


def make_batch(seed: int, step: int, stage: int, progress: float, tokens: int, tokenizer: Any, recipe: Recipe) -> Batch:
    """Draw a batch of about `tokens` visual tokens."""
    rng = random.Random(f"{seed}/{stage}/{step}")
    shot = draw_shot(rng, stage, progress, recipe)
    wide = recipe.timed and stage == 3  # everything that this world has
    shot = _draw_disturbance(rng, shot) if wide else shot
    side = recipe.token_pixels
    per_clip = -(-shot.frames // 2) * (shot.height // side) * (shot.width // side)
    count = max(4, min(224 if stage == 1 else 96, tokens // per_clip))
    clips = _draw_clips(rng, shot, count, timed=recipe.timed, uneven=wide)
    turn_count = rng.choice((1, 2, 2, 3, 3, 4))  # the same for all: little padding
    turns = tuple(_turns(rng, clip, turn_count, recipe) for clip in clips)
    unusual = None
    if wide:
        shares = (_DROPPED_SHARE, _GAPS_SHARE, _SUBTITLES_SHARE)
        unusual = Unusual(rng, *(rng.random() < share for share in shares))
    return assemble(shot, clips, turns, [_system(rng) for _ in clips], tokenizer, recipe, unusual)


@dataclass(frozen=True, slots=True)
class Unusual:
    """What a batch's prompts have: dropped tokens, positions that skip slices, subtitles."""

    rng: random.Random
    dropped: bool = False
    gaps: bool = False
    subtitles: bool = False


def assemble(
    shot: Shot,
    clips: tuple[SampledScene, ...],
    turns: tuple[tuple[Turn, ...], ...],
    systems: Sequence[str],
    tokenizer: Any,
    recipe: Recipe,
    unusual: Unusual | None = None,
) -> Batch:
    """Render and tokenise given clips and conversations."""
    pixels = render_clips([clip.scene for clip in clips], [clip.fractions for clip in clips], shot)
    if shot.frames % 2:
        pixels = torch.cat((pixels, pixels[:, -1:]), dim=1)
    patches = recipe.patches(pixels.flatten(0, 1))
    rows, columns = shot.height // recipe.token_pixels, shot.width // recipe.token_pixels
    kept = torch.ones(len(clips), pixels.shape[1] // 2, rows * columns, dtype=torch.bool)
    if unusual and unusual.dropped and shot.frames > 2:
        kept = draw_kept(unusual.rng, pixels, recipe.token_pixels)
    samples = [
        _sample(
            tokenizer, turn, system, _layout(recipe, clip, index, unusual), _Grid(rows, columns, kept[index], unusual)
        )
        for index, (clip, turn, system) in enumerate(zip(clips, turns, systems, strict=True))
    ]
    longest = max(len(sample.ids) for sample in samples)
    pad = tokenizer.pad_token_id
    return Batch(
        shot=shot,
        clips=clips,
        turns=turns,
        patches=patches,
        kept=kept.flatten(0, 1),
        ids=torch.tensor([sample.ids + [pad] * (longest - len(sample.ids)) for sample in samples]),
        labels=torch.tensor([sample.labels + [IGNORED] * (longest - len(sample.ids)) for sample in samples]),
        positions=torch.stack([_pad_positions(sample.positions, longest) for sample in samples], dim=1),
        after_video=torch.tensor([sample.after_video for sample in samples]),
        answers=tuple(tuple(sample.answers) for sample in samples),
        questions=tuple(tuple(sample.questions) for sample in samples),
    )


def _turns(rng: random.Random, clip: SampledScene, count: int, recipe: Recipe) -> tuple[Turn, ...]:
    scene = clip.scene
    if clip.searched:
        return tuple(draw_named(rng, scene, absent_share=0.5) for _ in range(count))
    if len(clip.fractions) == 1 and rng.random() < 0.3:
        return (ask(scene, "caption", rng.choice(STILL_PICTURE_QUESTIONS)),)
    if len(scene.actors) > 2:
        turns = tuple(draw_named(rng, scene) for _ in range(count))
    else:
        turns = draw_turns(rng, scene, count)
    if not recipe.timed:
        return turns
    return tuple(_special_turn(rng, clip) or turn for turn in turns)


def _special_turn(rng: random.Random, clip: SampledScene) -> Turn | None:
    """Draw a question about a time or a named shape, None for another kind."""
    chance = rng.random()
    if chance < _TIMED_SHARE:
        return timed_turn(rng, clip.scene, clip.fractions, clip.seconds) if clip.timed else None
    return draw_named(rng, clip.scene) if chance < _TIMED_SHARE + _NAMED_SHARE else None


def _system(rng: random.Random) -> str:
    return DEFAULT_SYSTEM if rng.random() < 0.75 else rng.choice(SYSTEM_PROMPTS)


@dataclass(slots=True)
class _Sample:
    ids: list[int]
    labels: list[int]
    positions: Tensor
    after_video: int
    answers: list[tuple[int, int]]
    questions: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Grid:
    """Tokens of a clip's slices: rows, columns, and which are kept (slices, rows·columns)."""

    rows: int
    columns: int
    kept: Tensor
    unusual: Unusual | None

    def gap(self, text: int) -> int:
        """Draw how many positions are skipped before a slice with so much text: those of slices left out."""
        if self.unusual is None or not self.unusual.gaps or self.unusual.rng.random() < 0.7:
            return 0
        return self.unusual.rng.randint(1, 30) * (text + max(self.rows, self.columns))


def _layout(recipe: Recipe, clip: SampledScene, index: int, unusual: Unusual | None) -> list[Any]:
    """Return a video's pieces: text, the pad token and its slices, text. Every other single frame is an image."""
    if len(clip.fractions) == 1 and index % 2:
        return ["<|vision_start|>", ("<|image_pad|>", 1), "<|vision_end|>"]
    layout = recipe.layout(clip.slice_seconds)
    if unusual and unusual.subtitles:
        layout = with_subtitles(layout, clip.slice_seconds, draw_lines(unusual.rng, clip.seconds))
    return [("<|video_pad|>", each) if isinstance(each, int) else each for each in layout]


def _sample(tokenizer: Any, turns: Sequence[Turn], system: str, pieces: Sequence[Any], grid: _Grid) -> _Sample:
    """One conversation: only answers (and the token that ends them) carry labels."""
    ids = _encode(tokenizer, f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    positions, after, done = [text_positions(0, len(ids))], len(ids), 0
    for piece in pieces:
        if isinstance(piece, str):
            text = _encode(tokenizer, piece)
            after += grid.gap(len(text)) if done else 0
            positions.append(text_positions(after, len(text)))
            ids, after = ids + text, after + len(text)
        else:
            pad, slices = piece
            video = VisionGrid(slices, grid.rows, grid.columns, 1.0)
            kept = grid.kept[done : done + slices].flatten()
            positions.append(vision_positions(SPEC, after, video)[:, kept])
            ids = ids + [tokenizer.convert_tokens_to_ids(pad)] * int(kept.sum())
            after, done = position_after(SPEC, after, video), done + slices
    before, after_video = len(ids), len(ids) - 1
    labels = [IGNORED] * len(ids)
    answers: list[tuple[int, int]] = []
    questions: list[tuple[int, int]] = []
    for turn in turns:
        opening = "<|im_start|>user\n" if answers else ""
        begin = len(ids) + len(_encode(tokenizer, opening))
        questions.append((begin, begin + len(_encode(tokenizer, turn.question))))
        asked = _encode(tokenizer, f"{opening}{turn.question}<|im_end|>\n<|im_start|>assistant\n")
        answer = _encode(tokenizer, f"{turn.answer}<|im_end|>")
        answers.append((len(ids) + len(asked), len(ids) + len(asked) + len(answer)))
        ids += asked + answer + _encode(tokenizer, "\n")
        labels += [IGNORED] * len(asked) + answer + [IGNORED]
    positions.append(text_positions(after, len(ids) - before))
    return _Sample(ids, labels, torch.cat(positions, dim=1), after_video, answers, questions)


@lru_cache(maxsize=65536)
def _token_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(_token_ids(tokenizer, text))


def _pad_positions(positions: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(positions, (0, length - positions.shape[1]))
