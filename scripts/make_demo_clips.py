"""Render the demo clips into assets/: the same pictures each time, a few kilobytes each."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from demo_world.clips import ClipSpec, write_clip
from demo_world.world import Actor, Scene

ASSETS = Path(__file__).parents[1] / "assets"
_RED = Actor(
    kind="moves", shape="circle", color="red", end_color="red", direction="right", across=0.34,
    x=0.16, y=0.52, end_x=0.84, end_y=0.52, appear=0.0, leave=2.0, start=0.05, stop=0.95, change=0.5, turn_degrees=0,
)  # fmt: skip
_BLUE = replace(
    _RED, shape="square", color="blue", end_color="blue", direction="up", x=0.6, y=0.8, end_x=0.6, end_y=0.24,
    appear=0.53, start=0.55, stop=0.97,
)  # fmt: skip
_CHANGING = replace(
    _RED, kind="changes", shape="triangle", color="green", end_color="yellow", x=0.45, y=0.5, end_x=0.45, end_y=0.5
)
SCENES = {
    "demo.mp4": Scene((_RED,), "plain", 3),
    "demo-two.mp4": Scene((replace(_RED, leave=0.5, start=0.02, stop=0.48), _BLUE), "graded", 5),
    "demo-color.mp4": Scene((_CHANGING,), "graded", 8),
    "demo-empty.mp4": Scene((), "noisy", 2),
}


def main() -> int:
    for name, scene in SCENES.items():
        seconds = 6.0 if len(scene.actors) == 2 else 4.0
        spec = ClipSpec(scene, 320, 240, 24, seconds, "libx264", (("crf", "23"), ("preset", "medium")), False)
        write_clip(spec, ASSETS / name)
        print(f"{name}: {(ASSETS / name).stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
