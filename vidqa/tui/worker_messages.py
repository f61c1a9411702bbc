"""Jobs for the session worker, and the messages that worker threads post to the screen."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from textual.message import Message

from vidqa.config import EngineConfig
from vidqa.errors import VidqaError
from vidqa.events import Event, MemorySampled, StageProgress
from vidqa.history.conversation import Exchange, StreamingText
from vidqa.models.download import DownloadProgress
from vidqa.planner.planner import Forecast
from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.types import Answer, Request, VideoInfo


@dataclass(frozen=True, slots=True)
class SessionJob:
    """A request to answer for `exchange`; without an exchange, only the model is loaded for it.

    With `search` the video is searched for the request's question instead.

    `save` is called with the answer, in the worker's thread, before the screen gets it.
    """

    request: Request
    config: EngineConfig
    exchange: Exchange | None = None
    search: bool = False
    save: Callable[[Answer], None] | None = None
    streamed: StreamingText = field(default_factory=StreamingText)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def only_load(self) -> bool:
        """Whether there is no question to answer and nothing to find."""
        return self.exchange is None and not self.search


class Replaceable(Message):
    """A message that a newer one of its class may replace in the queue."""

    def can_replace(self, message: Message) -> bool:
        """Whether this message makes `message` obsolete."""
        return type(message) is type(self)


@dataclass
class EngineEvent(Message):
    """An event of the session; every one is delivered."""

    job: SessionJob
    event: Event


@dataclass
class Progressed(Replaceable):
    """Progress of a stage."""

    job: SessionJob
    event: StageProgress

    def can_replace(self, message: Message) -> bool:
        """Whether `message` is older progress of the same stage."""
        return isinstance(message, Progressed) and message.event.stage == self.event.stage


@dataclass
class MemoryMeasured(Replaceable):
    """A memory sample of a running phase."""

    sample: MemorySampled


@dataclass
class DeviceMemoryRead(Replaceable):
    """The memory of the plan's device outside of a phase, in bytes: this process and all others."""

    own_bytes: int
    other_bytes: int


@dataclass
class TextWaiting(Message):
    """A job's streamed text has a piece to take."""

    job: SessionJob


@dataclass
class JobEnded(Message):
    """A job is done; `error` is why it failed."""

    job: SessionJob
    error: VidqaError | None


@dataclass
class PlanForecast(Message):
    """The planner's result for planning request `number`: a forecast or an error."""

    number: int
    forecast: Forecast | None
    error: VidqaError | None


@dataclass
class VideoOpened(Message):
    """A video was opened; `reread` if it was open before, and other subtitles were chosen for it."""

    video: VideoInfo
    reread: bool = False


@dataclass
class VideoFailed(Message):
    """A video could not be opened; `reread` as in `VideoOpened`."""

    error: VidqaError
    reread: bool = False


@dataclass
class FrameDecoded(Message):
    """A sampled frame as a small picture."""

    index: int
    picture: HalfBlockImage


@dataclass
class FramesFailed(Message):
    """Sampled frames cannot be decoded."""

    indices: frozenset[int]


@dataclass
class DownloadProgressed(Replaceable):
    """How much of a model's download is here."""

    name: str
    progress: DownloadProgress


@dataclass
class DownloadEnded(Message):
    """A model's download is complete, or ended with an error."""

    name: str
    error: VidqaError | None
