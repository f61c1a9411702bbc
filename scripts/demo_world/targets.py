"""What the auxiliary heads of training learn about slices and clips, as class numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo_world.sampled import SampledScene
from demo_world.world import COLORS, DIRECTIONS, SHAPES, Actor, Scene

IGNORED = -100
TIMING_CLASSES = {"onset": 5} | {
    f"{when}_{digit}": 10 for when in ("slice", "between", "seen") for digit in ("tens", "ones", "tenths")
}
_KINDS = ("moves", "still", "appears", "changes")


@dataclass(frozen=True, slots=True)
class Targets:
    """What auxiliary heads learn, as class numbers (IGNORED where undefined).

    Per slice: shape and color of what is seen (or none), and which way it moves within the
    slice; its time's digits, and what begins in it or since the slice before. Per clip and actor: kind, direction,
    shape, color and end color.
    """

    slices: dict[str, Tensor]
    timing: dict[str, Tensor]
    clip: dict[str, Tensor]


def make_targets(clips: Sequence[SampledScene]) -> Targets:
    """Targets for a batch of clips."""
    slices = [[_slice_classes(clip.scene, *pair) for pair in clip.frame_pairs] for clip in clips]
    table = torch.tensor(slices)  # (clips, slices, 3)
    flat = table.flatten(0, 1)
    classes = _clip_classes([clip.scene for clip in clips])
    timing = torch.tensor([row for clip in clips for row in _timing_classes(clip)])
    return Targets(
        {"shape": flat[:, 0], "color": flat[:, 1], "motion": flat[:, 2]},
        {name: timing[:, column] for column, name in enumerate(TIMING_CLASSES)},
        classes,
    )


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


def _timing_classes(clip: SampledScene) -> list[tuple[int, ...]]:
    """Return for each slice its onset, and digits of its time, of that between it and the one before, and of the onset.

    The onset's time is one of the two others, IGNORED without an onset. An onset is 0 for none, 1 or 2 if a shape comes
    within the slice or since the one before, 3 or 4 if one takes its second color there.
    """
    rows, before = list[tuple[int, ...]](), -1.0
    for (first, second), seconds in zip(clip.frame_pairs, clip.slice_seconds, strict=True):
        between = clip.seconds * (before + first) / 2 if before >= 0 else 0.0
        onset = _onset(clip.scene, before, first, second)
        seen = _digits(seconds if onset % 2 else between) if onset else (IGNORED,) * 3
        digits = (*_digits(seconds), *_digits(between), *seen) if clip.timed else (IGNORED,) * 9
        rows.append((onset, *digits))
        before = second
    return rows


def asked_slices(clip: SampledScene, span: tuple[float, float]) -> list[bool]:
    """Return which slices show a span of the clip: of a single moment, the first one that shows what began there."""
    begin, end = span
    shown = [second >= begin and (first < end or begin == end) for first, second in clip.frame_pairs]
    first = next((index for index, each in enumerate(shown) if each), -1)
    return [each and (begin < end or index == first) for index, each in enumerate(shown)]


def _digits(seconds: float) -> tuple[int, int, int]:
    tenths = int(f"{seconds:.1f}".replace(".", ""))  # rounded as the prompt and answers are
    return tenths // 100 % 10, tenths // 10 % 10, tenths % 10


def _onset(scene: Scene, before: float, first: float, second: float) -> int:
    for actor in scene.actors:
        moments = [actor.appear] + ([actor.change] if actor.kind == "changes" else [])
        for number, moment in enumerate(moments):
            if before < moment <= first:
                return 2 + 2 * number
            if first < moment <= second:
                return 1 + 2 * number
    return 0


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
    classes = {"count": [len(scene.actors) if len(scene.actors) <= 2 else IGNORED for scene in scenes]}
    few = [scene.actors if len(scene.actors) <= 2 else () for scene in scenes]
    for slot in (0, 1):
        actors = [each[slot] if len(each) > slot else None for each in few]
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
