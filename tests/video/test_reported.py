"""Files of public bug reports, where they are here: their facts, and colours of their pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.video.fact_rows import facts
from tests.video.picture_rows import UNTAGGED
from vidqa.video.reader import open_video

SHARED = Path(__file__).parents[3] / "shared" / "failing"
RED, BLUE, BLACK, WHITE = (255, 0, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Reported:
    """A file of a public bug report: its facts, and colours by index, x and y as shares of the sides."""

    name: str
    facts: dict[str, Any]
    colours: dict[tuple[int, float, float], tuple[int, int, int]] = field(default_factory=dict)


REPORTED = [
    Reported("hold10.gif", facts(3, 10.2, 10, constant=False)),
    Reported("hold.mp4", facts(50, 61.96, 25, constant=False)),
    Reported("lie.mkv", facts(17850, 600.0, 29.75, constant=True)),
    Reported(
        "catback.ts", facts(140, 5.0, 139 / (5 - 1 / 30), constant=False),
        {(0, 0.5, 0.5): RED, (49, 0.5, 0.5): RED, (50, 0.5, 0.5): BLUE, (139, 0.5, 0.5): BLUE},
    ),
    Reported("two.webm", facts(30, 3.0, 10, constant=True, width=320, height=240, notes=())),
    Reported("hflip.mp4", {"width": 320}, {(0, 0.1, 0.1): (0, 255, 0), (0, 0.9, 0.9): BLUE}),
    Reported("vflip.mp4", {"width": 320}, {(0, 0.1, 0.1): BLUE, (0, 0.9, 0.9): (0, 255, 0)}),
    Reported("crop.mkv", {"width": 320, "height": 120}, {(0, 0.1, 0.1): RED, (0, 0.9, 0.9): RED}),
    Reported("alpha.webm", {"frame_count": 10}, {(0, 0.25, 0.25): (242, 2, 9), (9, 0.9, 0.9): WHITE}),
    Reported("c_untag_hd.mp4", {"height": 720, "notes": UNTAGGED}, {(0, 0.25, 0.25): (40, 59, 201)}),
    Reported(
        "grid.avif", {"frame_count": 1, "width": 512, "height": 512}, {(0, 0.02, 0.02): RED, (0, 0.98, 0.98): WHITE}
    ),
]  # fmt: skip


@pytest.mark.parametrize("reported", REPORTED, ids=lambda reported: reported.name)
def test_files_of_bug_reports(reported: Reported) -> None:
    path = SHARED / reported.name
    if not path.exists():
        pytest.skip(f"the file of the bug report is not here ({path})")
    with open_video(str(path), isolated=False) as reader:
        for name, value in reported.facts.items():
            found = getattr(reader.info, name)
            assert found == (pytest.approx(value, rel=2e-4) if isinstance(value, float) else value), name
        indices = sorted({index for index, _, _ in reported.colours})
        frames = {frame.index: frame.rgb for frame in reader.frames(indices)}
        for (index, x, y), colour in reported.colours.items():
            height, width, _ = frames[index].shape
            seen = frames[index][int(y * height), int(x * width)].astype(int)
            assert np.abs(seen - colour).max() <= 8, (index, x, y, seen)
