"""The stream that every face renders. This file knows `types` and `errors` and nothing else."""

from dataclasses import dataclass
from typing import Literal

from vidqa.errors import VidqaError
from vidqa.types import Answer, Plan, VideoInfo

Stage = Literal["load", "video", "vision", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Planned:
    """The video was probed and the plan is made; no frame is decoded yet."""

    video: VideoInfo
    plan: Plan


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; `total` counts its units (frames, slices, tokens)."""

    stage: Stage
    total: int


@dataclass(frozen=True, slots=True)
class StageProgress:
    """`done` of `total` units of a stage are finished."""

    stage: Stage
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Noted:
    """Something the user should know, in one sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """How the plan's device stands, at most ten times a second: this process's bytes, and others'.

    `tensor_peak_bytes` is the most that lived in tensors so far, where that is counted apart from the process.
    """

    phase: str
    current_bytes: int
    peak_bytes: int
    other_bytes: int
    tensor_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Degraded:
    """A phase ran out of memory; a smaller plan goes on. `step` says what was lowered."""

    phase: str
    step: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer, in whole characters, untrusted."""

    text: str


@dataclass(frozen=True, slots=True)
class Answered:
    """Always the last event."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of one request among several: the others go on."""

    error: VidqaError


Event = Planned | StageStarted | StageProgress | MemorySampled | Degraded | Noted | TextDelta | Answered | Failed
