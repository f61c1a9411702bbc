"""A second renderer that training never sees: Pillow polygons, other edges, colors and backdrops.

Held-out clips are drawn by it too, so that accuracy is of the world and not of one
renderer's habits.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo_world.world import Actor, Scene

_SCALE = 3  # drawn larger, then reduced: edges unlike the distance fields of the first renderer
_RGB = {"red": (228, 30, 52), "green": (28, 150, 48), "blue": (30, 62, 230), "yellow": (246, 222, 24)}


def render_frames(scene: Scene, times: Sequence[float], height: int, width: int) -> np.ndarray:
    """Draw a scene at given moments: (frames, height, width, 3) uint8."""
    rng = random.Random(scene.seed)
    backdrop = _backdrop(scene, rng, height, width)
    hard = rng.random() < 0.5
    return np.stack([np.asarray(draw_frame(scene, time, backdrop, hard)) for time in times])


def _backdrop(scene: Scene, rng: random.Random, height: int, width: int) -> Image.Image:
    level = rng.uniform(20, 230)
    base = np.array([level + rng.uniform(-12, 12) for _ in range(3)])
    down, across = np.mgrid[0:height, 0:width]
    field = np.zeros((height, width))
    if scene.background == "graded":  # a vignette instead of a ramp
        distance = np.hypot(down / height - 0.5, across / width - 0.5)
        field = -distance * rng.uniform(30, 90)
    elif scene.background == "noisy":
        noise = np.random.default_rng(scene.seed)
        coarse = Image.fromarray(noise.integers(0, 255, (max(height // 20, 2), max(width // 20, 2)), dtype=np.uint8))
        field = (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float) - 128) * rng.uniform(
            0.1, 0.3
        )
        field = field + noise.normal(0, rng.uniform(2, 12), (height, width))
    picture = base + field[..., None]
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def draw_frame(scene: Scene, time: float, backdrop: Image.Image, hard: bool) -> Image.Image:
    """Draw a scene at one moment over a backdrop, with hard or soft edges."""
    width, height = backdrop.size
    mask = Image.new("L", (width * _SCALE, height * _SCALE), 0)
    paint = (0, 0, 0)
    for actor in scene.actors:
        if actor.appear <= time < actor.leave:
            ImageDraw.Draw(mask).polygon(_outline(actor, time, width * _SCALE, height * _SCALE), fill=255)
            paint = _RGB[actor.color if time < actor.change else actor.end_color]
    filter_ = Image.Resampling.NEAREST if hard else Image.Resampling.BOX
    small = mask.resize((width, height), filter_)
    if not hard:
        small = small.filter(ImageFilter.GaussianBlur(0.6))
    return Image.composite(Image.new("RGB", (width, height), paint), backdrop, small)


def _outline(actor: Actor, time: float, width: int, height: int) -> list[tuple[float, float]]:
    way = min(max((time - actor.start) / (actor.stop - actor.start), 0.0), 1.0)
    center_x = (actor.x + (actor.end_x - actor.x) * way) * width
    center_y = (actor.y + (actor.end_y - actor.y) * way) * height
    reach = actor.across * min(width, height) / 2
    turn = math.radians(actor.turn_degrees)
    return [
        (
            center_x + reach * (x * math.cos(turn) - y * math.sin(turn)),
            center_y + reach * (x * math.sin(turn) + y * math.cos(turn)),
        )
        for x, y in _corners(actor.shape)
    ]


def _corners(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)]
    if shape == "triangle":
        return [(0.0, -0.95), (1.0, 0.9), (-1.0, 0.9)]
    return [(math.cos(step * math.pi / 24), math.sin(step * math.pi / 24)) for step in range(48)]
