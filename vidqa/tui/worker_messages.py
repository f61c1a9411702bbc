"""What the working threads tell the screen. Plain data; the noisy ones give way to newer ones."""

from typing import TYPE_CHECKING

from textual.message import Message

from vidqa.errors import VidqaError
from vidqa.events import Event, MemorySampled, StageProgress
from vidqa.planner.planner import Forecast
from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.types import VideoInfo

if TYPE_CHECKING:
    from vidqa.tui.session_worker import SessionJob


class EngineEvent(Message):
    """An event of the session that must not be lost."""

    def __init__(self, job: "SessionJob", event: Event) -> None:
        super().__init__()
        self.job, self.event = job, event


class Progressed(Message):
    """How far a stage is; only the newest counts."""

    def __init__(self, job: "SessionJob", event: StageProgress) -> None:
        super().__init__()
        self.job, self.event = job, event

    def can_replace(self, message: Message) -> bool:
        """A newer report of the same stage says all that this one does."""
        return isinstance(message, Progressed) and message.event.stage == self.event.stage


class MemoryMeasured(Message):
    """How memory stands; only the newest counts."""

    def __init__(self, sample: MemorySampled) -> None:
        super().__init__()
        self.sample = sample

    def can_replace(self, message: Message) -> bool:
        """A newer sample makes this one old."""
        return isinstance(message, MemoryMeasured)


class TextWaiting(Message):
    """There is text to take from a job's draft."""

    def __init__(self, job: "SessionJob") -> None:
        super().__init__()
        self.job = job


class JobEnded(Message):
    """The bridge is done with a job; `error` says why, where it failed."""

    def __init__(self, job: "SessionJob", error: VidqaError | None) -> None:
        super().__init__()
        self.job, self.error = job, error


class ModelsListed(Message):
    """How the plan's device stands between questions; only the newest counts."""

    def __init__(self, own_bytes: int, other_bytes: int) -> None:
        super().__init__()
        self.own_bytes, self.other_bytes = own_bytes, other_bytes

    def can_replace(self, message: Message) -> bool:
        """A newer look makes this one old."""
        return isinstance(message, ModelsListed)


class PlanForecast(Message):
    """The answer of the planner to wish number `number`."""

    def __init__(self, number: int, forecast: Forecast | None, error: VidqaError | None) -> None:
        super().__init__()
        self.number, self.forecast, self.error = number, forecast, error


class VideoOpened(Message):
    """The facts of the video that was asked for."""

    def __init__(self, path: str, video: VideoInfo) -> None:
        super().__init__()
        self.path, self.video = path, video


class VideoFailed(Message):
    """The video cannot be used."""

    def __init__(self, path: str, error: VidqaError) -> None:
        super().__init__()
        self.path, self.error = path, error


class FrameShown(Message):
    """A sampled frame as a small picture."""

    def __init__(self, path: str, index: int, picture: HalfBlockImage) -> None:
        super().__init__()
        self.path, self.index, self.picture = path, index, picture
