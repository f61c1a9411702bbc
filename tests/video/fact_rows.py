"""A file of one kind: how it is made, and what is true of it, computed by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Range:
    """A question about `start` to `end`: the first and the last number that is seen, and their times in seconds."""

    start: float
    end: float | None
    numbers: tuple[int, int]
    seconds: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Row:
    """How a file is made, and what is true of it."""

    name: str
    make: Callable[[Path], Path]
    facts: dict[str, Any]
    ranges: tuple[Range, ...] = field(default=())
    seen: tuple[tuple[int, tuple[tuple[int, int, int], ...]], ...] = field(default=())  # colours near the four corners


def facts(frames: int, seconds: float, fps: float, constant: bool, **others: Any) -> dict[str, Any]:
    return {"frame_count": frames, "duration_seconds": seconds, "fps": fps, "constant_rate": constant} | others
