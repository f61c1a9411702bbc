"""Video files of scenes in many sizes, rates, codecs and qualities."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from demo_world.export import MAX_FRAMES, pixel_bounds
from demo_world.recipes import Recipe
from demo_world.render import render_clips_at
from demo_world.render_other import render_frames
from demo_world.world import Scene, Shot, draw_scene, frame_times
from vidqa.video.frame_sampling import smart_resize

_SOURCE_SIZES = (
    (160, 120), (200, 150), (320, 240), (400, 300), (256, 256), (320, 180), (426, 240), (560, 240), (180, 320),
    (240, 320),
)  # fmt: skip
_ASKED_FRAMES = (1, 2, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """One clip to make: its scene, shot and encoding."""

    scene: Scene
    width: int
    height: int
    fps: int
    seconds: float
    codec: str
    options: tuple[tuple[str, str], ...]
    other_renderer: bool
    asked_frames: int | None = None
    sampled_frames: int = 0

    @property
    def fractions(self) -> list[float]:
        """When the sampled frames are, as fractions of the time from the first to the last picture."""
        return frame_times(self.sampled_frames)

    @property
    def last_seconds(self) -> float:
        """When the last picture is shown."""
        return (self.count - 1) / self.fps

    @property
    def count(self) -> int:
        """Frames in the file."""
        return max(round(self.seconds * self.fps), 2)


def draw_clip(seed: int, recipe: Recipe, *, other_renderer: bool) -> ClipSpec:
    """A held-out clip whose events show in its sampled frames: the default number, or one asked for."""
    rng = random.Random(f"clip/{seed}")
    width, height = rng.choice(_SOURCE_SIZES)
    width, height = width + 2 * rng.randint(0, 12), height + 2 * rng.randint(0, 12)
    fps, seconds = rng.choice((10, 12, 15, 24, 25, 30)), rng.uniform(1, 20)
    asked = rng.choice(_ASKED_FRAMES) if rng.random() < 0.2 else None
    least, most = pixel_bounds(recipe)
    tall, wide = smart_resize(height, width, factor=recipe.token_pixels, min_pixels=least, max_pixels=most)
    sampled = min(asked or max(int(seconds * 2), 4) // 2 * 2, round(seconds * fps))
    sampled = sampled if asked else min(sampled, MAX_FRAMES)
    scene = draw_scene(rng, Shot(sampled, tall, wide))
    codec, options = _encoding(rng, other_renderer)
    return ClipSpec(scene, width, height, fps, seconds, codec, options, other_renderer, asked, sampled)


def _encoding(rng: random.Random, other: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    if other and rng.random() < 0.2:
        return "mpeg4", (("qscale", str(rng.randint(2, 6))),)
    crf = rng.randint(18, 34) if other else rng.randint(20, 28)
    return "libx264", (("crf", str(crf)), ("preset", rng.choice(("ultrafast", "veryfast", "medium"))))


def write_clip(spec: ClipSpec, path: Path, render: Callable[[ClipSpec, list[float]], np.ndarray] | None = None) -> None:
    """Render and encode a clip; `render` draws its pictures at some moments, by default its own renderer does."""
    times = [index / (spec.count - 1) for index in range(spec.count)]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(spec.codec, rate=Fraction(spec.fps), options=dict(spec.options))
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, "yuv420p"
        stream.codec_context.thread_count = 1  # the same file on every machine
        for start in range(0, spec.count, 32):
            for picture in (render or _pictures)(spec, times[start : start + 32]):
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
        container.mux(stream.encode())


def _pictures(spec: ClipSpec, times: list[float]) -> np.ndarray:
    if spec.other_renderer:
        return render_frames(spec.scene, times, spec.height, spec.width)
    pixels = render_clips_at([spec.scene], times, spec.height, spec.width)[0]
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
