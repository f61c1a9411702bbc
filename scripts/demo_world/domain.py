"""What a demo model's folder says about the clips that it knows: the limits of their pictures' statistics.

The limits lie above what `scripts/bench_domain.py` measures on clips of this world; real videos did not choose them.
"""

from typing import Any

from demo_world.render import RGB

UNLIKE_SHARE = 0.2  # of a clip's pictures
LIMITS = {
    "background_color": 36.0, "stray_color": 0.008, "shape_share": 0.28, "spread": 1.6, "roughness": 38.0,
    "hard_edges": 0.004, "sharpness": 14.0,
}  # fmt: skip


def training_domain() -> dict[str, Any]:
    """Return the content of `training_domain.json`."""
    return {
        "knows": "drawn shapes",
        "paints": [list(color) for color in RGB.values()],
        "limits": LIMITS,
        "unlike_share": UNLIKE_SHARE,
    }
