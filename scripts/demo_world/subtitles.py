"""Subtitles between the slices of a clip, which say nothing about its shapes."""

import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from demo_world.world import COLORS, SHAPES

MAX_LINES = 6  # between the slices of a clip
_PIECES_PER_SLICE = 3  # in the layout of a family that reads times
_WORDS = (
    "hello", "there", "and", "now", "we", "see", "the", "you", "yes", "no", "look", "here", "come", "go", "what",
    "is", "it", "one", "two", "again", "thanks", "okay", "well", "that", "was", "good", *COLORS, *SHAPES,
)  # fmt: skip


def draw_lines(rng: random.Random, seconds: float) -> list[tuple[float, str]]:
    """Draw up to `MAX_LINES` lines and their times in seconds."""
    count = rng.randint(1, MAX_LINES)
    times = sorted(rng.uniform(0, seconds) for _ in range(count))
    return [(time, " ".join(rng.choices(_WORDS, k=rng.randint(1, 6))).capitalize() + ".") for time in times]


def with_subtitles(
    layout: Sequence[Any], slice_seconds: Sequence[float], lines: Sequence[tuple[float, str]]
) -> list[Any]:
    """Return a layout with each line before the first slice that is later, as vidqa writes them."""
    pieces = list(layout)
    for time, text in reversed(lines):
        place = _PIECES_PER_SLICE * bisect_right(slice_seconds, time)
        pieces.insert(place, f"<{time:.1f} seconds>Subtitle: {text}\n")
    return pieces
