"""The thread that owns the session: it runs jobs in order and posts what happens to the screen.

While a job runs, only this thread uses the session, so a new question waits for the end of the old one. Every
exception of a job ends here and becomes a `JobEnded` message.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Protocol

from textual.message import Message

from vidqa.config import EngineConfig
from vidqa.errors import Interrupted, VidqaError
from vidqa.events import Answered, Event, MemorySampled, StageProgress, TextDelta
from vidqa.planner.planner import Forecast
from vidqa.tui.worker_messages import EngineEvent, JobEnded, MemoryMeasured, Progressed, SessionJob, TextWaiting
from vidqa.types import Request, VideoInfo


class SessionEngine(Protocol):
    """The methods of `vidqa.Session` that the app uses."""

    def forecast(self, video: VideoInfo, request: Request, config: EngineConfig | None = None) -> Forecast:
        """Plan for a video that is already probed; opens no file."""

    def load(self, request: Request) -> Iterator[Event]:
        """Load the model as the request's plan says."""

    def ask(self, request: Request) -> Iterator[Event]:
        """Answer the request."""

    def find(self, request: Request) -> Iterator[Event]:
        """Search the video for the request's question."""

    def reconfigure(self, config: EngineConfig) -> None:
        """Use other settings from now on."""

    def cancel(self) -> None:
        """Stop at the next chunk or token."""

    def close(self) -> None:
        """Free the model."""


SessionFactory = Callable[[EngineConfig], SessionEngine]
_MIN_INTERVAL_SECONDS = 0.05  # between two progress or memory messages that reach the screen


class Throttle:
    """Post at most one message of each class per interval; a newer one replaces one that is held back."""

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post
        self._held: dict[type[Message], Message] = {}
        self._due: dict[type[Message], float] = {}

    def post(self, message: Message) -> None:
        """Post the message, or hold it until the next one or `flush`."""
        kind, now = type(message), time.monotonic()
        if now < self._due.get(kind, 0.0):
            self._held[kind] = message
            return
        self._held.pop(kind, None)
        self._due[kind] = now + _MIN_INTERVAL_SECONDS
        self._post(message)

    def flush(self) -> None:
        """Post what is held back; call it before a message of another kind."""
        for message in self._held.values():
            self._post(message)
        self._held.clear()
        self._due.clear()


class SessionWorker:
    """Owns the session. `run` is the thread's body; all other methods may be called from any thread."""

    def __init__(self, factory: SessionFactory, config: EngineConfig, post: Callable[[Message], object]) -> None:
        self._factory, self._config, self._post = factory, config, post
        self._throttle = Throttle(post)
        self._jobs: queue.SimpleQueue[SessionJob | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._session: SessionEngine | None = None
        self._pending: list[SessionJob] = []

    def session(self) -> SessionEngine:
        """Return the session, created on first use."""
        with self._lock:
            if self._session is None:
                self._session = self._factory(self._config)
            return self._session

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        return bool(self._pending)

    def submit(self, job: SessionJob) -> None:
        """Queue a job."""
        with self._lock:
            self._pending.append(job)
        self._jobs.put(job)

    def stop(self) -> None:
        """Stop the running job at the next chunk or token, and all queued ones."""
        with self._lock:
            for job in self._pending:
                job.stopped.set()
            session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Stop all jobs, then end the thread."""
        self.stop()
        self._jobs.put(None)

    def run(self) -> None:
        """Run job after job until `close`."""
        while (job := self._jobs.get()) is not None:
            error = self._try(job)
            self._throttle.flush()
            with self._lock:
                self._pending.remove(job)
            self._post(JobEnded(job, error))
        if self._session is not None:
            self._session.close()

    def _try(self, job: SessionJob) -> VidqaError | None:
        """Run a job; return its error. An unexpected exception discards the session, so that the next job can run."""
        try:
            self._run_job(job)
        except VidqaError as error:
            return error
        except Exception as error:
            traceback.print_exc()  # goes to the log
            self._discard_session()
            what = f"An unexpected error occurred: {type(error).__name__}: {error}."
            return VidqaError(what, "Ask again: the model is then loaded again. The log (F9) has the traceback.")
        return None

    def _discard_session(self) -> None:
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except Exception:
                traceback.print_exc()

    def _run_job(self, job: SessionJob) -> None:
        session = self.session()
        self._config = job.config
        session.reconfigure(job.config)
        if job.stopped.is_set():
            raise Interrupted("Stopped before it began.")
        run = session.find if job.search else session.load if job.only_load else session.ask
        events = run(job.request)
        if job.stopped.is_set():  # the call above resets an earlier cancel
            session.cancel()
        for event in events:
            self._post_event(event, job)

    def _post_event(self, event: Event, job: SessionJob) -> None:
        match event:
            case TextDelta(text):
                if job.streamed.add(text):  # one message while text waits, however many pieces come
                    self._post(TextWaiting(job))
            case StageProgress():
                self._throttle.post(Progressed(job, event))
            case MemorySampled():
                self._throttle.post(MemoryMeasured(event))
            case _:
                if isinstance(event, Answered) and job.save is not None:
                    job.save(event.answer)
                self._throttle.flush()
                self._post(EngineEvent(job, event))
