"""Training batches: clips of one shape with conversations about them, from a seed and a step.

The same seed and step give the same batch, so training resumes anywhere. Knows tensors
and tokens; knows no model.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demo_world.questions import STILL_PICTURE_QUESTIONS, SYSTEM_PROMPTS, Turn, ask, draw_turns
from demo_world.recipes import SPEC, Recipe
from demo_world.render import render_clips
from demo_world.times import timed_turn
from demo_world.tokenizer import DEFAULT_SYSTEM
from demo_world.world import COLORS, DIRECTIONS, SHAPES, Actor, Scene, Shot, draw_scene, frame_times
from vidqa.engine.prompt import text_positions
from vidqa.models.families.qwen2_vl.runtime import position_after, vision_positions
from vidqa.models.family import VisionGrid

IGNORED = -100
_TIMED_SHARE = 0.35  # of the turns, in a family that reads times
_KINDS = ("moves", "still", "appears", "changes")
# (frames, weight): mostly what the default plan gives real clips.
_FRAMES = ((1, 3), (2, 5), (4, 18), (6, 14), (8, 20), (10, 12), (12, 10), (14, 6), (16, 10), (32, 2))


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips and conversations as tensors.

    patches: (clips·slices, patches, 1176); ids, labels: (clips, tokens); positions:
    (3, clips, tokens); answers[i][j] is the (start, end) of turn j's answer in clip i.
    """

    shot: Shot
    scenes: tuple[Scene, ...]
    turns: tuple[tuple[Turn, ...], ...]
    patches: Tensor
    ids: Tensor
    labels: Tensor
    positions: Tensor
    after_video: Tensor
    answers: tuple[tuple[tuple[int, int], ...], ...]


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


def draw_seconds(rng: random.Random, frames: int) -> float:
    """Draw a clip's length of which so many frames are sampled: 2 a second by default, 16 of a longer one."""
    if frames == 1:
        return 0.0
    if frames >= 16:
        return rng.uniform(8, 20)
    return frames / 2 + rng.uniform(0, 0.98) if rng.random() < 0.7 else rng.uniform(1, 20)


def make_batch(seed: int, step: int, stage: int, progress: float, tokens: int, tokenizer: Any, recipe: Recipe) -> Batch:
    """Draw a batch of about `tokens` visual tokens."""
    rng = random.Random(f"{seed}/{stage}/{step}")
    shot = draw_shot(rng, stage, progress, recipe)
    side = recipe.token_pixels
    per_clip = -(-shot.frames // 2) * (shot.height // side) * (shot.width // side)
    clips = max(4, min(224 if stage == 1 else 96, tokens // per_clip))
    scenes = tuple(draw_scene(rng, shot) for _ in range(clips))
    count = rng.choice((1, 2, 2, 3, 3, 4))  # the same for all: little padding
    seconds = [draw_seconds(rng, shot.frames) for _ in scenes] if recipe.timed else [0.0] * clips
    turns = tuple(_turns(rng, scene, shot, count, each) for scene, each in zip(scenes, seconds, strict=True))
    return assemble(shot, scenes, turns, [_system(rng) for _ in scenes], tokenizer, recipe, seconds)


def assemble(
    shot: Shot,
    scenes: tuple[Scene, ...],
    turns: tuple[tuple[Turn, ...], ...],
    systems: Sequence[str],
    tokenizer: Any,
    recipe: Recipe,
    seconds: Sequence[float],
) -> Batch:
    """Render and tokenise given scenes, conversations and lengths of the clips."""
    pixels = render_clips(scenes, shot.frames, shot.height, shot.width)
    if shot.frames % 2:
        pixels = torch.cat((pixels, pixels[:, -1:]), dim=1)
    patches = recipe.patches(pixels.flatten(0, 1))
    rows, columns = shot.height // recipe.token_pixels, shot.width // recipe.token_pixels
    samples = [
        _sample(tokenizer, turn, system, _layout(recipe, shot, index, seconds[index]), (rows, columns))
        for index, (turn, system) in enumerate(zip(turns, systems, strict=True))
    ]
    longest = max(len(sample.ids) for sample in samples)
    pad = tokenizer.pad_token_id
    return Batch(
        shot=shot,
        scenes=scenes,
        turns=turns,
        patches=patches,
        ids=torch.tensor([sample.ids + [pad] * (longest - len(sample.ids)) for sample in samples]),
        labels=torch.tensor([sample.labels + [IGNORED] * (longest - len(sample.ids)) for sample in samples]),
        positions=torch.stack([_pad_positions(sample.positions, longest) for sample in samples], dim=1),
        after_video=torch.tensor([sample.after_video for sample in samples]),
        answers=tuple(tuple(sample.answers) for sample in samples),
    )


def _turns(rng: random.Random, scene: Scene, shot: Shot, count: int, seconds: float) -> tuple[Turn, ...]:
    if shot.frames == 1 and rng.random() < 0.3:
        return (ask(scene, "caption", rng.choice(STILL_PICTURE_QUESTIONS)),)
    turns = draw_turns(rng, scene, count)
    if not seconds:
        return turns
    fractions = frame_times(shot.frames)
    timed = [timed_turn(rng, scene, fractions, seconds) if rng.random() < _TIMED_SHARE else None for _ in turns]
    return tuple(other or turn for turn, other in zip(turns, timed, strict=True))


def _system(rng: random.Random) -> str:
    return DEFAULT_SYSTEM if rng.random() < 0.75 else rng.choice(SYSTEM_PROMPTS)


@dataclass(slots=True)
class _Sample:
    ids: list[int]
    labels: list[int]
    positions: Tensor
    after_video: int
    answers: list[tuple[int, int]]


def _layout(recipe: Recipe, shot: Shot, index: int, seconds: float) -> list[Any]:
    """Return a video's pieces: text, the pad token and its slices, text. Every other single frame is an image."""
    if shot.frames == 1 and index % 2:
        return ["<|vision_start|>", ("<|image_pad|>", 1), "<|vision_end|>"]
    moments = [seconds * each for each in frame_times(shot.frames)]
    moments += moments[-1:] * (len(moments) % 2)
    middles = [(first + second) / 2 for first, second in zip(moments[::2], moments[1::2], strict=True)]
    return [("<|video_pad|>", each) if isinstance(each, int) else each for each in recipe.layout(middles)]


def _sample(
    tokenizer: Any, turns: Sequence[Turn], system: str, pieces: Sequence[Any], grid: tuple[int, int]
) -> _Sample:
    """One conversation: only answers (and the token that ends them) carry labels."""
    rows, columns = grid
    ids = _encode(tokenizer, f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    positions, after = [text_positions(0, len(ids))], len(ids)
    for piece in pieces:
        if isinstance(piece, str):
            text = _encode(tokenizer, piece)
            positions.append(text_positions(after, len(text)))
            ids, after = ids + text, after + len(text)
        else:
            pad, slices = piece
            video = VisionGrid(slices, rows, columns, 1.0)
            positions.append(vision_positions(SPEC, after, video))
            ids = ids + [tokenizer.convert_tokens_to_ids(pad)] * (slices * rows * columns)
            after = position_after(SPEC, after, video)
    before, after_video = len(ids), len(ids) - 1
    labels = [IGNORED] * len(ids)
    answers: list[tuple[int, int]] = []
    for turn in turns:
        opening = "<|im_start|>user\n" if answers else ""
        asked = _encode(tokenizer, f"{opening}{turn.question}<|im_end|>\n<|im_start|>assistant\n")
        answer = _encode(tokenizer, f"{turn.answer}<|im_end|>")
        answers.append((len(ids) + len(asked), len(ids) + len(asked) + len(answer)))
        ids += asked + answer + _encode(tokenizer, "\n")
        labels += [IGNORED] * len(asked) + answer + [IGNORED]
    positions.append(text_positions(after, len(ids) - before))
    return _Sample(ids, labels, torch.cat(positions, dim=1), after_video, answers)


_encoded: dict[str, list[int]] = {}


def _encode(tokenizer: Any, text: str) -> list[int]:
    if text not in _encoded:
        _encoded[text] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(_encoded[text])


def _pad_positions(positions: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(positions, (0, length - positions.shape[1]))


@dataclass(frozen=True, slots=True)
class Targets:
    """What auxiliary heads learn, as class numbers (IGNORED where undefined).

    Per slice: shape and color of what is seen (or none), and which way it moves within the
    slice. Per clip and actor: kind, direction, shape, color and end color.
    """

    slices: dict[str, Tensor]
    clip: dict[str, Tensor]


def make_targets(scenes: Sequence[Scene], frames: int) -> Targets:
    """Targets for a batch of scenes sampled at `frames` moments."""
    times = frame_times(frames)
    if frames % 2:
        times.append(times[-1])
    pairs = list(zip(times[::2], times[1::2], strict=True))
    slices = [[_slice_classes(scene, *pair) for pair in pairs] for scene in scenes]
    table = torch.tensor(slices)  # (clips, slices, 3)
    flat = table.flatten(0, 1)
    return Targets({"shape": flat[:, 0], "color": flat[:, 1], "motion": flat[:, 2]}, _clip_classes(scenes))


def _slice_classes(scene: Scene, first: float, second: float) -> tuple[int, int, int]:
    seen = [actor for actor in scene.actors if _there(actor, first) or _there(actor, second)]
    if not seen:
        return len(SHAPES), len(COLORS), len(DIRECTIONS)
    if len(seen) > 1:
        return IGNORED, IGNORED, IGNORED
    actor = seen[0]
    colors = {actor.color if time < actor.change else actor.end_color for time in (first, second)}
    color = COLORS.index(colors.pop()) if len(colors) == 1 else IGNORED
    return SHAPES.index(actor.shape), color, _slice_motion(actor, first, second)


def _there(actor: Actor, time: float) -> bool:
    return actor.appear <= time < actor.leave


def _slice_motion(actor: Actor, first: float, second: float) -> int:
    if actor.kind != "moves":
        return len(DIRECTIONS)
    if not (_there(actor, first) and _there(actor, second)):
        return IGNORED
    way = [min(max((time - actor.start) / (actor.stop - actor.start), 0), 1) for time in (first, second)]
    moved = (way[1] - way[0]) * max(abs(actor.end_x - actor.x), abs(actor.end_y - actor.y))
    if moved > 0.02:
        return DIRECTIONS.index(actor.direction)
    return len(DIRECTIONS) if moved < 0.002 else IGNORED


def _clip_classes(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    classes: dict[str, list[int]] = {"count": [len(scene.actors) for scene in scenes]}
    for slot in (0, 1):
        actors = [scene.actors[slot] if len(scene.actors) > slot else None for scene in scenes]
        classes[f"kind{slot}"] = [_KINDS.index(a.kind) if a else IGNORED for a in actors]
        classes[f"direction{slot}"] = [
            DIRECTIONS.index(a.direction) if a and a.kind == "moves" else IGNORED for a in actors
        ]
        classes[f"shape{slot}"] = [SHAPES.index(a.shape) if a else IGNORED for a in actors]
        classes[f"color{slot}"] = [COLORS.index(a.color) if a else IGNORED for a in actors]
        classes[f"end_color{slot}"] = [COLORS.index(a.end_color) if a else IGNORED for a in actors]
    return {name: torch.tensor(values) for name, values in classes.items()}


CLIP_CLASSES = {"count": 3} | {
    f"{name}{slot}": size
    for slot in (0, 1)
    for name, size in (("kind", 4), ("direction", 4), ("shape", 3), ("color", 4), ("end_color", 4))
}
