"""The bridge between the screen and the session: one thread that runs jobs in order and posts messages.

Whoever draws gives jobs and reads messages; nothing else of the session is touched while a job runs,
so a new question always waits for the end of the old one. One of the borders where every exception ends.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from textual.message import Message

from vidqa.config import EngineConfig
from vidqa.errors import Interrupted, VidqaError
from vidqa.events import Answered, Event, MemorySampled, StageProgress, TextDelta
from vidqa.planner.planner import Forecast
from vidqa.tui.worker_messages import EngineEvent, JobEnded, MemoryMeasured, Progressed, TextWaiting
from vidqa.types import Answer, Request, VideoInfo

if TYPE_CHECKING:
    from vidqa.tui.conversation import Exchange


class SessionEngine(Protocol):
    """What the app needs of a session; `vidqa.Session` is one."""

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        """Plan for a video whose facts are known; opens no file."""

    def load(self, request: Request) -> Iterator[Event]:
        """Load the model as the request's plan says."""

    def ask(self, request: Request) -> Iterator[Event]:
        """Answer."""

    def reconfigure(self, config: EngineConfig) -> None:
        """Go on with other settings."""

    def cancel(self) -> None:
        """Stop at the next chunk or token."""

    def close(self) -> None:
        """Let go of the model."""


SessionFactory = Callable[[EngineConfig], SessionEngine]
_KEEP_SECONDS = 1.0
_POST_SECONDS = 0.05  # nobody sees more than so often how far a stage is, or how memory stands


class StreamingText:
    """The text of an answer so far: written by the bridge's thread, taken piece by piece by the screen's.

    All of it is given to `keep` about once a second: a killed process leaves that much.
    """

    def __init__(self, keep: Callable[[str], None] | None) -> None:
        self._text, self._taken = "", 0
        self._lock = threading.Lock()
        self._keep, self._next = keep, 0.0

    @property
    def text(self) -> str:
        """All text so far."""
        return self._text

    def add(self, text: str) -> bool:
        """More text came; whether none was waiting before."""
        with self._lock:
            first = self._taken == len(self._text)
            self._text += text
        if self._keep is not None and (now := time.monotonic()) >= self._next:
            self._keep(self._text)
            self._next = now + _KEEP_SECONDS
        return first and bool(text)

    def take(self) -> str:
        """The text that came since the last call."""
        with self._lock:
            text, self._taken = self._text[self._taken :], len(self._text)
        return text


@dataclass(frozen=True, slots=True)
class SessionJob:
    """One thing to do: answer the request for a turn, or, where there is none, make the model ready for it.

    `save` is called with the answer, in the bridge's thread, before the screen hears of it.
    """

    request: Request
    config: EngineConfig
    exchange: "Exchange | None" = None
    save: Callable[[Answer], None] | None = None
    run_config: StreamingText = field(default_factory=lambda: StreamingText(None))
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def only_load(self) -> bool:
        """Whether nothing is to be answered."""
        return self.exchange is None


class Throttle:
    """Lets a message of each kind through every so often; a newer one takes the place of one that is held back."""

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post
        self._held: dict[type[Message], Message] = {}
        self._due: dict[type[Message], float] = {}

    def post(self, message: Message) -> None:
        """Now, or when it is due and another one comes, or with `rest`."""
        kind, now = type(message), time.monotonic()
        if now < self._due.get(kind, 0.0):
            self._held[kind] = message
            return
        self._held.pop(kind, None)
        self._due[kind] = now + _POST_SECONDS
        self._post(message)

    def rest(self) -> None:
        """What is held back, before something else is told."""
        for message in self._held.values():
            self._post(message)
        self._held.clear()
        self._due.clear()


class SessionWorker:
    """Owns the session. `run` is the thread's body; all other methods may be called from any thread."""

    def __init__(self, factory: SessionFactory, config: EngineConfig, post: Callable[[Message], object]) -> None:
        self._factory, self._config, self._post = factory, config, post
        self._pace = Throttle(post)
        self._jobs: queue.SimpleQueue[SessionJob | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._session: SessionEngine | None = None
        self._pending: list[SessionJob] = []

    def session(self) -> SessionEngine:
        """The session, made on first use."""
        with self._lock:
            if self._session is None:
                self._session = self._factory(self._config)
            return self._session

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        return bool(self._pending)

    def submit(self, job: SessionJob) -> None:
        """Do this after everything that was given before."""
        with self._lock:
            self._pending.append(job)
        self._jobs.put(job)

    def stop(self) -> None:
        """Stop what runs and what waits, at the next chunk or token."""
        with self._lock:
            for job in self._pending:
                job.stopped.set()
            session = self._session
        if session is not None:
            session.cancel()

    def leave(self) -> None:
        """Stop, then end the thread."""
        self.stop()
        self._jobs.put(None)

    def run(self) -> None:
        """Do job after job until `leave`."""
        while (job := self._jobs.get()) is not None:
            error = self._done(job)
            self._pace.rest()
            with self._lock:
                self._pending.remove(job)
            self._post(JobEnded(job, error))
        if self._session is not None:
            self._session.close()

    def _done(self, job: SessionJob) -> VidqaError | None:
        """Do one job; returns what went wrong. Whatever it is, the next job finds a usable session."""
        try:
            self._do(job)
        except VidqaError as error:
            return error
        except Exception as error:
            traceback.print_exc()  # the guarded descriptor: it is in the log
            self._discard()
            what = f"Something unexpected went wrong: {type(error).__name__}: {error}."
            return VidqaError(what, "Ask again: the model is loaded anew. The log has the traceback.")
        return None

    def _discard(self) -> None:
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except Exception:
                traceback.print_exc()

    def _do(self, job: SessionJob) -> None:
        session = self.session()
        self._config = job.config
        session.reconfigure(job.config)
        if job.stopped.is_set():
            raise Interrupted("Stopped before it began.")
        events = session.load(job.request) if job.only_load else session.ask(job.request)
        if job.stopped.is_set():  # the call above forgets a cancel that came before it
            session.cancel()
        for event in events:
            self._tell(event, job)

    def _tell(self, event: Event, job: SessionJob) -> None:
        match event:
            case TextDelta(text):
                if job.run_config.add(text):  # one message while text waits, however many pieces come
                    self._post(TextWaiting(job))
            case StageProgress():
                self._pace.post(Progressed(job, event))
            case MemorySampled():
                self._pace.post(MemoryMeasured(event))
            case Answered(answer):
                if job.save is not None:
                    job.save(answer)
                self._pace.rest()
                self._post(EngineEvent(job, event))
            case _:
                self._pace.rest()
                self._post(EngineEvent(job, event))
