"""Long clips: events in their frames, keyframes at fixed distances, and the same pictures in between."""

from pathlib import Path

import av
import numpy as np
import pytest

from demo_world.long_clips import LongClip, LongEvent, frames_of, write_long_clip
from demo_world.world import Actor, Scene

_BLUE = Actor(
    kind="still", shape="square", color="blue", end_color="blue", direction="left", across=0.3,
    x=0.5, y=0.5, end_x=0.5, end_y=0.5, appear=0.0, leave=2.0, start=0.0, stop=1.0, change=0.5, turn_degrees=0,
)  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_events_lie_where_they_should_between_regular_keyframes(tmp_path: Path, noise: float) -> None:
    events = (LongEvent(Scene((_BLUE,), "plain", 9), 4.6, 0.8), LongEvent(Scene((_BLUE,), "plain", 9), 21.0, 0.1))
    clip = LongClip(27.3, events, noise=noise, seed=3, width=96, height=64, keyframe_seconds=5.0)
    path = tmp_path / "long.mp4"
    write_long_clip(clip, path)
    with av.open(str(path)) as container:
        pictures = [(frame.key_frame, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(pictures) == clip.count == 273
    assert [number for number, (key, _) in enumerate(pictures) if key] == list(range(0, 273, 50))
    blue = [number for number, (_, rgb) in enumerate(pictures) if _is_blue(rgb[28:36, 44:52])]
    assert blue == [*frames_of(clip, events[0]), *frames_of(clip, events[1])] == [*range(46, 54), 210]


def _is_blue(middle: np.ndarray) -> bool:
    red, _, blue = middle.reshape(-1, 3).mean(0)
    return bool(blue > 150 and red < 90)
