"""Events of a session while it answers, for the command line and the interactive session to render."""

from dataclasses import dataclass
from typing import Literal

from vidqa.errors import VidqaError
from vidqa.types import Answer, Plan, VideoInfo

Stage = Literal["libraries", "speed", "load", "scan", "video", "vision", "focus", "prefill", "decode"]


# What comes before the first frame: libraries start, the device's speed is measured once, weights are read.
LOADING: frozenset[Stage] = frozenset({"libraries", "speed", "load"})


@dataclass(frozen=True, slots=True)
class Planned:
    """The video is probed and the plan is made; no frame is decoded yet."""

    video: VideoInfo
    plan: Plan


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; `total` counts its units (modules, measurements, bytes, frames, slices, tokens)."""

    stage: Stage
    total: int


@dataclass(frozen=True, slots=True)
class StageProgress:
    """`done` of `total` units of a stage are finished.

    Of a scan that leaves frames out, `done / total` is the share of its time that has passed.
    """

    stage: Stage
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a text points to in a video: the plan's `selection` has the score of every slice that was looked at.

    `out_of_domain` is as in `Answer`.
    """

    video: VideoInfo
    plan: Plan
    out_of_domain: bool | None = None


@dataclass(frozen=True, slots=True)
class Noted:
    """A note for the user, in one sentence.

    One on the `plan` holds until a smaller plan is taken, one on the `frames` until other ones are read.
    """

    text: str
    about: Literal["request", "frames", "plan"] = "request"


@dataclass(frozen=True, slots=True)
class OutOfDomain:
    """The video's pictures are unlike those that the model was trained on, so it cannot know what they show.

    `knows` is what it was trained on, untrusted; `advice` names a model that fits here, or is empty.
    """

    knows: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """Bytes in use on the plan's device by this process and by others, at most ten times a second.

    `tensor_peak_bytes` is the peak of all tensors so far, where tensors are counted apart from the process.
    """

    phase: str
    current_bytes: int
    peak_bytes: int
    other_bytes: int
    tensor_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Degraded:
    """A phase ran out of memory, and the request goes on with a smaller plan. `step` says what was lowered."""

    phase: str
    step: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next part of the answer: whole characters, untrusted."""

    text: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The last event of a request."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that failed in a batch; the other requests go on."""

    error: VidqaError


Event = (
    Planned
    | StageStarted
    | StageProgress
    | MemorySampled
    | Degraded
    | Noted
    | OutOfDomain
    | TextDelta
    | Found
    | Answered
    | Failed
)
