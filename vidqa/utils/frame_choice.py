"""How the frames of a plan were chosen: by the video's change, or by the question. Imports no torch, av or numpy."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SampledPart:
    """A part of a video that changes: when it is shown, the frames it got, and its share (0 to 1) of all change."""

    start_seconds: float
    end_seconds: float
    frames: int
    change: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a plan's frames were placed after a scan of the video, and why; `parts` are those that change most.

    `still` is whether a scan of every frame saw no change in the requested part of the video.
    """

    kind: Literal["uniform", "change"]
    reason: str
    parts: tuple[SampledPart, ...] = ()
    still: bool = False


@dataclass(frozen=True, slots=True)
class SliceSelection:
    """Which temporal slices of the candidates a question selected.

    `seconds` are the mean times of all; `scores` the question's attention to each, where 1 is an even share, or empty
    for a question about the whole video; `chosen` the indices of those that are read, ascending.
    """

    seconds: tuple[float, ...]
    scores: tuple[float, ...]
    chosen: tuple[int, ...]
    scoring_seconds: float = 0.0
