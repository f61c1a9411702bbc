"""Scenes to pixels, many clips at once. This is the renderer that training sees.

Shapes are anti-aliased by their signed distance; afterwards pictures are softened a little
as a video codec and a resize would. Knows scenes; knows no files and no words.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from demo_world.world import Actor, Scene, Shot

RGB = {"red": (215, 40, 40), "green": (40, 165, 60), "blue": (45, 75, 215), "yellow": (235, 210, 45)}


def render_clips(scenes: Sequence[Scene], moments: Sequence[Sequence[float]], shot: Shot) -> Tensor:
    """Draw every scene at its moments (0 to 1), softened: (clips, frames, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(scenes[0].seed)
    picture = _draw_scenes(scenes, torch.tensor(moments), shot, generator)
    picture = _soften(picture, generator)
    if shot.grain:
        picture += torch.randn(picture.shape, generator=generator) * shot.grain
    return picture.round_().clamp_(0, 255).to(torch.uint8)


def render_clips_at(scenes: Sequence[Scene], moments: Sequence[float], height: int, width: int) -> Tensor:
    """Draw every scene at given moments (0 to 1): (clips, frames, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(scenes[0].seed)
    times = torch.tensor(moments).expand(len(scenes), -1)
    picture = _draw_scenes(scenes, times, Shot(len(moments), height, width), generator)
    return picture.round_().clamp_(0, 255).to(torch.uint8)


def _draw_scenes(scenes: Sequence[Scene], times: Tensor, shot: Shot, generator: torch.Generator) -> Tensor:
    """Draw scenes at times (clips, frames): (clips, frames, 3, height, width) float."""
    picture = _backgrounds(scenes, times.shape[1], shot.height, shot.width, generator)
    if any(shot.pan):
        _pan(picture, times, shot.pan)
    for slot in range(max(len(scene.actors) for scene in scenes)):
        chosen = [index for index, scene in enumerate(scenes) if len(scene.actors) > slot]
        if chosen:
            actors = [scenes[index].actors[slot] for index in chosen]
            picture[chosen] = _draw(picture[chosen], actors, times[chosen], generator)
    return picture


def _pan(picture: Tensor, times: Tensor, sides: tuple[float, float]) -> None:
    """Move backgrounds (clips, frames, 3, height, width) by so many sides over the clip; what leaves comes back."""
    height, width = picture.shape[-2:]
    for clip, moments in zip(picture, times, strict=True):
        for frame, moment in zip(clip, moments.tolist(), strict=True):
            frame.copy_(frame.roll((round(sides[0] * moment * height), round(sides[1] * moment * width)), (1, 2)))


def _backgrounds(scenes: Sequence[Scene], frames: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    count = len(scenes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    level = uniform(15, 240, count, 1, 1, 1)
    base = level + uniform(-14, 14, count, 3, 1, 1)
    graded = torch.tensor([scene.background == "graded" for scene in scenes]).view(-1, 1, 1, 1)
    noisy = torch.tensor([scene.background == "noisy" for scene in scenes]).view(-1, 1, 1, 1)
    angle = uniform(0, 2 * math.pi, count, 1, 1, 1)
    down = torch.linspace(-0.5, 0.5, height).view(1, 1, -1, 1)
    across = torch.linspace(-0.5, 0.5, width).view(1, 1, 1, -1)
    ramp = (torch.cos(angle) * across + torch.sin(angle) * down) * uniform(30, 110, count, 1, 1, 1)
    grain = torch.randn(count, 1, height, width, generator=generator) * uniform(4, 22, count, 1, 1, 1)
    blobs = torch.randn(count, 1, height // 14, width // 14, generator=generator)
    blotches = interpolate(blobs, (height, width), mode="bilinear") * uniform(4, 22, count, 1, 1, 1)
    still = base + graded * ramp + noisy * (grain + blotches)
    return still.clamp(0, 255)[:, None].expand(-1, frames, -1, -1, -1).clone()


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1)


def _draw(picture: Tensor, actors: Sequence[Actor], times: Tensor, generator: torch.Generator) -> Tensor:
    """Lay one actor per clip over (clips, frames, 3, height, width) at times (clips, frames)."""
    height, width = picture.shape[-2:]
    start, stop = _column([a.start for a in actors]), _column([a.stop for a in actors])
    way = ((times - start) / (stop - start)).clamp(0, 1)  # (clips, frames)
    x0, x1 = _column([a.x for a in actors]), _column([a.end_x for a in actors])
    y0, y1 = _column([a.y for a in actors]), _column([a.end_y for a in actors])
    center_x, center_y = (x0 + (x1 - x0) * way) * width, (y0 + (y1 - y0) * way) * height
    reach = _column([a.across / 2 * min(height, width) for a in actors])[..., None, None]
    dx = torch.arange(width).view(1, 1, 1, -1) + 0.5 - center_x[..., None, None]
    dy = torch.arange(height).view(1, 1, -1, 1) + 0.5 - center_y[..., None, None]
    distance = _distance(actors, dx, dy, reach)
    there = (times >= _column([a.appear for a in actors])) & (times < _column([a.leave for a in actors]))
    alpha = ((0.5 - distance) * there[..., None, None]).clamp(0, 1)[:, :, None]  # (clips, frames, 1, h, w)
    jitter = torch.randn(len(actors), 1, 3, generator=generator) * 9
    first = torch.tensor([RGB[a.color] for a in actors]).float()[:, None] + jitter
    last = torch.tensor([RGB[a.end_color] for a in actors]).float()[:, None] + jitter
    changed = (times >= _column([a.change for a in actors]))[..., None]
    paint = torch.where(changed, last, first)[..., None, None]  # (clips, frames, 3, 1, 1)
    return picture.lerp(paint, alpha)


def _distance(actors: Sequence[Actor], dx: Tensor, dy: Tensor, reach: Tensor) -> Tensor:
    """Signed distance in pixels to each actor's outline, negative inside."""
    angle = _column([math.radians(a.turn_degrees) for a in actors])[..., None, None]
    x = dx * angle.cos() + dy * angle.sin()
    y = dy * angle.cos() - dx * angle.sin()
    circle = (x * x + y * y).sqrt() - reach
    square = torch.maximum(x.abs(), y.abs()) - reach * 0.94
    slope = math.sqrt(0.8)  # a triangle as high as it is wide: its sides' normals are (2, -1) / √5
    triangle = torch.maximum((x.abs() * 2 - (y + reach)) * (slope / 2), y - reach)
    names = [a.shape for a in actors]
    is_circle = torch.tensor([name == "circle" for name in names]).view(-1, 1, 1, 1)
    is_square = torch.tensor([name == "square" for name in names]).view(-1, 1, 1, 1)
    return torch.where(is_circle, circle, torch.where(is_square, square, triangle))


def _soften(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Imitate a codec: coarser color, a little blur, noise, other levels, in different strengths per clip.

    Works in place on (clips, frames, 3, height, width); each effect is left out of every other batch.
    """
    clips, frames, _, height, width = picture.shape
    flat = picture.view(clips * frames, 3, height, width)

    def dose(low: float, high: float) -> Tensor:
        values = torch.rand(clips, 1, generator=generator) * (high - low) + low
        return values.expand(clips, frames).reshape(-1, 1, 1, 1)

    effects = torch.rand(3, generator=generator) < 0.5
    if effects[0]:
        light = flat.mean(1, keepdim=True)
        coarse = interpolate(avg_pool2d(flat - light, 2), (height, width), mode="bilinear")
        flat = flat.lerp_(coarse.add_(light), dose(0, 1))
    if effects[1]:
        blurred = avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False)
        flat = flat.lerp_(blurred, dose(0, 0.9))
    if effects[2]:
        grain = torch.randn(8, 1, height, width, generator=generator)  # a few grains for all frames: drawn fast
        which = torch.randint(0, 8, (clips * frames,), generator=generator)
        flat = flat.addcmul_(grain[which], dose(0, 4))
    gain = dose(0.9, 1.08)
    return flat.mul_(gain).add_(128 - 128 * gain + dose(-8, 8)).view(picture.shape)
