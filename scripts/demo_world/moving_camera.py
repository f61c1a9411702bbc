"""Scenes before a moving camera: a textured backdrop scrolls behind the shapes, so that every token of it changes."""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from demo_world.render_other import draw_frame
from demo_world.world import Scene

_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1))


def render_panned(scene: Scene, times: Sequence[float], height: int, width: int) -> np.ndarray:
    """Draw a scene at given moments (0 to 1): (frames, height, width, 3) uint8.

    The camera goes 0.8 to 2 pictures far during the clip. Shapes move in the picture as the scene says.
    """
    rng = random.Random(f"camera/{scene.seed}")
    far, (across, down) = rng.uniform(0.8, 2.0), rng.choice(_WAYS)
    reach_x, reach_y = round(far * width * abs(across)), round(far * height * abs(down))
    wide, hard = _texture(rng, height + reach_y, width + reach_x), rng.random() < 0.5
    pictures = []
    for time in times:
        x = round(reach_x * (time if across >= 0 else 1 - time))
        y = round(reach_y * (time if down >= 0 else 1 - time))
        backdrop = wide.crop((x, y, x + width, y + height))
        pictures.append(np.asarray(draw_frame(scene, time, backdrop, hard)))
    return np.stack(pictures)


def _texture(rng: random.Random, height: int, width: int) -> Image.Image:
    """Return gray blotches of two sizes, near one level."""
    noise = np.random.default_rng(rng.getrandbits(32))
    level, field = rng.uniform(50, 200), np.zeros((height, width))
    for size, strength in ((40, rng.uniform(0.2, 0.4)), (12, rng.uniform(0.05, 0.2))):
        cells = noise.integers(0, 255, (height // size + 2, width // size + 2), dtype=np.uint8)
        field += (np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), float) - 128) * (
            strength
        )
    picture = np.repeat((level + field)[..., None], 3, axis=2)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))
