"""Clips drawn in memory, without files, that the demo model answers correctly."""

from collections.abc import Iterator, Sequence

import numpy as np

from benchlib.runs import synthetic_video
from demo_world.render import render_clips_at
from demo_world.world import Actor, Scene
from vidqa.types import Frame
from vidqa.video.change_signal import Scan
from vidqa.video.reader import VideoReader

_RIGHT = Actor(
    kind="moves", shape="circle", color="red", end_color="red", direction="right", across=0.34,
    x=0.16, y=0.52, end_x=0.84, end_y=0.52, appear=0.0, leave=2.0, start=0.05, stop=0.95, change=0.5, turn_degrees=0,
)  # fmt: skip
_UP = Actor(
    kind="moves", shape="square", color="blue", end_color="blue", direction="up", across=0.34,
    x=0.6, y=0.8, end_x=0.6, end_y=0.24, appear=0.0, leave=2.0, start=0.05, stop=0.95, change=0.5, turn_degrees=0,
)  # fmt: skip
_SCENES = {"circle": Scene((_RIGHT,), "plain", 3), "square": Scene((_UP,), "plain", 5)}
DRAWN = {"circle": "a red circle moves right", "square": "a blue square moves up"}  # answers by name
_FRAMES, _HEIGHT, _WIDTH = 100, 120, 160


class MemorySource:
    """A video source with frames in memory."""

    stopped, process_id = "", 0

    def __init__(self, frames: dict[int, Frame]) -> None:
        self._frames = frames

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        return (self._frames[index] for index in indices)

    def scan(self, limit_seconds: float) -> Scan:
        raise NotImplementedError("drawn clips are sampled evenly")

    def abandon(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def drawn_reader(name: str) -> VideoReader:
    """Return a reader of a drawn clip of 4 seconds."""
    moments = [index / (_FRAMES - 1) for index in range(_FRAMES)]
    pixels = render_clips_at([_SCENES[name]], moments, _HEIGHT, _WIDTH)[0].permute(0, 2, 3, 1).numpy()
    info = synthetic_video(_FRAMES, _WIDTH, _HEIGHT)
    pictures = {
        index: Frame(index, info.pts_seconds[index], np.ascontiguousarray(pixels[index])) for index in range(_FRAMES)
    }
    return VideoReader(info, MemorySource(pictures))
